"""The kinds of word problems: how each draws its numbers, asks its question and is solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jun", "Kofi", "Lena", "Mia", "Noor")
GOODS = ("apples", "books", "candles", "cups", "eggs", "lamps", "mugs", "pens", "plants", "shirts", "stamps", "toys")
UNITS = (
    (100, "metres", "centimetres"),
    (1000, "kilograms", "grams"),
    (60, "hours", "minutes"),
    (60, "minutes", "seconds"),
    (7, "weeks", "days"),
    (12, "feet", "inches"),
)


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
        numbers: what makes it this problem, whoever it is about; they decide its split.
        question: as it is asked.
        steps: calculator expressions that solve it; the last one's result is the answer.
    """

    numbers: tuple[int, ...]
    question: str
    steps: tuple[str, ...]


Draw: TypeAlias = Callable[[Random, int], Problem]


def change(rng: Random, largest: int) -> Problem:
    """Change from a payment: one product, one difference."""
    count = rng.randint(2, min(12, largest // 4))
    price = rng.randint(2, (largest - 1) // count)
    paid = rng.randint(count * price + 1, largest)
    who, what = rng.choice(PEOPLE), rng.choice(GOODS)
    question = rng.choice(
        (
            f"{who} buys {count} {what} at {price} dollars each and pays with {paid} dollars. "
            "How many dollars of change does the shop give back?",
            f"One of the {what} costs {price} dollars. {who} has {paid} dollars and buys {count}. "
            "How many dollars are left?",
        )
    )
    return Problem((count, price, paid), question, (f"{paid} - {count} * {price}",))


def distance(rng: Random, largest: int) -> Problem:
    """Rate times time, and a rest."""
    speed, hours, rest = rng.randint(3, largest), rng.randint(2, 12), rng.randint(1, largest)
    who = rng.choice(PEOPLE)
    question = rng.choice(
        (
            f"A train goes {speed} km per hour for {hours} hours and then {rest} km more. How many km does it go?",
            f"{who} rides {rest} km in the morning, then {hours} hours at {speed} km per hour. "
            "How many km is that together?",
        )
    )
    return Problem((speed, hours, rest), question, (f"{speed} * {hours} + {rest}",))


def sharing(rng: Random, largest: int) -> Problem:
    """Sharing with a remainder: a quotient, then what is left."""
    people = rng.randint(3, min(12, largest // 4))
    things = rng.randint(2 * people, largest)
    who, what = rng.choice(PEOPLE), rng.choice(GOODS)
    question = rng.choice(
        (
            f"{who} shares {things} {what} equally among {people} children, as many as possible, all whole. "
            f"How many {what} are left over?",
            f"{things} {what} are packed into full boxes of {people}. How many {what} do not fit into a full box?",
        )
    )
    return Problem((people, things), question, (f"{things} / {people}", f"{things} - {people} * {things // people}"))


def discount(rng: Random, largest: int) -> Problem:
    """A percentage off the price of several things."""
    count, price = rng.randint(2, min(12, largest // 2)), rng.randint(2, largest)
    off = 5 * rng.randint(1, 15)
    who, what = rng.choice(PEOPLE), rng.choice(GOODS)
    question = rng.choice(
        (
            f"{who} buys {count} {what} at {price} dollars each, with {off} percent off. How many dollars is that?",
            f"Each of {count} {what} costs {price} dollars, and a coupon takes {off} percent off the total. "
            "How many dollars are to pay?",
        )
    )
    return Problem((count, price, off), question, (f"{count} * {price} * (100 - {off}) / 100",))


def units(rng: Random, largest: int) -> Problem:
    """A length, weight or time in two units, told in the smaller."""
    factor, large, small = rng.choice(UNITS)
    whole, rest = rng.randint(2, largest), rng.randint(1, factor - 1)
    question = rng.choice(
        (
            f"How many {small} are {whole} {large} and {rest} {small}?",
            f"Something takes {whole} {large} and {rest} {small}. What is that in {small}?",
        )
    )
    return Problem((factor, whole, rest), question, (f"{whole} * {factor} + {rest}",))


def stock(rng: Random, largest: int) -> Problem:
    """An inventory: some go, several boxes come."""
    start = rng.randint(5, largest)
    sold, boxes, each = rng.randint(1, start), rng.randint(2, 12), rng.randint(2, min(24, largest))
    who, what = rng.choice(PEOPLE), rng.choice(GOODS)
    question = rng.choice(
        (
            f"A shop has {start} {what} and sells {sold}. Then {boxes} boxes of {each} {what} arrive. "
            f"How many {what} does it have now?",
            f"{who} has {start} {what}, gives {sold} away and gets {boxes} packs of {each}. "
            f"How many {what} does {who} have then?",
        )
    )
    return Problem((start, sold, boxes, each), question, (f"{start} - {sold} + {boxes} * {each}",))


def average(rng: Random, largest: int) -> Problem:
    """The mean of four numbers; it ends within two decimals."""
    numbers = tuple(rng.randint(1, largest) for _ in range(4))
    a, b, c, d = numbers
    who = rng.choice(PEOPLE)
    question = rng.choice(
        (
            f"{who} scores {a}, {b}, {c} and {d} points in four games. What is the average?",
            f"Four bags weigh {a}, {b}, {c} and {d} kg. How many kg does a bag weigh on average?",
        )
    )
    return Problem(numbers, question, (f"({a} + {b} + {c} + {d}) / 4",))


def perimeter(rng: Random, largest: int) -> Problem:
    """Twice around a rectangle, several times."""
    width, height, rounds = rng.randint(2, largest), rng.randint(2, largest), rng.randint(2, 9)
    who = rng.choice(PEOPLE)
    question = rng.choice(
        (
            f"A field is {width} m wide and {height} m long. {who} runs around it {rounds} times. How many m is that?",
            f"A fence of {rounds} wires goes around a garden of {width} m by {height} m. "
            "How many m of wire does it take?",
        )
    )
    return Problem((width, height, rounds), question, (f"2 * ({width} + {height}) * {rounds}",))


def savings(rng: Random, largest: int) -> Problem:
    """Saving every week, then spending."""
    weekly, weeks = rng.randint(2, largest), rng.randint(2, 12)
    spent = rng.randint(1, min(largest, weekly * weeks))
    who = rng.choice(PEOPLE)
    question = rng.choice(
        (
            f"{who} saves {weekly} dollars a week for {weeks} weeks and then spends {spent} dollars. "
            "How many dollars are left?",
            f"For {weeks} weeks {who} earns {weekly} dollars a week. A bike costs {spent} dollars. "
            f"How many dollars does {who} have after buying it?",
        )
    )
    return Problem((weekly, weeks, spent), question, (f"{weekly} * {weeks} - {spent}",))


def crates(rng: Random, largest: int) -> Problem:
    """A product of three numbers, less what breaks."""
    crates, boxes, each = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, min(24, largest))
    broken = rng.randint(1, min(largest, crates * boxes * each))
    what = rng.choice(GOODS)
    question = rng.choice(
        (
            f"{crates} crates hold {boxes} boxes of {each} {what} each. {broken} {what} break. "
            f"How many {what} are whole?",
            f"A truck brings {crates} crates with {boxes} boxes of {each} {what} in each. {broken} {what} are stolen. "
            f"How many {what} are left?",
        )
    )
    return Problem((crates, boxes, each, broken), question, (f"{crates} * {boxes} * {each} - {broken}",))


def compare(rng: Random, largest: int) -> Problem:
    """The difference of two products."""
    count, price = rng.randint(3, min(12, largest)), rng.randint(3, largest)
    fewer, cheaper = rng.randint(1, count - 1), rng.randint(1, price - 1)
    who, other = rng.sample(PEOPLE, 2)
    what = rng.choice(GOODS)
    question = rng.choice(
        (
            f"{who} buys {count} {what} at {price} dollars each, {other} buys {fewer} at {cheaper} dollars each. "
            f"How many dollars more does {who} pay?",
            f"{who} reads {count} books of {price} pages and {other} reads {fewer} books of {cheaper} pages. "
            f"How many pages more does {who} read?",
        )
    )
    return Problem((count, price, fewer, cheaper), question, (f"{count} * {price} - {fewer} * {cheaper}",))


def pricing(rng: Random, largest: int) -> Problem:
    """The price of some from the price of others: first for one, then for many."""
    count, price, wanted = rng.randint(2, 9), rng.randint(2, max(2, largest // 9)), rng.randint(2, largest)
    what = rng.choice(GOODS)
    question = rng.choice(
        (
            f"{count} {what} cost {count * price} dollars. How many dollars do {wanted} {what} cost?",
            f"A machine makes {count * price} {what} in {count} hours. How many {what} does it make in {wanted} hours?",
        )
    )
    return Problem((count, count * price, wanted), question, (f"{count * price} / {count} * {wanted}",))


def ages(rng: Random, largest: int) -> Problem:
    """A multiple of an age, some years on."""
    age, times, years = rng.randint(2, largest), rng.randint(2, 9), rng.randint(1, largest)
    who, other = rng.sample(PEOPLE, 2)
    question = (
        f"{who} is {age} years old. {other}'s house is {times} times as old as {who}. "
        f"How old is the house in {years} years?"
    )
    return Problem((age, times, years), question, (f"{age} * {times} + {years}",))


def area(rng: Random, largest: int) -> Problem:
    """The rest of a rectangle around a smaller one."""
    width, height = rng.randint(3, largest), rng.randint(3, largest)
    inner_width, inner_height = rng.randint(1, width - 1), rng.randint(1, height - 1)
    question = (
        f"A yard of {width} m by {height} m has a pool of {inner_width} m by {inner_height} m. "
        "How many square metres around the pool remain?"
    )
    return Problem(
        (width, height, inner_width, inner_height), question, (f"{width} * {height} - {inner_width} * {inner_height}",)
    )


def wages(rng: Random, largest: int) -> Problem:
    """Pay per hour, hours per day, days, less a cost."""
    pay, hours, days = rng.randint(2, largest), rng.randint(2, 9), rng.randint(2, 9)
    cost = rng.randint(1, min(largest, pay * hours * days))
    who = rng.choice(PEOPLE)
    question = (
        f"{who} earns {pay} dollars an hour, works {hours} hours a day for {days} days and pays {cost} dollars for the "
        "bus. How many dollars remain?"
    )
    return Problem((pay, hours, days, cost), question, (f"{pay} * {hours} * {days} - {cost}",))


def recipe(rng: Random, largest: int) -> Problem:
    """A proportion: first for one, then for many."""
    people, each = rng.randint(2, 9), rng.randint(2, max(2, largest // 9))
    guests = rng.randint(2, largest)
    question = (
        f"A soup for {people} people takes {people * each} grams of rice. How many grams does it take for {guests}?"
    )
    return Problem((people, each, guests), question, (f"{people * each} / {people} * {guests}",))


def phone(rng: Random, largest: int) -> Problem:
    """A monthly fee and one at the start."""
    fee, months, start = rng.randint(2, largest), rng.randint(2, 12), rng.randint(1, largest)
    question = (
        f"A phone costs {start} dollars at once and {fee} dollars a month. "
        f"How many dollars is that after {months} months?"
    )
    return Problem((fee, months, start), question, (f"{fee} * {months} + {start}",))


def reading(rng: Random, largest: int) -> Problem:
    """What is left of a book after some days."""
    daily, days = rng.randint(2, max(2, largest // 4)), rng.randint(2, 12)
    pages = daily * days + rng.randint(1, largest)
    who = rng.choice(PEOPLE)
    question = f"A book has {pages} pages. {who} reads {daily} pages a day for {days} days. How many pages are left?"
    return Problem((pages, daily, days), question, (f"{pages} - {daily} * {days}",))


def theatre(rng: Random, largest: int) -> Problem:
    """Rows of seats, some of them empty."""
    rows, seats = rng.randint(2, largest), rng.randint(2, largest)
    empty = rng.randint(1, min(largest, rows * seats))
    question = f"A theatre has {rows} rows of {seats} seats. {empty} seats stay empty. How many seats are taken?"
    return Problem((rows, seats, empty), question, (f"{rows} * {seats} - {empty}",))


TRAINED: dict[str, Draw] = {
    draw.__name__: draw
    for draw in (
        change,
        distance,
        sharing,
        discount,
        units,
        stock,
        average,
        perimeter,
        savings,
        crates,
        compare,
        pricing,
    )
}
UNSEEN: dict[str, Draw] = {draw.__name__: draw for draw in (ages, area, wages, recipe, phone, reading, theatre)}
KINDS = TRAINED | UNSEEN
