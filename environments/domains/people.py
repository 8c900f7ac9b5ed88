"""Columns of people, as every domain has them."""

from __future__ import annotations

import re
import unicodedata

from stackloom.environments.entities import Column
from stackloom.environments.rows import Draw


def full_name(draw: Draw) -> str:
    """Return a first and a last name."""
    return f"{draw.one('first')} {draw.one('last')}"


def email(draw: Draw) -> str:
    """Return an address that fits the row's name."""
    first, _, last = _ascii(draw.row["name"]).partition(" ")
    local = draw.rng.choice(
        (f"{first}.{last}", f"{first[0]}{last}", f"{last}.{first}", f"{first}{draw.rng.randint(2, 99)}")
    )
    return f"{local}@{draw.one('mail')}"


def phone(draw: Draw) -> str:
    """Return a number as people write it."""
    return f"+44 7{draw.digits(3)} {draw.digits(6)}"


def address(draw: Draw) -> str:
    """Return a street with its number and a city."""
    return f"{draw.rng.randint(1, 180)} {draw.one('street')}, {draw.one('city')}"


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z ]", "", plain)


def person_columns(*, edit_phone: bool = True, edit_email: bool = True) -> tuple[Column, ...]:
    """Return name, email address and phone number."""
    return (
        Column("name", "text", full_name, shown=True, unique=True, asked=False),
        Column(
            "email",
            "email",
            email,
            noun="email address",
            known=True,
            unique=True,
            edit="change my email address[ to {value}]" if edit_email else "",
        ),
        Column(
            "phone",
            "phone",
            phone,
            noun="phone number",
            known=True,
            unique=True,
            edit="change my phone number[ to {value}]" if edit_phone else "",
        ),
    )
