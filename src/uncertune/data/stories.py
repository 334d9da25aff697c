"""The sentences of the word problems: openings that give someone a quantity, and continuations that change it.

Each function draws its numbers, adds one sentence to the story, one worked step to the solution, and sets the
question that would be asked if the story ended here. All numbers are positive whole numbers and every division is
exact.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HER = _words("Ada Anna Bella Chloe Dana Elif Emma Grace Hana Ines Lena Lucia Maya Mina Nora Priya Rosa Sofia Uma Zoe")
HIS = _words("Adam Amir Ben Carlos Diego Felix Finn Hugo Ivan Jonas Kofi Leo Luca Nils Omar Oskar Pedro Sam Theo")
NAMES = sorted(HER + HIS)
TOYS = ("marble", "sticker", "toy car", "stamp", "shell", "bead", "card", "coin", "button", "postcard", "badge")
FRUIT = ("apple", "pear", "plum", "lemon", "orange", "fig", "melon", "apricot")
BAKED = ("cookie", "muffin", "roll", "bun", "pie", "pretzel", "scone")
FLOWERS = ("tulip", "rose", "daisy", "lily", "sunflower", "orchid")
SCHOOL = ("pencil", "crayon", "eraser", "notebook", "marker", "ruler")
PURCHASES = ("a book", "a hat", "a game", "a ticket", "a lamp", "a scarf")
_PLURALS = {"daisy": "daisies", "lily": "lilies", "box": "boxes"}


def count(number: int, noun: str) -> str:
    """``1 box``, ``3 boxes``."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


@dataclass
class Story:
    """An unfinished story: who has how many of what, the sentences so far, and the question that would come next."""

    rng: random.Random
    name: str = ""
    friend: str = ""
    noun: str = ""
    total: int = 0
    some_gone: bool = False
    packed: bool = False
    ended: bool = False
    question: str = ""
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name, self.friend = self.rng.sample(NAMES, 2)

    @property
    def money(self) -> bool:
        return self.noun == "dollar"

    @property
    def owned(self) -> str:
        """``her marbles``, ``his money``."""
        return f"{'her' if self.name in HER else 'his'} {'money' if self.money else plural(self.noun)}"

    @property
    def everything(self) -> str:
        """``all her marbles``, or ``the rest of her marbles`` once some are gone."""
        return f"the rest of {self.owned}" if self.some_gone else f"all {self.owned}"

    @property
    def then(self) -> str:
        """``Then`` before the third sentence and later ones, nothing before the second."""
        return "Then " if len(self.sentences) > 1 else ""

    def step(self, sentence: str, subject: str, left: int, sign: str, right: int, ending: str = "") -> None:
        """Tell one sentence and work ``left sign right`` in the solution: ``<subject> 3 * 4 = 12 apples<ending>.``"""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        self.sentences.append(sentence)
        self.steps.append(f"{subject} {left} {sign} {right} = {count(result, self.noun)}{ending}.")
        self.total = result

    def meet_another(self) -> None:
        """Choose another friend for what follows: the first friend's belongings were stated and must not change."""
        self.friend = self.rng.choice([name for name in NAMES if name not in (self.name, self.friend)])

    def ask(self, verb: str = "have", ending: str = "") -> None:
        self.question = f"How many {plural(self.noun)} does {self.name} {verb}{ending}?"


# --- openings -------------------------------------------------------------------------------------------------------


def _packs(s: Story) -> None:
    s.noun = s.rng.choice(SCHOOL)
    pack = s.rng.choice(("pack", "tin", "bag"))
    packs, each = s.rng.randint(2, 9), s.rng.randint(2, 12)
    s.step(f"{s.name} buys {count(packs, pack)} of {each} {plural(s.noun)}.", f"{s.name} has", packs, "*", each)
    s.ask()


def _days(s: Story) -> None:
    s.noun = s.rng.choice(FRUIT)
    days, each = s.rng.randint(2, 9), s.rng.randint(2, 15)
    s.step(f"{s.name} picks {each} {plural(s.noun)} a day for {days} days.", f"{s.name} picks", days, "*", each)
    s.ask("pick")


def _colours(s: Story) -> None:
    s.noun = s.rng.choice((*TOYS, *SCHOOL))
    first, second = s.rng.sample(("red", "blue", "green", "yellow", "white", "black"), 2)
    a, b = s.rng.randint(2, 40), s.rng.randint(2, 40)
    told = f"{s.name} has {a} {first} {plural(s.noun)} and {b} {second} {plural(s.noun)}."
    s.step(told, f"{s.name} has", a, "+", b)
    s.ask(ending=" in all")


def _shelves(s: Story) -> None:
    s.noun = s.rng.choice(("book", "jar", "plate", "cup", "candle", "bowl"))
    shelves, each = s.rng.randint(2, 9), s.rng.randint(3, 15)
    told = f"{s.name} has {shelves} shelves with {each} {plural(s.noun)} on each shelf."
    s.step(told, f"{s.name} has", shelves, "*", each)
    s.ask()


def _gift(s: Story) -> None:
    s.noun = s.rng.choice(TOYS)
    a, b = s.rng.randint(3, 50), s.rng.randint(1, 30)
    told = f"{s.name} has {count(a, s.noun)}, and {s.friend} gives {s.name} {b} more."
    s.step(told, f"{s.name} has", a, "+", b)
    s.ask(ending=" now")


def _lost(s: Story) -> None:
    s.noun = s.rng.choice(TOYS)
    a = s.rng.randint(8, 60)
    b = s.rng.randint(1, a - 2)
    s.step(f"{s.name} had {count(a, s.noun)} but lost {b} on a trip.", f"{s.name} has", a, "-", b, " left")
    s.ask(ending=" left")


def _trays(s: Story) -> None:
    s.noun = s.rng.choice(BAKED)
    trays, each = s.rng.randint(2, 8), s.rng.randint(4, 15)
    told = f"{s.name} bakes {trays} trays of {plural(s.noun)}, with {each} on each tray."
    s.step(told, f"{s.name} bakes", trays, "*", each)
    s.ask("bake")


def _two_days(s: Story) -> None:
    s.noun = s.rng.choice(("shell", "acorn", "pebble", "feather", "mushroom", "leaflet"))
    first, second = s.rng.choice((("Monday", "Tuesday"), ("Friday", "Saturday"), ("Saturday", "Sunday")))
    a, b = s.rng.randint(2, 45), s.rng.randint(2, 45)
    s.step(f"{s.name} finds {a} {plural(s.noun)} on {first} and {b} on {second}.", f"{s.name} finds", a, "+", b)
    s.ask("find", " in all")


def _equal_shares(s: Story) -> None:
    s.noun = s.rng.choice((*FRUIT, *BAKED))
    people, each = s.rng.randint(2, 8), s.rng.randint(3, 15)
    told = f"{s.name} is one of {people} children who share {people * each} {plural(s.noun)} equally."
    s.step(told, f"{s.name} gets", people * each, "/", people)
    s.ask("get")


def _wages(s: Story) -> None:
    s.noun = "dollar"
    hours, each = s.rng.randint(2, 9), s.rng.randint(5, 20)
    job = s.rng.choice(("washing cars", "walking dogs", "mowing lawns", "painting fences", "sorting mail"))
    told = f"{s.name} earns {each} dollars an hour {job} and works {hours} hours."
    s.step(told, f"{s.name} earns", hours, "*", each)
    s.ask("earn")


def _savings(s: Story) -> None:
    s.noun = "dollar"
    weeks, each = s.rng.randint(2, 12), s.rng.randint(2, 15)
    s.step(f"{s.name} saves {each} dollars a week for {weeks} weeks.", f"{s.name} saves", weeks, "*", each)
    s.ask("save")


def _half(s: Story) -> None:
    s.noun = s.rng.choice(TOYS)
    half = s.rng.randint(3, 40)
    told = f"{s.friend} has {2 * half} {plural(s.noun)}, and {s.name} has half as many."
    s.step(told, f"{s.name} has", 2 * half, "/", 2)
    s.ask()
    s.meet_another()


def _times_as_many(s: Story) -> None:
    s.noun = s.rng.choice((*TOYS, *SCHOOL))
    times, each = s.rng.randint(3, 6), s.rng.randint(2, 15)
    told = f"{s.friend} has {each} {plural(s.noun)}, and {s.name} has {times} times as many."
    s.step(told, f"{s.name} has", times, "*", each)
    s.ask()
    s.meet_another()


def _fewer(s: Story) -> None:
    s.noun = s.rng.choice(TOYS)
    a = s.rng.randint(8, 60)
    b = s.rng.randint(2, a - 3)
    told = f"{s.friend} has {a} {plural(s.noun)}, and {s.name} has {b} fewer than {s.friend}."
    s.step(told, f"{s.name} has", a, "-", b)
    s.ask()
    s.meet_another()


def _vases(s: Story) -> None:
    s.noun = s.rng.choice(FLOWERS)
    vases, each = s.rng.randint(2, 9), s.rng.randint(3, 12)
    told = f"{s.name} has {vases} vases with {each} {plural(s.noun)} in each vase."
    s.step(told, f"{s.name} has", vases, "*", each)
    s.ask()


def _hens(s: Story) -> None:
    s.noun = "egg"
    hens, each = s.rng.randint(2, 12), s.rng.randint(2, 6)
    s.step(f"{s.name} has {hens} hens, and each hen lays {each} eggs.", f"{s.name} has", hens, "*", each)
    s.ask()


# --- continuations --------------------------------------------------------------------------------------------------


def _gives_away(s: Story) -> None:
    k = s.rng.randint(1, s.total - 1)
    what = count(k, s.noun) if s.money else f"{k} of {s.owned}"
    s.step(f"{s.then}{s.name} gives {what} to {s.friend}.", f"{s.name} has", s.total, "-", k, " left")
    s.some_gone = True
    s.ask(ending=" left")


def _gets_more(s: Story) -> None:
    k = s.rng.randint(1, 30)
    s.step(f"{s.then}{s.friend} gives {s.name} {count(k, s.noun)}.", f"{s.name} has", s.total, "+", k)
    s.some_gone = False
    s.ask(ending=" now")


def _packs_up(s: Story) -> None:
    each = s.rng.choice(_divisors(s.total))
    told = f"{s.then}{s.name} packs {s.everything} into boxes of {each}."
    s.noun, s.packed, s.some_gone = "box", True, False
    s.step(told, f"{s.name} fills", s.total, "/", each)
    s.ask("fill")


def _shares_out(s: Story) -> None:
    people = s.rng.choice(_divisors(s.total))
    told = f"{s.then}{people} friends of {s.name} share {s.everything} equally."
    s.step(told, "Each friend gets", s.total, "/", people)
    s.question = f"How many {plural(s.noun)} does each friend get?"
    s.ended = True


def _sells(s: Story) -> None:
    price = s.rng.randint(2, 9)
    told = f"{s.then}{s.name} sells {s.everything} for {price} dollars each."
    s.noun, s.packed, s.some_gone = "dollar", False, False
    s.step(told, f"{s.name} gets", s.total, "*", price)
    s.ask("get")


def _uses_half(s: Story) -> None:
    told = f"{s.then}{s.name} {'spends' if s.money else 'uses'} half of {s.owned}."
    s.step(told, f"{s.name} has", s.total, "/", 2, " left")
    s.some_gone = True
    s.ask(ending=" left")


def _spends(s: Story) -> None:
    k = s.rng.randint(2, s.total - 1)
    told = f"{s.then}{s.name} pays {k} dollars for {s.rng.choice(PURCHASES)}."
    s.step(told, f"{s.name} has", s.total, "-", k, " left")
    s.some_gone = True
    s.ask(ending=" left")


def _spends_all(s: Story) -> None:
    price = s.rng.choice(_divisors(s.total))
    bought = s.rng.choice((*SCHOOL, *FLOWERS))
    told = f"{s.then}{s.name} spends {s.everything} on {plural(bought)} at {price} dollars each."
    s.noun, s.some_gone = bought, False
    s.step(told, f"{s.name} buys", s.total, "/", price)
    s.ask("buy")


def _divisors(total: int) -> list[int]:
    """Numbers from 2 to 12 that divide the total into at least two whole parts."""
    return [number for number in range(2, 13) if total % number == 0 and total // number >= 2]


OPENINGS: tuple[Callable[[Story], None], ...] = (
    _packs,
    _days,
    _colours,
    _shelves,
    _gift,
    _lost,
    _trays,
    _two_days,
    _equal_shares,
    _wages,
    _savings,
    _half,
    _times_as_many,
    _fewer,
    _vases,
    _hens,
)

CONTINUATIONS: tuple[tuple[Callable[[Story], bool], Callable[[Story], None]], ...] = (
    (lambda s: not s.ended and s.total >= 3, _gives_away),
    (lambda s: not s.ended and not s.packed, _gets_more),
    (lambda s: not s.ended and not s.money and not s.packed and bool(_divisors(s.total)), _packs_up),
    (lambda s: not s.ended and not s.packed and bool(_divisors(s.total)), _shares_out),
    (lambda s: not s.ended and not s.money and s.total <= 100, _sells),
    (lambda s: not s.ended and not s.packed and s.total % 2 == 0 and s.total >= 4, _uses_half),
    (lambda s: not s.ended and s.money and s.total >= 4, _spends),
    (lambda s: not s.ended and s.money and bool(_divisors(s.total)), _spends_all),
)
"""The condition under which a continuation fits the story so far, and the continuation."""
