"""A city library: titles, loans, reservations, fines, study rooms and events."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Tells, Wants, read_words
from stackloom.environments.domains.people import address, person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    clock,
    day,
    number,
    one_of,
    parent,
    says_day,
    says_number,
    says_one,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

GENRES = ("novel", "crime", "history", "science", "children", "poetry")
TIERS = ("standard", "student", "family")
REASONS = ("late_return", "damaged", "lost_card")
LANGUAGES = ("english", "french", "german", "spanish")

BLUEPRINT = Blueprint(
    person="reader",
    entities=(
        Entity(
            "reader",
            "readers",
            "RD",
            (
                *person_columns(),
                Column("address", "text", address, edit="change my address[ to {value}]"),
                one_of("tier", TIERS, noun="kind of card"),
                day("card_until", 20, 500, noun="last day of my card"),
                number("balance_points", 0, 400, step=10, noun="reading points"),
            ),
            count=5,
        ),
        Entity(
            "title",
            "titles",
            "TI",
            (
                word("name", "title", noun="title", known=True, shown=True, unique=True),
                word("author", "author", known=True, shown=True),
                one_of("genre", GENRES),
                one_of("language", LANGUAGES),
                number("copies_free", 1, 9, noun="number of free copies"),
                Column("shelf", "text", lambda d: f"{d.rng.choice('ABCDEFGH')}{d.rng.randint(1, 60)}"),
            ),
            handles=(Handle(("name",), '"{name}"'),),
            count=10,
            lookups=(("author",),),
        ),
        Entity(
            "loan",
            "loans",
            "LN",
            (
                parent("reader", own=True),
                parent("title"),
                Column("book", "text", lambda d: d.parent("title_id")["name"], known=True, shown=True),
                day("due_on", 1, 28, noun="due date"),
                number("renewals", 0, 2, noun="number of renewals", most=9),
                status(("out", "returned", "lost"), drawn=("out", "out", "returned")),
            ),
            handles=(Handle(("book",), 'my loan of "{book}"'),),
            count=8,
        ),
        Entity(
            "reservation",
            "reservations",
            "RV",
            (
                parent("reader", own=True),
                parent("title"),
                Column("book", "text", lambda d: d.parent("title_id")["name"], known=True, shown=True),
                number("place", 1, 12, noun="place in the queue", most=99),
                one_of(
                    "branch",
                    ("central", "riverside", "northgate"),
                    noun="pick-up branch",
                    asked=False,
                    edit="let me collect {it}[ at the {value} branch]",
                ),
                status(("waiting", "ready", "cancelled"), drawn=("waiting", "ready")),
            ),
            handles=(Handle(("book",), 'my reservation of "{book}"'),),
            count=6,
        ),
        Entity(
            "fine",
            "fines",
            "FN",
            (
                parent("reader", own=True),
                one_of("reason", REASONS, known=True, shown=True),
                amount("amount", 1, 40, step=50),
                day("issued_on", -90, -2, noun="date", known=True, shown=True),
                status(("unpaid", "paid", "waived"), drawn=("unpaid", "unpaid", "paid")),
            ),
            handles=(Handle(("issued_on",), "the fine of {issued_on}"),),
            count=5,
        ),
        Entity(
            "room",
            "rooms",
            "RM",
            (
                Column(
                    "name",
                    "text",
                    lambda d: f"{d.one('branch')} {d.rng.randint(1, 40)}",
                    noun="room",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                number("seats", 2, 14, noun="number of seats"),
                one_of("screen", ("yes", "no"), asked=False),
            ),
            handles=(Handle(("name",), "study room {name}"),),
            count=5,
        ),
        Entity(
            "room_booking",
            "room_bookings",
            "RB",
            (
                parent("reader", own=True),
                parent("room"),
                day("on", 1, 30, noun="day", known=True, shown=True, edit="move {it}[ to {value}]"),
                number("hours", 1, 4, noun="number of hours", most=8),
                status(("booked", "cancelled"), drawn=("booked", "booked", "cancelled")),
            ),
            handles=(Handle(("on",), "my room booking for {on}"),),
            count=5,
            noun="room booking",
        ),
        Entity(
            "event",
            "events",
            "EV",
            (
                word("name", "event", noun="event", known=True, shown=True, unique=True),
                clock("starts", 2, 40, hours=(10, 20), noun="start"),
                number("places_left", 2, 30, noun="number of free places"),
                amount("price", 0, 12, step=50),
            ),
            handles=(Handle(("name",), 'the event "{name}"'),),
            count=5,
        ),
        Entity(
            "sign_up",
            "sign_ups",
            "SU",
            (
                parent("reader", own=True),
                parent("event"),
                Column("event_name", "text", lambda d: d.parent("event_id")["name"], known=True, shown=True),
                number("guests", 0, 3, noun="number of guests", most=5, edit="change the guests of {it}[ to {value}]"),
            ),
            handles=(Handle(("event_name",), 'my sign-up for "{event_name}"'),),
            count=4,
            noun="sign-up",
        ),
    ),
)


def _borrow(db: View, given: Given) -> Row:
    title = given["title"]
    made = db.insert(
        "loans",
        reader_id=given["reader"]["id"],
        title_id=title["id"],
        book=title["name"],
        due_on="2026-06-08",
        renewals=0,
        status="out",
    )
    db.update("titles", title["id"], copies_free=title["copies_free"] - 1)
    return {"loan_id": made["id"], "shelf": title["shelf"]}


def _return(db: View, given: Given) -> Row:
    loan = given["loan"]
    title = db.get("titles", loan["title_id"])
    assert title is not None
    db.update("loans", loan["id"], status="returned")
    db.update("titles", title["id"], copies_free=title["copies_free"] + 1)
    return {"renewals": loan["renewals"]}


def _renew(db: View, given: Given) -> Row:
    loan = given["loan"]
    db.update("loans", loan["id"], due_on=given["until"], renewals=loan["renewals"] + 1)
    return {"renewals": loan["renewals"] + 1}


def _lose(db: View, given: Given) -> Row:
    loan = given["loan"]
    db.update("loans", loan["id"], status="lost")
    made = db.insert(
        "fines", reader_id=loan["reader_id"], reason="damaged", amount=2500, issued_on=db.today, status="unpaid"
    )
    return {"fine_id": made["id"], "amount": 2500}


def _reserve(db: View, given: Given) -> Row:
    title = given["title"]
    place = 1 + sum(row["title_id"] == title["id"] and row["status"] == "waiting" for row in db.select("reservations"))
    made = db.insert(
        "reservations",
        reader_id=given["reader"]["id"],
        title_id=title["id"],
        book=title["name"],
        place=place,
        branch=given["branch"],
        status="waiting",
    )
    return {"reservation_id": made["id"], "place": place}


def _cancel_reservation(db: View, given: Given) -> Row:
    db.update("reservations", given["reservation"]["id"], status="cancelled")
    return {"place": given["reservation"]["place"]}


def _pay(db: View, given: Given) -> Row:
    db.update("fines", given["fine"]["id"], status="paid")
    return {"amount": given["fine"]["amount"]}


def _waive(db: View, given: Given) -> Row:
    fine, reader = given["fine"], db.get("readers", given["fine"]["reader_id"])
    assert reader is not None
    left = reader["balance_points"] - 100
    db.update("fines", fine["id"], status="waived")
    db.update("readers", reader["id"], balance_points=left)
    return {"balance_points": left}


def _points(db: View, given: Given) -> str:
    reader = db.get("readers", given["fine"]["reader_id"])
    return "" if reader and reader["balance_points"] >= 100 else "waiving a fine takes a hundred reading points"


def _book_room(db: View, given: Given) -> Row:
    made = db.insert(
        "room_bookings",
        reader_id=given["reader"]["id"],
        room_id=given["room"]["id"],
        on=given["day"],
        hours=given["hours"],
        status="booked",
    )
    return {"room_booking_id": made["id"], "seats": given["room"]["seats"]}


def _cancel_room(db: View, given: Given) -> Row:
    db.update("room_bookings", given["room_booking"]["id"], status="cancelled")
    return {"hours": given["room_booking"]["hours"]}


def _sign_up(db: View, given: Given) -> Row:
    event = given["event"]
    taken = 1 + given["guests"]
    made = db.insert(
        "sign_ups",
        reader_id=given["reader"]["id"],
        event_id=event["id"],
        event_name=event["name"],
        guests=given["guests"],
    )
    db.update("events", event["id"], places_left=event["places_left"] - taken)
    return {"sign_up_id": made["id"], "starts": event["starts"], "price": event["price"] * taken}


def _change_card(db: View, given: Given) -> Row:
    db.update("readers", given["reader"]["id"], tier=given["tier"], card_until="2027-05-18")
    return {"card_until": "2027-05-18"}


OUT = {"status": ("out",)}
ACTIONS = (
    Action(
        "borrow_title",
        "Lend a free copy of a title for three weeks",
        {
            "reader": Wants("reader"),
            "title": Wants("title", where=lambda row, g: row["copies_free"] > 0, why="no copy is free"),
        },
        _borrow,
        ("lend me {title}", "I would like to borrow {title}"),
        "the book is lent to you",
        tells=(tells_id("loan", "number of the loan"), tells("title", "shelf", "text", "shelf where it stands")),
        writes=("loans", "titles"),
    ),
    Action(
        "return_loan",
        "Take back a lent book",
        {"loan": Wants("loan", OUT)},
        _return,
        ("take back {loan}", "note that I brought back {loan}"),
        "the book is back",
        tells=(tells("loan", "renewals", "integer", "number of times it was renewed"),),
        reads=("titles",),
        writes=("loans", "titles"),
        after={"loan": {"status": "returned"}},
    ),
    Action(
        "renew_loan",
        "Renew a loan until a date; at most three times",
        {
            "loan": Wants(
                "loan", OUT, where=lambda row, g: row["renewals"] < 3, why="it was renewed three times already"
            ),
            "until": says_day("loan.due_on", "new due date", 29, 60),
        },
        _renew,
        ("renew {loan}[ until {until}]", "let me keep {loan} longer[, until {until}]"),
        "the loan is renewed",
        tells=(tells("loan", "renewals", "integer", "number of renewals now"),),
        writes=("loans",),
    ),
    Action(
        "report_lost",
        "Mark a lent book as lost and charge for it",
        {"loan": Wants("loan", OUT)},
        _lose,
        ("I have lost the book of {loan}; please note it", "report {loan} as lost"),
        "the loss is noted",
        tells=(tells_id("fine", "number of the fine"), tells("fine", "amount", "money", "amount I am charged")),
        writes=("loans", "fines"),
        after={"loan": {"status": "lost"}},
    ),
    Action(
        "reserve_title",
        "Put a reader into the queue for a title",
        {
            "reader": Wants("reader"),
            "title": Wants("title"),
            "branch": says_one("reservation.branch", "pick-up branch", ("central", "riverside", "northgate")),
        },
        _reserve,
        ("reserve {title} for me[ at the {branch} branch]",),
        "you are in the queue",
        tells=(
            tells_id("reservation", "number of the reservation"),
            tells("reservation", "place", "integer", "place in the queue"),
        ),
        writes=("reservations",),
    ),
    Action(
        "cancel_reservation",
        "Cancel a reservation",
        {"reservation": Wants("reservation", {"status": ("waiting", "ready")})},
        _cancel_reservation,
        ("cancel {reservation}", "drop {reservation}"),
        "the reservation is cancelled",
        tells=(tells("reservation", "place", "integer", "place in the queue that I gave up"),),
        writes=("reservations",),
        after={"reservation": {"status": "cancelled"}},
    ),
    Action(
        "pay_fine",
        "Take the payment of a fine",
        {"fine": Wants("fine", {"status": ("unpaid",)})},
        _pay,
        ("charge my card for {fine}", "let me pay {fine}"),
        "the fine is paid",
        tells=(tells("fine", "amount", "money", "amount of it"),),
        writes=("fines",),
        after={"fine": {"status": "paid"}},
    ),
    Action(
        "waive_fine",
        "Waive a fine in exchange for a hundred reading points",
        {"fine": Wants("fine", {"status": ("unpaid",)})},
        _waive,
        ("use my reading points for {fine}",),
        "the fine is waived",
        tells=(tells("reader", "balance_points", "integer", "number of reading points left"),),
        reads=("readers",),
        writes=("fines", "readers"),
        pre=_points,
        after={"fine": {"status": "waived"}},
    ),
    Action(
        "book_room",
        "Book a study room",
        {
            "reader": Wants("reader"),
            "room": Wants("room"),
            "day": says_day("room_booking.on", "day", 2, 30),
            "hours": says_number("room_booking.hours", "number of hours", 1, 4),
        },
        _book_room,
        ("book {room} for me[ on {day}, for {hours} hours]",),
        "the room is yours",
        tells=(
            tells_id("room_booking", "number of the booking"),
            tells("room", "seats", "integer", "number of seats there"),
        ),
        writes=("room_bookings",),
    ),
    Action(
        "cancel_room_booking",
        "Cancel a booking of a study room",
        {"room_booking": Wants("room_booking", {"status": ("booked",)})},
        _cancel_room,
        ("cancel {room_booking}", "call off {room_booking}"),
        "the room is free again",
        tells=(tells("room_booking", "hours", "integer", "number of hours it was for"),),
        writes=("room_bookings",),
        after={"room_booking": {"status": "cancelled"}},
    ),
    Action(
        "sign_up_for_event",
        "Sign a reader up for an event",
        {
            "reader": Wants("reader"),
            "event": Wants("event", where=lambda row, g: row["places_left"] >= 4, why="it is nearly full"),
            "guests": says_number("sign_up.guests", "number of guests", 0, 3),
        },
        _sign_up,
        ("sign me up for {event}[ with {guests} guests]",),
        "you are signed up",
        tells=(
            tells_id("sign_up", "number of the sign-up"),
            tells("event", "starts", "clock", "start of the event"),
            Tells("price", "money", "sign_up.price", "price for all of us"),
        ),
        writes=("sign_ups", "events"),
    ),
    Action(
        "change_card",
        "Change a reader's kind of card for a year",
        {"reader": Wants("reader"), "tier": says_one("reader.tier", "kind of card", TIERS)},
        _change_card,
        ("change my card[ to the {tier} one]",),
        "your card is changed",
        tells=(tells("reader", "card_until", "date", "last day of the new card"),),
        writes=("readers",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="library",
        title="A city library",
        role="You are the librarian at the desk of a city library.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hello, I am {name}.",
            "Hi, {name} here.",
            "Good afternoon, my name is {name}.",
            "Hey, it is {name}.",
        ),
    )
