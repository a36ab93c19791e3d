"""Tasks about facts: `greater-than` (after Hanna et al. 2023) and `country-capital`."""

from collections.abc import Iterator
from itertools import permutations, product
from random import Random

from reprbasis.errors import DataError
from reprbasis.interfaces.task import Split
from reprbasis.kits.templates import Draft, TemplateTask, Words

from .config import CapitalConfig, GreaterThanConfig

EVENTS = ("war", "project", "trip", "reign", "siege", "strike", "campaign", "conflict", "dispute", "dynasty", "empire", "journey",
          "expedition", "marriage", "mission", "operation", "plague", "regime", "rule", "study", "trial", "voyage", "work",
          "drought")
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
YEARS = tuple(f"{y:02}" for y in range(11, 90))
TWO_DIGITS = tuple(f"{y:02}" for y in range(100))

CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"), ("China", "Beijing"),
    ("Russia", "Moscow"), ("England", "London"), ("Greece", "Athens"), ("Egypt", "Cairo"), ("Poland", "Warsaw"),
    ("Austria", "Vienna"), ("Hungary", "Budapest"), ("Ireland", "Dublin"), ("Sweden", "Stockholm"), ("Norway", "Oslo"),
    ("Portugal", "Lisbon"), ("Turkey", "Ankara"), ("Cuba", "Havana"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Iraq", "Baghdad"),
    ("Iran", "Tehran"), ("Thailand", "Bangkok"), ("Canada", "Ottawa"), ("Belgium", "Brussels"), ("Denmark", "Copenhagen"),
    ("Finland", "Helsinki"), ("Ukraine", "Kiev"), ("Lebanon", "Beirut"), ("Syria", "Damascus"), ("Chile", "Santiago"),
    ("Scotland", "Edinburgh"), ("Romania", "Bucharest"), ("Switzerland", "Bern"), ("Netherlands", "Amsterdam"),
    ("Venezuela", "Caracas"), ("Colombia", "Bogota"), ("Vietnam", "Hanoi"), ("Indonesia", "Jakarta"), ("Pakistan", "Islamabad"),
    ("Afghanistan", "Kabul"), ("Bulgaria", "Sofia"), ("Serbia", "Belgrade"), ("Croatia", "Zagreb"))
WORDINGS = ("The capital of {country} is the city of", "The government of {country} sits in its capital,",
            "People who visit the capital of {country} visit the city of", "Q: What is the capital of {country}?\nA:")


class GreaterThan(TemplateTask[GreaterThanConfig]):
    """A span of years that begins in `YY` cannot end before: answers are the years after it, wrong answers the years before.

    Where a tokenizer splits years into digits, the tens digit decides, and the tens digit of the start year is neither right nor
    wrong. The corrupted prompt begins in the year `01`, after which nearly every year is right: not mirrored. Roles: `event`,
    `century`, `year` (its last two digits), `again` (the second century). Splits share no event and no year.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """All combinations, shuffled."""
        events = words.part(words.fit("The {} lasted", EVENTS), split, of=EVENTS)
        found = list(product(events, CENTURIES, words.part(words.fit("the year 17{} to", YEARS), split, of=YEARS)))
        random.shuffle(found)
        for event, century, year in found:
            after, before = (tuple(f" {century}{y}" for y in TWO_DIGITS if (y > year) == later and y != year)
                             for later in (True, False))
            yield Draft("The {event} lasted from the year {century}{year} to the year",
                        {"event": event, "century": century, "year": year}, {"year": "01"}, after, before,
                        f"{year[0]}0s", mirrored=False)


class Capital(TemplateTask[CapitalConfig]):
    """A country's capital against that of another country.

    Roles: `country`. Splits share no country. `case` is the wording.
    """

    def drafts(self, words: Words, split: Split, random: Random) -> Iterator[Draft]:
        """Every two countries of a split whose names have equally many tokens, in every wording, shuffled."""
        chosen = self.config.templates or range(len(WORDINGS))
        if wrong := [i for i in chosen if not 0 <= i < len(WORDINGS)]:
            raise DataError(f"country-capital has no wording {', '.join(map(str, wrong))}", do=f"use 0 to {len(WORDINGS) - 1}")
        fitting = CAPITALS if self.config.lengths == "any" else words.fit("capital of {} is", CAPITALS, forms=1)
        countries = words.part(fitting, split, of=CAPITALS)
        found = [(*two, i) for two in permutations(countries, 2) for i in chosen if two[0] < two[1]]
        random.shuffle(found)
        for (country, capital), (other, elsewhere), index in found:
            yield Draft(WORDINGS[index], {"country": country}, {"country": other}, f" {capital}", f" {elsewhere}",
                        f"wording-{index}", f"wording-{index}")
