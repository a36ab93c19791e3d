"""What language models are asked, and how their answers are read."""

YES, NO = "Yes", "No"

EXPLAIN = """Each line below is a piece of text. Some tokens are marked <<so>>.{contrast}
{lines}

What do the marked tokens have in common? Answer with one short phrase, as specific as possible, and nothing else."""
CONTRAST = """
For comparison, lines in which nothing is marked because nothing has it:
{lines}
"""
MARKED = """Text: {text}
Do the tokens marked <<so>> fit this description: {phrase}? Answer {yes} or {no}."""
WHOLE = """Text: {text}
Does some part of this text fit this description: {phrase}? Answer {yes} or {no}."""


def line(passage):
    """A passage on one line."""
    return passage.text().replace("\n", "\\n")


def explain(shown, contrast):
    """The question for a phrase."""
    others = CONTRAST.format(lines="\n".join(map(line, contrast))) if contrast else ""
    return EXPLAIN.format(lines="\n".join(map(line, shown)), contrast=others)


def ask(passage, phrase):
    """The yes-or-no question about a passage."""
    return (MARKED if passage.marked else WHOLE).format(text=line(passage), phrase=phrase, yes=YES, no=NO)


def phrase(answer):
    """The first line of an answer, without quotes and the full stop; never empty."""
    first = next((one.strip() for one in answer.splitlines() if one.strip()), "")
    return first.strip("\"'").removesuffix(".") or "nothing"


def verdict(answer):
    """1, 0, or 0.5 where an answer begins with neither yes nor no."""
    word = answer.strip(" \n\"'*").lower()
    return 1.0 if word.startswith("yes") else 0.0 if word.startswith("no") else 0.5
