"""An airline: flights, bookings, bags, vouchers, upgrades, lounge passes and complaints."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import person_columns
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.rows import Draw, Rows
from stackloom.environments.world import View

CABINS = ("economy", "premium", "business")
MEALS = ("standard", "vegetarian", "vegan", "halal", "kosher", "gluten_free")
COMPLAINTS = ("late_departure", "lost_bag", "rude_staff", "broken_seat", "cold_meal")
CANCEL_REASONS = ("illness", "work", "change_of_plans", "family_matter")
UPGRADE = {"premium": 9000, "business": 24000}  # cents
BAG = 4500  # cents for a further bag
LOUNGE = 3900  # cents


def _route(draw: Draw) -> str:
    draw.row["_route"] = draw.one("route")
    return str(draw.row["_route"][0])


def _destination(draw: Draw) -> str:
    return str(draw.row["_route"][1])


def _arrives(draw: Draw) -> str:
    hours, minutes = map(int, draw.row["departs"][11:].split(":"))
    end = min(hours * 60 + minutes + draw.row.pop("_route")[2], 23 * 60 + 55)
    return f"{draw.row['departs'][:10]} {end // 60:02d}:{end % 60:02d}"


def _seat(draw: Draw) -> str:
    return f"{draw.rng.randint(2, 32)}{draw.rng.choice('ABCDEF')}"


def _booked(rows: Rows, booking: Row) -> None:
    """A booking takes a seat."""
    flight = rows.tables["flights"][booking["flight_id"]]
    rows.set("flights", flight["id"], seats_left=max(0, flight["seats_left"] - 1))


BLUEPRINT = Blueprint(
    person="passenger",
    entities=(
        Entity(
            "passenger",
            "passengers",
            "PX",
            (
                *person_columns(),
                Column(
                    "tier",
                    "choice",
                    lambda d: d.rng.choice(("blue", "silver", "gold")),
                    noun="frequent flyer tier",
                    choices=("blue", "silver", "gold"),
                ),
                Column("miles", "integer", lambda d: d.rng.randrange(500, 90_000, 250), noun="miles balance"),
                Column(
                    "meal",
                    "choice",
                    lambda d: d.rng.choice(MEALS),
                    noun="meal preference",
                    choices=MEALS,
                    edit="change my meal preference[ to {value}]",
                ),
            ),
            count=4,
        ),
        Entity(
            "flight",
            "flights",
            "FL",
            (
                Column(
                    "number",
                    "text",
                    lambda d: f"{d.one('airline')}{d.digits(3)}",
                    noun="flight number",
                    shown=True,
                    known=True,
                    unique=True,
                ),
                Column("origin", "text", _route, shown=True, known=True),
                Column("destination", "text", _destination, shown=True, known=True),
                Column("departs", "clock", lambda d: d.clock(2, 30, hours=(6, 20), step=5), noun="departure time"),
                Column("arrives", "clock", _arrives, noun="arrival time"),
                Column("gate", "text", lambda d: f"{d.rng.choice('ABCD')}{d.rng.randint(1, 40)}"),
                Column("seats_left", "integer", lambda d: d.rng.randint(4, 60), noun="number of free seats"),
                Column("fare", "money", lambda d: d.money(60, 420, step=100)),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("on_time", "on_time", "delayed")),
                    choices=("on_time", "delayed", "boarding"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(
                Handle(("number",), "flight {number}"),
                Handle(("origin", "destination"), "the flight from {origin} to {destination}"),
            ),
            count=9,
            lookups=(("origin", "destination"),),
        ),
        Entity(
            "booking",
            "bookings",
            "",
            (
                Column("passenger_id", "id", parent="passenger", own=True),
                Column("flight_id", "id", parent="flight"),
                Column(
                    "route",
                    "text",
                    lambda d: f"{d.parent('flight_id')['origin']} to {d.parent('flight_id')['destination']}",
                    known=True,
                    shown=True,
                ),
                Column(
                    "cabin",
                    "choice",
                    lambda d: d.rng.choice(("economy", "economy", "premium", "business")),
                    choices=CABINS,
                ),
                Column("seat", "text", _seat, edit="move me[ to seat {value}] on {it}"),
                Column("bags", "integer", lambda d: d.rng.randint(0, 2), noun="number of bags", high=9),
                Column("price", "money", lambda d: d.parent("flight_id")["fare"]),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("confirmed", "confirmed", "checked_in", "cancelled")),
                    choices=("confirmed", "checked_in", "cancelled"),
                    shown=True,
                ),
                Column("cancel_reason", "choice", lambda d: "none", choices=("none", *CANCEL_REASONS), asked=False),
            ),
            handles=(Handle(("id",), "booking {id}"), Handle(("route",), "my booking from {route}")),
            count=8,
            known_id=True,
            added=_booked,
        ),
        Entity(
            "bag",
            "bag_tags",
            "BG",
            (
                Column("booking_id", "id", parent="booking", own=True),
                Column(
                    "colour",
                    "choice",
                    lambda d: d.rng.choice(("black", "red", "blue", "green", "grey")),
                    known=True,
                    shown=True,
                    choices=("black", "red", "blue", "green", "grey"),
                ),
                Column("weight", "integer", lambda d: d.rng.randint(8, 31), noun="weight in kilograms", high=50),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("checked_in", "loaded", "missing")),
                    choices=("checked_in", "loaded", "missing", "traced"),
                ),
            ),
            handles=(Handle(("colour",), "the {colour} bag of {booking}"),),
            count=5,
        ),
        Entity(
            "voucher",
            "vouchers",
            "VC",
            (
                Column("passenger_id", "id", parent="passenger", own=True),
                Column("amount", "money", lambda d: d.money(25, 300, step=500)),
                Column("valid_until", "date", lambda d: d.day(20, 200), noun="last day of validity"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("open", "open", "used")),
                    choices=("open", "used"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(Handle(("id",), "voucher {id}"),),
            count=4,
            known_id=True,
        ),
        Entity(
            "lounge_pass",
            "lounge_passes",
            "LP",
            (
                Column("passenger_id", "id", parent="passenger", own=True),
                Column("airport", "text", lambda d: d.one("route")[0], known=True, shown=True),
                Column("valid_on", "date", lambda d: d.day(3, 40), noun="day", edit="move {it}[ to {value}]"),
                Column(
                    "guests",
                    "integer",
                    lambda d: d.rng.randint(0, 3),
                    noun="number of guests",
                    high=4,
                    edit="change the guests of {it}[ to {value}]",
                ),
            ),
            handles=(Handle(("airport",), "my lounge pass for {airport}"),),
            count=4,
            noun="lounge pass",
        ),
        Entity(
            "complaint",
            "complaints",
            "CM",
            (
                Column("passenger_id", "id", parent="passenger", own=True),
                Column("flight_id", "id", parent="flight"),
                Column("about", "choice", lambda d: d.rng.choice(COMPLAINTS), choices=COMPLAINTS, asked=False),
                Column("filed_on", "date", lambda d: d.day(-60, -2), known=True, shown=True, noun="date"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("received", "in_review", "settled")),
                    choices=("received", "in_review", "settled"),
                ),
                Column("compensation", "money", lambda d: d.money(0, 250, step=1000)),
            ),
            handles=(Handle(("filed_on",), "my complaint of {filed_on}"),),
            count=3,
        ),
    ),
)


def _cancel(db: View, given: Given) -> Row:
    booking = given["booking"]
    flight = db.get("flights", booking["flight_id"])
    assert flight is not None
    db.update("bookings", booking["id"], status="cancelled", cancel_reason=given["reason"])
    db.update("flights", flight["id"], seats_left=flight["seats_left"] + 1)
    return {"refund": booking["price"] * 8 // 10}


def _book(db: View, given: Given) -> Row:
    flight, cabin = given["flight"], given["cabin"]
    price = flight["fare"] + UPGRADE.get(cabin, 0)
    made = db.insert(
        "bookings",
        passenger_id=given["passenger"]["id"],
        flight_id=flight["id"],
        route=f"{flight['origin']} to {flight['destination']}",
        cabin=cabin,
        seat="none yet",
        bags=0,
        price=price,
        status="confirmed",
        cancel_reason="none",
    )
    db.update("flights", flight["id"], seats_left=flight["seats_left"] - 1)
    return {"booking_id": made["id"], "price": price, "departs": flight["departs"]}


def _rebook(db: View, given: Given) -> Row:
    booking, flight = given["booking"], given["flight"]
    old = db.get("flights", booking["flight_id"])
    assert old is not None
    price = flight["fare"] + UPGRADE.get(booking["cabin"], 0)
    db.update("flights", old["id"], seats_left=old["seats_left"] + 1)
    db.update("flights", flight["id"], seats_left=flight["seats_left"] - 1)
    db.update(
        "bookings",
        booking["id"],
        flight_id=flight["id"],
        route=f"{flight['origin']} to {flight['destination']}",
        price=price,
        seat="none yet",
    )
    return {"price": price, "departs": flight["departs"]}


def _upgrade(db: View, given: Given) -> Row:
    price = given["booking"]["price"] + UPGRADE[given["cabin"]]
    db.update("bookings", given["booking"]["id"], cabin=given["cabin"], price=price)
    return {"price": price}


def _add_bag(db: View, given: Given) -> Row:
    booking = given["booking"]
    made = db.insert(
        "bag_tags", booking_id=booking["id"], colour=given["colour"], weight=given["weight"], status="checked_in"
    )
    db.update("bookings", booking["id"], bags=booking["bags"] + 1, price=booking["price"] + BAG)
    return {"bag_id": made["id"], "price": booking["price"] + BAG}


def _check_in(db: View, given: Given) -> Row:
    flight = db.get("flights", given["booking"]["flight_id"])
    assert flight is not None
    db.update("bookings", given["booking"]["id"], status="checked_in")
    return {"departs": flight["departs"]}


def _redeem(db: View, given: Given) -> Row:
    booking, voucher = given["booking"], given["voucher"]
    price = max(0, booking["price"] - voucher["amount"])
    db.update("bookings", booking["id"], price=price)
    db.update("vouchers", voucher["id"], status="used")
    return {"price": price}


def _trace(db: View, given: Given) -> Row:
    db.update("bag_tags", given["bag"]["id"], status="traced")
    return {"weight": given["bag"]["weight"]}


def _complain(db: View, given: Given) -> Row:
    made = db.insert(
        "complaints",
        passenger_id=given["passenger"]["id"],
        flight_id=given["flight"]["id"],
        about=given["about"],
        filed_on=db.today,
        status="received",
        compensation=0,
    )
    return {"complaint_id": made["id"]}


def _settle(db: View, given: Given) -> Row:
    complaint = given["complaint"]
    made = db.insert(
        "vouchers",
        passenger_id=complaint["passenger_id"],
        amount=complaint["compensation"],
        valid_until="2026-12-31",
        status="open",
    )
    db.update("complaints", complaint["id"], status="settled")
    return {"voucher_id": made["id"], "amount": complaint["compensation"]}


def _lounge(db: View, given: Given) -> Row:
    made = db.insert(
        "lounge_passes",
        passenger_id=given["passenger"]["id"],
        airport=given["airport"],
        valid_on=given["day"],
        guests=0,
    )
    return {"lounge_pass_id": made["id"], "price": LOUNGE}


def _miles(db: View, given: Given) -> Row:
    passenger, miles = given["passenger"], given["miles"]
    amount = miles // 250 * 100
    made = db.insert("vouchers", passenger_id=passenger["id"], amount=amount, valid_until="2026-12-31", status="open")
    db.update("passengers", passenger["id"], miles=passenger["miles"] - miles)
    return {"voucher_id": made["id"], "amount": amount}


def _other_flight(row: Row, given: Given) -> bool:
    return bool(row["seats_left"] > 0 and row["id"] != given["booking"]["flight_id"])


PRICE = Tells("price", "money", "booking.price", "new price")
ACTIONS = (
    Action(
        "cancel_booking",
        "Cancel a confirmed booking; 80 percent are refunded",
        {
            "booking": Wants("booking", {"status": ("confirmed",)}),
            "reason": Says(
                "booking.cancel_reason",
                "choice",
                lambda d, g: d.rng.choice(CANCEL_REASONS),
                "reason for cancelling",
                choices=CANCEL_REASONS,
            ),
        },
        _cancel,
        ("cancel {booking}[, reason: {reason}]", "call off {booking}[; the reason is {reason}]"),
        "the booking is cancelled",
        tells=(Tells("refund", "money", "booking.refund", "refund"),),
        reads=("flights",),
        writes=("bookings", "flights"),
        after={"booking": {"status": "cancelled"}},
    ),
    Action(
        "book_flight",
        "Book a flight for a passenger",
        {
            "passenger": Wants("passenger"),
            "flight": Wants("flight", where=lambda row, g: row["seats_left"] > 0, why="the flight is full"),
            "cabin": Says("booking.cabin", "choice", lambda d, g: d.rng.choice(CABINS), "cabin", choices=CABINS),
        },
        _book,
        ("book {flight} for me[ in {cabin}]", "get me a seat on {flight}[, {cabin} class]"),
        "the flight is booked",
        tells=(
            Tells("price", "money", "booking.price", "price of the new booking"),
            Tells("booking_id", "id", "booking.id", "reference of the new booking"),
            Tells("departs", "clock", "flight.departs", "departure time of the new flight"),
        ),
        writes=("bookings", "flights"),
    ),
    Action(
        "change_flight",
        "Move a confirmed booking to another flight",
        {
            "booking": Wants("booking", {"status": ("confirmed",)}),
            "flight": Wants("flight", where=_other_flight, why="the flight is full, or the booking is for it already"),
        },
        _rebook,
        ("move {booking} to {flight}", "change {booking} so that I take {flight}"),
        "the booking is changed",
        tells=(PRICE, Tells("departs", "clock", "flight.departs", "departure time of the new flight")),
        writes=("bookings", "flights"),
    ),
    Action(
        "upgrade_cabin",
        "Upgrade an economy booking, 90 to premium or 240 to business",
        {
            "booking": Wants("booking", {"cabin": ("economy",), "status": ("confirmed", "checked_in")}),
            "cabin": Says(
                "booking.cabin", "choice", lambda d, g: d.rng.choice(CABINS[1:]), "cabin", choices=CABINS[1:]
            ),
        },
        _upgrade,
        ("upgrade {booking}[ to {cabin}]",),
        "the upgrade is done",
        tells=(PRICE,),
        writes=("bookings",),
    ),
    Action(
        "add_bag",
        "Add a bag to a booking, for 45",
        {
            "booking": Wants("booking", {"status": ("confirmed", "checked_in")}),
            "colour": Says(
                "bag.colour",
                "choice",
                lambda d, g: d.rng.choice(("black", "red", "blue", "green", "grey")),
                "colour of the bag",
                choices=("black", "red", "blue", "green", "grey"),
            ),
            "weight": Says(
                "bag.weight", "integer", lambda d, g: d.rng.randint(8, 23), "weight in kilograms", low=1, high=32
            ),
        },
        _add_bag,
        ("add a bag to {booking}[: it is {colour} and weighs {weight} kilograms]",),
        "the bag is added",
        tells=(PRICE, Tells("bag_id", "id", "bag.id", "number of the bag tag")),
        writes=("bookings", "bag_tags"),
    ),
    Action(
        "check_in",
        "Check a passenger in for a confirmed booking",
        {"booking": Wants("booking", {"status": ("confirmed",)})},
        _check_in,
        ("check me in for {booking}", "do the check-in for {booking}"),
        "you are through check-in",
        tells=(Tells("departs", "clock", "flight.departs", "departure time"),),
        reads=("flights",),
        writes=("bookings",),
        after={"booking": {"status": "checked_in"}},
    ),
    Action(
        "redeem_voucher",
        "Take the amount of an open voucher off a booking's price",
        {
            "voucher": Wants("voucher", {"status": ("open",)}),
            "booking": Wants(
                "booking", {"status": ("confirmed",)}, lambda row, g: row["price"] > 0, "nothing is left to pay"
            ),
        },
        _redeem,
        ("use {voucher} for {booking}", "pay for {booking} with {voucher}"),
        "the voucher is redeemed",
        tells=(PRICE,),
        writes=("bookings", "vouchers"),
        after={"voucher": {"status": "used"}},
    ),
    Action(
        "trace_bag",
        "Start tracing a missing bag",
        {"bag": Wants("bag", {"status": ("missing",)})},
        _trace,
        ("have {bag} traced", "start a search for {bag}"),
        "the search for the bag has begun",
        tells=(Tells("weight", "integer", "bag.weight", "weight of that bag in kilograms"),),
        writes=("bag_tags",),
        after={"bag": {"status": "traced"}},
    ),
    Action(
        "file_complaint",
        "File a passenger's complaint about a flight",
        {
            "passenger": Wants("passenger"),
            "flight": Wants("flight"),
            "about": Says(
                "complaint.about",
                "choice",
                lambda d, g: d.rng.choice(COMPLAINTS),
                "subject of the complaint",
                choices=COMPLAINTS,
            ),
        },
        _complain,
        ("file a complaint about {flight}[; it is about: {about}]",),
        "the complaint is filed",
        tells=(Tells("complaint_id", "id", "complaint.id", "number of the complaint"),),
        writes=("complaints",),
    ),
    Action(
        "settle_complaint",
        "Settle a complaint under review with a voucher",
        {"complaint": Wants("complaint", {"status": ("in_review",)})},
        _settle,
        ("settle {complaint}", "close {complaint} with a voucher"),
        "the complaint is settled",
        tells=(
            Tells("amount", "money", "voucher.amount", "amount of the voucher"),
            Tells("voucher_id", "id", "voucher.id", "number of the voucher"),
        ),
        writes=("complaints", "vouchers"),
        after={"complaint": {"status": "settled"}},
    ),
    Action(
        "buy_lounge_pass",
        "Buy a lounge pass for an airport and a day, for 39",
        {
            "passenger": Wants("passenger"),
            "airport": Says("lounge_pass.airport", "text", lambda d, g: d.one("route")[1], "airport"),
            "day": Says("lounge_pass.valid_on", "date", lambda d, g: d.day(5, 50), "day"),
        },
        _lounge,
        ("get me a lounge pass for {airport}[ on {day}]",),
        "the lounge pass is bought",
        tells=(
            Tells("lounge_pass_id", "id", "lounge_pass.id", "number of the lounge pass"),
            Tells("price", "money", "lounge_pass.price", "price of the pass"),
        ),
        writes=("lounge_passes",),
    ),
    Action(
        "convert_miles",
        "Turn miles into a voucher, 250 miles for 1.00",
        {
            "passenger": Wants("passenger"),
            "miles": Says(
                "passenger.converted",
                "integer",
                lambda d, g: (
                    250 * d.rng.randint(2, g["passenger"]["miles"] // 250) if g["passenger"]["miles"] >= 500 else None
                ),
                "number of miles",
                low=250,
                high=100_000,
            ),
        },
        _miles,
        ("turn miles of mine into a voucher[: {miles} of them]",),
        "the miles are converted",
        tells=(
            Tells("amount", "money", "voucher.amount", "amount of the voucher"),
            Tells("voucher_id", "id", "voucher.id", "number of the voucher"),
        ),
        writes=("passengers", "vouchers"),
        pre=lambda db, g: "" if g["miles"] <= g["passenger"]["miles"] else "the passenger has fewer miles than that",
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="airline",
        title="An airline",
        role="You serve the passengers of an airline.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hello, {name} speaking.",
            "Hi, my name is {name}.",
            "Good evening, {name} here.",
            "Hi there, this is {name}.",
        ),
    )
