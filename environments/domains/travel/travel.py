"""A travel agency: hotels, stays, tours, tickets, transfers, insurance and reviews."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Tells, Wants, read_words
from stackloom.environments.domains.people import person_columns
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
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

ROOMS = ("single", "double", "twin", "suite")
BOARDS = ("none", "breakfast", "half_board")
CLASSES = ("second", "first")

BLUEPRINT = Blueprint(
    person="traveller",
    entities=(
        Entity(
            "traveller",
            "travellers",
            "TV",
            (
                *person_columns(),
                Column(
                    "passport",
                    "text",
                    lambda d: f"{d.rng.choice('CFGHK')}{d.digits(8)}",
                    noun="passport number",
                    edit="change my passport number[ to {value}]",
                ),
                one_of("diet", ("anything", "vegetarian", "vegan", "halal"), edit="change my diet[ to {value}]"),
                number("stamps", 0, 30, noun="number of loyalty stamps"),
            ),
            count=5,
        ),
        Entity(
            "hotel",
            "hotels",
            "HT",
            (
                word("name", "hotel", noun="hotel", known=True, shown=True, unique=True),
                word("city", "station", noun="city"),
                number("stars", 1, 5, noun="number of stars", most=5),
                amount("nightly_price", 45, 320, step=500, noun="price per night"),
                number("rooms_left", 1, 20, noun="number of free rooms"),
            ),
            handles=(Handle(("name",), "the hotel {name}"),),
            count=8,
        ),
        Entity(
            "stay",
            "stays",
            "",
            (
                parent("traveller", own=True),
                parent("hotel"),
                Column("place", "text", lambda d: d.parent("hotel_id")["name"], noun="hotel", known=True, shown=True),
                day("arrives", 3, 90, noun="day of arrival"),
                number("nights", 1, 10, noun="number of nights", most=30),
                one_of("room", ROOMS, noun="kind of room"),
                one_of("board", BOARDS, edit="change the board of {it}[ to {value}]"),
                amount("price", 90, 1900, step=500),
                status(("booked", "paid", "cancelled"), drawn=("booked", "booked", "paid")),
            ),
            handles=(Handle(("id",), "stay {id}"), Handle(("place",), "my stay at {place}")),
            count=8,
            known_id=True,
        ),
        Entity(
            "tour",
            "tours",
            "TO",
            (
                word("name", "tour", noun="tour", known=True, shown=True, unique=True),
                clock("starts", 4, 60, hours=(8, 20), noun="start"),
                amount("price", 15, 140, step=100, noun="price per person"),
                number("places_left", 5, 24, noun="number of free places"),
            ),
            handles=(Handle(("name",), 'the tour "{name}"'),),
            count=6,
        ),
        Entity(
            "tour_ticket",
            "tour_tickets",
            "TT",
            (
                parent("traveller", own=True),
                parent("tour"),
                Column("tour_name", "text", lambda d: d.parent("tour_id")["name"], known=True, shown=True),
                number("persons", 1, 5, noun="number of persons", most=9),
                status(("valid", "used", "refunded"), drawn=("valid", "valid", "used")),
            ),
            handles=(Handle(("tour_name",), 'my tickets for "{tour_name}"'),),
            count=6,
            noun="tour ticket",
        ),
        Entity(
            "train",
            "trains",
            "TR",
            (
                parent("traveller", own=True),
                word("leaves_from", "station", noun="station of departure", known=True, shown=True),
                clock("departs", 2, 60, hours=(6, 21), step=5, noun="departure time"),
                Column("seat", "text", lambda d: f"{d.rng.randint(1, 14)}-{d.rng.randint(11, 98)}"),
                one_of("class_", CLASSES, noun="class", drawn=("second", "second", "first")),
                status(("reserved", "cancelled"), drawn=("reserved", "reserved", "cancelled")),
            ),
            handles=(Handle(("leaves_from",), "my train from {leaves_from}"),),
            count=6,
            noun="train reservation",
        ),
        Entity(
            "transfer",
            "transfers",
            "TF",
            (
                parent("stay", own=True),
                one_of("kind", ("taxi", "shuttle", "limousine"), known=True, shown=True),
                amount("price", 12, 120, step=100),
                number("bags", 0, 8, noun="number of bags", most=12, edit="change the bags of {it}[ to {value}]"),
                status(("ordered", "cancelled"), drawn=("ordered", "ordered", "cancelled")),
            ),
            handles=(Handle(("kind",), "the {kind} for {stay}"),),
            count=5,
        ),
        Entity(
            "cover",
            "covers",
            "CV",
            (
                parent("stay", own=True),
                one_of(
                    "kind", ("cancellation", "medical", "luggage"), noun="kind of insurance", known=True, shown=True
                ),
                amount("premium", 5, 80, step=50),
                day("ends_on", 60, 140, noun="last day"),
            ),
            handles=(Handle(("kind",), "the {kind} insurance of {stay}"),),
            count=4,
            noun="travel insurance",
        ),
    ),
)


def _book(db: View, given: Given) -> Row:
    hotel, nights = given["hotel"], given["nights"]
    price = hotel["nightly_price"] * nights
    made = db.insert(
        "stays",
        traveller_id=given["traveller"]["id"],
        hotel_id=hotel["id"],
        place=hotel["name"],
        arrives=given["arrives"],
        nights=nights,
        room=given["room"],
        board="none",
        price=price,
        status="booked",
    )
    db.update("hotels", hotel["id"], rooms_left=hotel["rooms_left"] - 1)
    return {"stay_id": made["id"], "price": price}


def _cancel(db: View, given: Given) -> Row:
    stay = given["stay"]
    hotel = db.get("hotels", stay["hotel_id"])
    assert hotel is not None
    db.update("stays", stay["id"], status="cancelled")
    db.update("hotels", hotel["id"], rooms_left=hotel["rooms_left"] + 1)
    return {"refund": stay["price"] * 9 // 10 if stay["status"] == "paid" else 0}


def _pay(db: View, given: Given) -> Row:
    stay = given["stay"]
    traveller = db.get("travellers", stay["traveller_id"])
    assert traveller is not None
    db.update("stays", stay["id"], status="paid")
    db.update("travellers", traveller["id"], stamps=traveller["stamps"] + stay["nights"])
    return {"price": stay["price"], "stamps": traveller["stamps"] + stay["nights"]}


def _longer(db: View, given: Given) -> Row:
    stay = given["stay"]
    hotel = db.get("hotels", stay["hotel_id"])
    assert hotel is not None
    price = stay["price"] + given["more"] * hotel["nightly_price"]
    db.update("stays", stay["id"], nights=stay["nights"] + given["more"], price=price)
    return {"price": price}


def _tickets(db: View, given: Given) -> Row:
    tour, persons = given["tour"], given["persons"]
    made = db.insert(
        "tour_tickets",
        traveller_id=given["traveller"]["id"],
        tour_id=tour["id"],
        tour_name=tour["name"],
        persons=persons,
        status="valid",
    )
    db.update("tours", tour["id"], places_left=tour["places_left"] - persons)
    return {"tour_ticket_id": made["id"], "starts": tour["starts"], "total": tour["price"] * persons}


def _refund(db: View, given: Given) -> Row:
    ticket = given["tour_ticket"]
    tour = db.get("tours", ticket["tour_id"])
    assert tour is not None
    db.update("tour_tickets", ticket["id"], status="refunded")
    db.update("tours", tour["id"], places_left=tour["places_left"] + ticket["persons"])
    return {"total": tour["price"] * ticket["persons"]}


def _train(db: View, given: Given) -> Row:
    made = db.insert(
        "trains",
        traveller_id=given["traveller"]["id"],
        leaves_from=given["station"],
        departs=f"{given['day']} 09:05",
        seat="5-41",
        class_=given["class_"],
        status="reserved",
    )
    return {"train_id": made["id"], "departs": f"{given['day']} 09:05"}


def _cancel_train(db: View, given: Given) -> Row:
    db.update("trains", given["train"]["id"], status="cancelled")
    return {"seat": given["train"]["seat"]}


def _first(db: View, given: Given) -> Row:
    db.update("trains", given["train"]["id"], class_="first", seat="1-11")
    return {"departs": given["train"]["departs"]}


def _transfer(db: View, given: Given) -> Row:
    made = db.insert(
        "transfers", stay_id=given["stay"]["id"], kind=given["kind"], price=3500, bags=given["bags"], status="ordered"
    )
    return {"transfer_id": made["id"], "arrives": given["stay"]["arrives"]}


def _insure(db: View, given: Given) -> Row:
    premium = max(500, given["stay"]["price"] // 50)
    made = db.insert("covers", stay_id=given["stay"]["id"], kind=given["kind"], premium=premium, ends_on="2026-12-31")
    return {"cover_id": made["id"], "premium": premium}


LIVE = {"status": ("booked", "paid")}
ACTIONS = (
    Action(
        "book_stay",
        "Book a room in a hotel",
        {
            "traveller": Wants("traveller"),
            "hotel": Wants("hotel", where=lambda row, g: row["rooms_left"] > 0, why="it is full"),
            "arrives": says_day("stay.arrives", "day of arrival", 5, 90),
            "nights": says_number("stay.nights", "number of nights", 1, 9),
            "room": says_one("stay.room", "kind of room", ROOMS),
        },
        _book,
        ("book me a room at {hotel}[: a {room} for {nights} nights from {arrives}]",),
        "the room is booked",
        tells=(tells_id("stay", "number of the stay"), tells("stay", "price", "money", "price of the stay")),
        writes=("stays", "hotels"),
    ),
    Action(
        "cancel_stay",
        "Cancel a stay; nine tenths of what was paid come back",
        {"stay": Wants("stay", LIVE)},
        _cancel,
        ("cancel {stay}", "call off {stay}"),
        "the stay is cancelled",
        tells=(Tells("refund", "money", "stay.refund", "refund"),),
        reads=("hotels",),
        writes=("stays", "hotels"),
        after={"stay": {"status": "cancelled"}},
    ),
    Action(
        "pay_stay",
        "Take the payment of a booked stay; each night is a stamp",
        {"stay": Wants("stay", {"status": ("booked",)})},
        _pay,
        ("charge my card for {stay}", "let me pay {stay}"),
        "the stay is paid",
        tells=(
            tells("stay", "price", "money", "price that I paid"),
            tells("traveller", "stamps", "integer", "number of loyalty stamps now"),
        ),
        reads=("travellers",),
        writes=("stays", "travellers"),
        after={"stay": {"status": "paid"}},
    ),
    Action(
        "extend_stay",
        "Add nights to a booked stay",
        {
            "stay": Wants("stay", {"status": ("booked",)}),
            "more": says_number("stay.more", "number of further nights", 1, 5),
        },
        _longer,
        ("make {stay} longer[ by {more} nights]",),
        "the stay is longer now",
        tells=(tells("stay", "price", "money", "new price"),),
        reads=("hotels",),
        writes=("stays",),
    ),
    Action(
        "buy_tour_tickets",
        "Buy tickets for a tour",
        {
            "traveller": Wants("traveller"),
            "tour": Wants("tour", where=lambda row, g: row["places_left"] >= 5, why="it is nearly full"),
            "persons": says_number("tour_ticket.persons", "number of persons", 1, 5),
        },
        _tickets,
        ("buy me tickets for {tour}[ for {persons} persons]",),
        "the tickets are bought",
        tells=(
            tells_id("tour_ticket", "number of the tickets"),
            tells("tour", "starts", "clock", "start of that tour"),
            Tells("total", "money", "tour_ticket.total", "total price of the tickets"),
        ),
        writes=("tour_tickets", "tours"),
    ),
    Action(
        "refund_tour_tickets",
        "Take back valid tickets of a tour",
        {"tour_ticket": Wants("tour_ticket", {"status": ("valid",)})},
        _refund,
        ("take back {tour_ticket}", "refund {tour_ticket}"),
        "the tickets are refunded",
        tells=(Tells("total", "money", "tour_ticket.total", "amount that I get back"),),
        reads=("tours",),
        writes=("tour_tickets", "tours"),
        after={"tour_ticket": {"status": "refunded"}},
    ),
    Action(
        "reserve_train",
        "Reserve a seat on a train",
        {
            "traveller": Wants("traveller"),
            "station": says_word("train.leaves_from", "station of departure", "station"),
            "day": says_day("train.day", "day", 61, 90),
            "class_": says_one("train.class_", "class", CLASSES),
        },
        _train,
        ("reserve me a train from {station}[ on {day}, {class_} class]",),
        "the seat is reserved",
        tells=(tells_id("train", "number of the reservation"), tells("train", "departs", "clock", "departure time")),
        writes=("trains",),
    ),
    Action(
        "cancel_train",
        "Cancel a reserved seat",
        {"train": Wants("train", {"status": ("reserved",)})},
        _cancel_train,
        ("cancel {train}", "drop {train}"),
        "the seat is given up",
        tells=(tells("train", "seat", "text", "seat that I gave up"),),
        writes=("trains",),
        after={"train": {"status": "cancelled"}},
    ),
    Action(
        "upgrade_train",
        "Move a reservation to first class",
        {"train": Wants("train", {"status": ("reserved",), "class_": ("second",)})},
        _first,
        ("put me into first class on {train}",),
        "the seat is changed",
        tells=(tells("train", "departs", "clock", "departure time of it"),),
        writes=("trains",),
        after={"train": {"class_": "first"}},
    ),
    Action(
        "order_transfer",
        "Order a transfer for a stay",
        {
            "stay": Wants("stay", LIVE),
            "kind": says_one("transfer.kind", "kind of transfer", ("taxi", "shuttle", "limousine")),
            "bags": says_number("transfer.bags", "number of bags", 0, 8),
        },
        _transfer,
        ("order a transfer for {stay}[: a {kind} with room for {bags} bags]",),
        "the transfer is ordered",
        tells=(tells_id("transfer", "number of the transfer"), tells("stay", "arrives", "date", "day of that arrival")),
        writes=("transfers",),
    ),
    Action(
        "insure_stay",
        "Take out an insurance for a stay",
        {
            "stay": Wants("stay", LIVE),
            "kind": says_one("cover.kind", "kind of insurance", ("cancellation", "medical", "luggage")),
        },
        _insure,
        ("insure {stay}[, kind: {kind}]",),
        "the insurance is taken out",
        tells=(tells_id("cover", "number of the insurance"), tells("cover", "premium", "money", "premium of it")),
        writes=("covers",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="travel",
        title="A travel agency",
        role="You serve the customers of a travel agency.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hi, {name} here.",
            "Hello, this is {name}.",
            "Good morning, my name is {name}.",
            "Hey, it is {name}.",
        ),
    )
