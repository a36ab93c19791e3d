"""Tasks in the Python shell: `dict-key` (KeyError) and `list-index` (IndexError), and prompts that fool a lookup by repetition.

Every prompt ends where the shell would print, and its answer is what Python prints first: a digit, or `Traceback`.
"""

from collections.abc import Iterator
from random import Random

from reprbasis.errors import DataError
from reprbasis.interfaces.task import Split
from reprbasis.kits.templates import Draft, TemplateTask, Words, fill

from .config import DictKeyConfig, ListIndexConfig
from .lists import KEYS

TABLES = ("age", "scores", "data", "height", "weight", "grades")
LISTS = ("scores", "values", "data", "items", "numbers", "ages")
ERROR = "Traceback"
_PATIENCE = 1000
BEFORE = {
    "A2": ">>> # ask for '{decoy}'\n",
    "A3": ">>> {table3} = {{'{decoy}': {digit}}}\n",
    "A4": ">>> {decoy} = {digit}\n",
    "A5": ">>> del {table3}['{decoy}']\n",
    "A6": ">>> print('{decoy}')\n{decoy2}\n",
}
"""Family -> a statement between the dictionary and the query that names the missing key."""


def literal(entries: int, *, value: dict[int, str] | None = None, key: dict[int, str] | None = None) -> str:
    """A dictionary display with slots `key1`, `value1`, ...; single entries may be written otherwise."""
    rows = [(key or {}).get(i, f"'{{key{i}}}'") + ": " + (value or {}).get(i, f"{{value{i}}}") for i in range(1, entries + 1)]
    return "{{" + ", ".join(rows) + "}}"


def split_of(digits: list[str]) -> Split:
    """The split that a row of digits belongs to: the number they make, modulo 7, is 3 for validation and 4 for test."""
    rest = int("".join(digits)) % 7
    return "validation" if rest == 3 else "test" if rest == 4 else "train"


def repeats(draft: Draft, words: Words) -> bool:
    """Whether a token of the query stands in the clean prompt before it."""
    text, spans = fill(draft.template, draft.clean)
    ids, at = words.ids(text), words.spans(text, {"query": spans["query"]})["query"]
    return any(ids[i] in ids[:at[0]] for i in at)


class DictKey(TemplateTask[DictKeyConfig]):
    """A dictionary of names and digits, and a query: the digit if the name is there, else `Traceback`.

    Roles: `table` (the variable), `key1`, `value1`, ..., `table2` (the variable in the query), `query`. Splits share no name.
    Cases: `present`, `absent`. `meta` holds `at`, the number of the entry that matches.

    With `family`, the clean prompt is adversarial and the corrupted one its control: role `decoy` is the place where the
    missing name stands (in the control: a third name). Cases are the families. For all but `B1` both sides raise, the wrong
    answers are the digits in the dictionary, and the pair is not mirrored; in `B1` the key is there in two pieces, which in the
    control are another name's.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Random dictionaries, without end."""
        n, family = self.config.entries, self.config.family
        names = words.part(words.fit("{{'Bob': 1, '{}': 2}}", KEYS), split, of=KEYS)
        tables = words.fit(">>> {}['Bob", TABLES)
        if len(names) < n + 2:
            raise DataError(f"{n} entries need {n + 2} names, the {split} split has {len(names)}", do="use fewer entries")
        missed = 0
        while missed < _PATIENCE:
            chosen = random.sample(names, n + 2)
            digits = random.sample("123456789", n)
            table, table3 = random.sample(tables, 2)
            slots = {"table": table, "table2": table} | {f"key{i + 1}": name for i, name in enumerate(chosen[:n])}
            slots |= {f"value{i + 1}": digit for i, digit in enumerate(digits)}
            at = random.randrange(n)
            if family is None:
                yield self._lookup(slots, at, chosen[n], digits[at], random)
            elif family == "B1":
                draft = self._pieces(slots, at, chosen[n], digits[at], random)
                if repeats(draft, words):
                    missed += 1
                else:
                    yield draft
            elif family == "B2":
                yield self._typed(slots, split, random)
            else:
                yield self._decoy(family, slots | {"table3": table3}, at, (chosen[n], chosen[n + 1]), digits, random)

    @property
    def _query(self) -> str:
        """The last line of every prompt."""
        mark = "'" if self.config.quotes == "single" else '"'
        return f">>> {{table2}}[{mark}{{query}}{mark}]\n"

    def _lookup(self, slots: dict[str, str], at: int, other: str, digit: str, random: Random) -> Draft:
        change = random.choice(("query", "key")) if self.config.change == "both" else self.config.change
        slots["query"] = slots[f"key{at + 1}"]
        changed = "query" if change == "query" else f"key{at + 1}"
        template = f">>> {{table}} = {literal(self.config.entries)}\n{self._query}"
        return Draft(template, slots, {changed: other}, digit, ERROR, "present", "absent", meta={"at": at + 1, "change": change})

    def _decoy(self, family: str, slots: dict[str, str], at: int, others: tuple[str, str], digits: list[str],
               random: Random) -> Draft:
        n, (missing, third) = self.config.entries, others
        slots["query"] = missing
        value, wrong = None, tuple(digits)
        if family == "A1":
            value = {at + 1: "'{decoy}'"}
            wrong = tuple(d for i, d in enumerate(digits) if i != at)
            del slots[f"value{at + 1}"]
        display = literal(n, value=value)
        if family == "A5":  # the decoy is a key at first, and deleted
            display, slots["dropped"] = literal(n, key={at + 1: "'{dropped}'"}), missing
            del slots[f"key{at + 1}"]
            slots["table3"] = slots["table"]
        if family in ("A3", "A4"):
            slots["digit"] = random.choice([d for d in "123456789" if d not in digits])
            wrong = (*wrong, slots["digit"])
        if family not in ("A3", "A5"):
            del slots["table3"]
        before = BEFORE.get(family, "")
        decoys = [name for name in ("decoy", "decoy2", "dropped") if f"{{{name}}}" in display + before]
        slots |= dict.fromkeys(decoys, missing)
        template = f">>> {{table}} = {display}\n{before}{self._query}"
        return Draft(template, slots, dict.fromkeys(decoys, third), ERROR, wrong, family, mirrored=False, meta={"at": at + 1})

    def _pieces(self, slots: dict[str, str], at: int, other: str, digit: str, random: Random) -> Draft:
        name = slots.pop(f"key{at + 1}")
        cut = random.randint(1, len(name) - 1)
        where = random.randint(1, len(other) - 1)
        slots |= {"query": name, "decoy": name[:cut], "decoy2": name[cut:]}
        display = literal(self.config.entries, key={at + 1: "'{decoy}' + '{decoy2}'"})
        template = f">>> {{table}} = {display}\n{self._query}"
        return Draft(template, slots, {"decoy": other[:where], "decoy2": other[where:]}, digit, ERROR, "B1", "B1-control",
                     directions=1, meta={"at": at + 1})

    def _typed(self, slots: dict[str, str], split: Split, random: Random) -> Draft:
        """Keys are numbers, the query a string of one of them; in the control, of none. The query's digit is nowhere else."""
        n = self.config.entries
        while True:
            query, control, *rest = random.sample("123456789", 9)
            values = random.choices(rest, k=n)
            if split_of(values) == split:
                break
        at = random.randrange(n)
        keys = random.sample(rest, n - 1)
        keys.insert(at, query)
        slots |= {f"key{i + 1}": key for i, key in enumerate(keys)} | {f"value{i + 1}": digit for i, digit in enumerate(values)}
        slots["query"] = query
        display = literal(n, key={i: f"{{key{i}}}" for i in range(1, n + 1)})
        template = f">>> {{table}} = {display}\n{self._query}"
        return Draft(template, slots, {f"key{at + 1}": control}, ERROR, tuple(values), "B2", mirrored=False, meta={"at": at + 1})


class ListIndex(TemplateTask[ListIndexConfig]):
    """A list of digits and an index: the digit there, or `Traceback` above the end.

    Roles: `list` (the variable), `value1`, ..., `list2`, `index`. Splits share no list of digits. Cases: `present`, `absent`.
    `meta` holds `at`, the index counted from 1. The index just above the end is never asked for, as in the published sets.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Random lists, without end."""
        n = self.config.length
        names = words.fit(">>> {}[1]", LISTS)
        display = ", ".join(f"{{value{i + 1}}}" for i in range(n))
        template = f">>> {{list}} = [{display}]\n>>> {{list2}}[{{index}}]\n"
        outside = [str(i) for i in range(n + 1, 10)]
        while True:
            digits = random.sample("123456789", n)
            if split_of(digits) != split:
                continue
            at, name = random.randrange(n), random.choice(names)
            slots = {"list": name, "list2": name, "index": str(at)} | {f"value{i + 1}": d for i, d in enumerate(digits)}
            yield Draft(template, slots, {"index": random.choice(outside)}, digits[at], ERROR, "present", "absent",
                        meta={"at": at + 1})
