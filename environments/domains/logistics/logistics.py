"""A parcel carrier: shipments, pick-ups, depots, claims, customs papers and drivers."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Wants, read_words
from stackloom.environments.domains.people import address, full_name, person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    day,
    number,
    one_of,
    parent,
    says_amount,
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

SERVICES = ("economy", "standard", "express")
DAMAGES = ("broken", "wet", "missing_item", "lost_on_the_way")

BLUEPRINT = Blueprint(
    person="sender",
    entities=(
        Entity(
            "sender",
            "senders",
            "SD",
            (
                *person_columns(),
                Column(
                    "address", "text", address, edit="change my pick-up address[ to {value}]", noun="pick-up address"
                ),
                one_of("tier", ("private", "shop", "partner"), noun="kind of account"),
                amount("credit", 0, 80, noun="credit"),
            ),
            count=5,
        ),
        Entity(
            "depot",
            "depots",
            "DP",
            (
                word("name", "depot", noun="depot", known=True, shown=True, unique=True),
                Column("dock", "text", lambda d: f"{d.rng.choice('ABCDEF')}{d.rng.randint(1, 24)}"),
                number("free_lockers", 1, 40, noun="number of free lockers"),
                one_of("weekend", ("open", "closed"), noun="weekend service"),
            ),
            handles=(Handle(("name",), "the {name} depot"),),
            count=6,
        ),
        Entity(
            "shipment",
            "shipments",
            "",
            (
                parent("sender", own=True),
                parent("depot"),
                word("goods", "goods", known=True, shown=True),
                Column("recipient", "text", full_name, known=True, shown=True),
                one_of("service", SERVICES),
                number("grams", 200, 18_000, step=100, noun="weight in grams"),
                amount("price", 4, 60, step=10),
                day("due_on", 1, 12, noun="delivery date"),
                status(
                    ("labelled", "in_transit", "delivered", "stopped"),
                    drawn=("labelled", "in_transit", "in_transit", "delivered"),
                ),
            ),
            handles=(Handle(("id",), "shipment {id}"), Handle(("goods", "recipient"), "the {goods} for {recipient}")),
            count=9,
            known_id=True,
        ),
        Entity(
            "pickup",
            "pickups",
            "PK",
            (
                parent("sender", own=True),
                day("on", 1, 14, noun="day", known=True, shown=True, edit="move {it}[ to {value}]"),
                number(
                    "parcels", 1, 20, noun="number of parcels", edit="change the number of parcels of {it}[ to {value}]"
                ),
                one_of("slot", ("morning", "noon", "evening"), noun="time slot"),
                status(("planned", "done", "cancelled"), drawn=("planned", "planned", "done")),
            ),
            handles=(Handle(("on",), "my pick-up on {on}"),),
            count=6,
            noun="pick-up",
        ),
        Entity(
            "claim",
            "claims",
            "CL",
            (
                parent("shipment", own=True),
                one_of("about", DAMAGES, noun="reason", known=True, shown=True),
                day("filed_on", -40, -1, noun="date of filing"),
                amount("value", 10, 400, noun="claimed value"),
                status(("filed", "accepted", "refused"), drawn=("filed", "filed", "accepted")),
            ),
            handles=(Handle(("about",), "the claim ({about}) on {shipment}"),),
            count=5,
        ),
        Entity(
            "customs_paper",
            "customs_papers",
            "CP",
            (
                parent("shipment", own=True),
                one_of("country", ("norway", "switzerland", "united_kingdom", "japan"), known=True, shown=True),
                amount(
                    "declared", 20, 900, noun="declared value", edit="change the declared value of {it}[ to {value}]"
                ),
                Column("tariff", "text", lambda d: f"{d.digits(4)}.{d.digits(2)}", noun="tariff number"),
            ),
            handles=(Handle(("country",), "the customs paper for {country} of {shipment}"),),
            count=5,
            noun="customs paper",
        ),
        Entity(
            "driver",
            "drivers",
            "DV",
            (
                Column("name", "text", full_name, noun="driver's name", known=True, shown=True, unique=True),
                Column("van", "text", lambda d: f"{d.rng.choice('LMNPR')}{d.rng.choice('KTVX')} {d.digits(4)}"),
                number("stops", 4, 60, noun="number of stops"),
                one_of("shift", ("early", "late")),
            ),
            handles=(Handle(("name",), "driver {name}"),),
            count=5,
        ),
    ),
)
PRICES = {"economy": 490, "standard": 790, "express": 1590}


def _ship(db: View, given: Given) -> Row:
    price = PRICES[given["service"]]
    made = db.insert(
        "shipments",
        sender_id=given["sender"]["id"],
        depot_id=given["depot"]["id"],
        goods=given["goods"],
        recipient=given["recipient"],
        service=given["service"],
        grams=1000,
        price=price,
        due_on="2026-05-22",
        status="labelled",
    )
    return {"shipment_id": made["id"], "price": price, "due_on": "2026-05-22"}


def _stop(db: View, given: Given) -> Row:
    db.update("shipments", given["shipment"]["id"], status="stopped")
    return {"grams": given["shipment"]["grams"]}


def _redirect(db: View, given: Given) -> Row:
    depot = given["depot"]
    db.update("shipments", given["shipment"]["id"], depot_id=depot["id"])
    db.update("depots", depot["id"], free_lockers=depot["free_lockers"] - 1)
    return {"dock": depot["dock"]}


def _speed_up(db: View, given: Given) -> Row:
    shipment = given["shipment"]
    db.update("shipments", shipment["id"], service="express", price=shipment["price"] + 800, due_on="2026-05-19")
    return {"price": shipment["price"] + 800, "due_on": "2026-05-19"}


def _pick_up(db: View, given: Given) -> Row:
    driver = given["driver"]
    made = db.insert(
        "pickups",
        sender_id=given["sender"]["id"],
        on=given["day"],
        parcels=given["parcels"],
        slot="morning",
        status="planned",
    )
    db.update("drivers", driver["id"], stops=driver["stops"] + 1)
    return {"pickup_id": made["id"], "van": driver["van"]}


def _cancel_pickup(db: View, given: Given) -> Row:
    db.update("pickups", given["pickup"]["id"], status="cancelled")
    return {"parcels": given["pickup"]["parcels"]}


def _claim(db: View, given: Given) -> Row:
    made = db.insert(
        "claims",
        shipment_id=given["shipment"]["id"],
        about=given["about"],
        filed_on=db.today,
        value=given["value"],
        status="filed",
    )
    return {"claim_id": made["id"]}


def _accept(db: View, given: Given) -> Row:
    claim = given["claim"]
    shipment = db.get("shipments", claim["shipment_id"])
    assert shipment is not None
    sender = db.get("senders", shipment["sender_id"])
    assert sender is not None
    db.update("claims", claim["id"], status="accepted")
    db.update("senders", sender["id"], credit=sender["credit"] + claim["value"])
    return {"credit": sender["credit"] + claim["value"]}


def _refuse(db: View, given: Given) -> Row:
    db.update("claims", given["claim"]["id"], status="refused")
    return {"filed_on": given["claim"]["filed_on"]}


def _declare(db: View, given: Given) -> Row:
    made = db.insert(
        "customs_papers",
        shipment_id=given["shipment"]["id"],
        country=given["country"],
        declared=given["declared"],
        tariff="9999.00",
    )
    return {"customs_paper_id": made["id"]}


def _deliver(db: View, given: Given) -> Row:
    driver = given["driver"]
    db.update("shipments", given["shipment"]["id"], status="delivered")
    db.update("drivers", driver["id"], stops=max(0, driver["stops"] - 1))
    return {"stops": max(0, driver["stops"] - 1)}


MOVING = {"status": ("labelled", "in_transit")}
ACTIONS = (
    Action(
        "create_shipment",
        "Label a new shipment from a depot",
        {
            "sender": Wants("sender"),
            "depot": Wants("depot"),
            "goods": says_word("shipment.goods", "goods", "goods"),
            "recipient": Says("shipment.recipient", "text", lambda d, g: full_name(d), "recipient"),
            "service": says_one("shipment.service", "service", SERVICES),
        },
        _ship,
        ("send {goods} to {recipient} from {depot} for me[, service {service}]",),
        "the shipment is labelled",
        tells=(
            tells_id("shipment", "number of the shipment"),
            tells("shipment", "price", "money", "price of the shipment"),
            tells("shipment", "due_on", "date", "delivery date of it"),
        ),
        writes=("shipments",),
    ),
    Action(
        "stop_shipment",
        "Stop a shipment on its way",
        {"shipment": Wants("shipment", MOVING)},
        _stop,
        ("stop {shipment}", "hold back {shipment}"),
        "the shipment is stopped",
        tells=(tells("shipment", "grams", "integer", "weight in grams of it"),),
        writes=("shipments",),
        after={"shipment": {"status": "stopped"}},
    ),
    Action(
        "redirect_shipment",
        "Send a shipment to a locker of another depot",
        {
            "shipment": Wants("shipment", MOVING),
            "depot": Wants(
                "depot",
                where=lambda row, g: row["free_lockers"] > 0 and row["id"] != g["shipment"]["depot_id"],
                why="it goes there already, or no locker is free",
            ),
        },
        _redirect,
        ("redirect {shipment} to {depot}", "let me collect {shipment} at {depot}"),
        "the shipment is redirected",
        tells=(tells("depot", "dock", "text", "dock of that depot"),),
        writes=("shipments", "depots"),
    ),
    Action(
        "speed_up_shipment",
        "Make a shipment express",
        {"shipment": Wants("shipment", {**MOVING, "service": ("economy", "standard")})},
        _speed_up,
        ("make {shipment} express", "speed up {shipment}"),
        "the shipment travels faster",
        tells=(
            tells("shipment", "price", "money", "new price"),
            tells("shipment", "due_on", "date", "new delivery date"),
        ),
        writes=("shipments",),
        after={"shipment": {"service": "express"}},
    ),
    Action(
        "plan_pickup",
        "Plan a pick-up with a driver",
        {
            "sender": Wants("sender"),
            "driver": Wants("driver"),
            "day": says_day("pickup.on", "day", 15, 30),
            "parcels": says_number("pickup.parcels", "number of parcels", 1, 20),
        },
        _pick_up,
        ("have {driver} pick up parcels from me[: {parcels} parcels on {day}]",),
        "the pick-up is planned",
        tells=(tells_id("pickup", "number of the pick-up"), tells("driver", "van", "text", "plate of the van")),
        writes=("pickups", "drivers"),
    ),
    Action(
        "cancel_pickup",
        "Cancel a planned pick-up",
        {"pickup": Wants("pickup", {"status": ("planned",)})},
        _cancel_pickup,
        ("cancel {pickup}", "call off {pickup}"),
        "the pick-up is cancelled",
        tells=(tells("pickup", "parcels", "integer", "number of parcels it was for"),),
        writes=("pickups",),
        after={"pickup": {"status": "cancelled"}},
    ),
    Action(
        "file_claim",
        "File a claim about a delivered shipment",
        {
            "shipment": Wants("shipment", {"status": ("delivered",)}),
            "about": says_one("claim.about", "reason", DAMAGES),
            "value": says_amount("claim.value", "value", 10, 400),
        },
        _claim,
        ("file a claim about {shipment}[: {about}, worth {value}]",),
        "the claim is filed",
        tells=(tells_id("claim", "number of the claim"),),
        writes=("claims",),
    ),
    Action(
        "accept_claim",
        "Accept a filed claim and credit its value",
        {"claim": Wants("claim", {"status": ("filed",)})},
        _accept,
        ("accept {claim}", "settle {claim}"),
        "the claim is accepted",
        tells=(tells("sender", "credit", "money", "credit on the account now"),),
        reads=("shipments", "senders"),
        writes=("claims", "senders"),
        after={"claim": {"status": "accepted"}},
    ),
    Action(
        "refuse_claim",
        "Refuse a filed claim",
        {"claim": Wants("claim", {"status": ("filed",)})},
        _refuse,
        ("drop {claim}; I was wrong about it",),
        "the claim is closed",
        tells=(tells("claim", "filed_on", "date", "date on which it was filed"),),
        writes=("claims",),
        after={"claim": {"status": "refused"}},
    ),
    Action(
        "add_customs_paper",
        "Add a customs paper to a shipment",
        {
            "shipment": Wants("shipment", MOVING),
            "country": says_one(
                "customs_paper.country", "country", ("norway", "switzerland", "united_kingdom", "japan")
            ),
            "declared": says_amount("customs_paper.declared", "declared value", 20, 900),
        },
        _declare,
        ("add a customs paper to {shipment}[: {country}, declared value {declared}]",),
        "the paper is added",
        tells=(tells_id("customs_paper", "number of the paper"),),
        writes=("customs_papers",),
    ),
    Action(
        "confirm_delivery",
        "Note that a driver has delivered a shipment",
        {"shipment": Wants("shipment", {"status": ("in_transit",)}), "driver": Wants("driver")},
        _deliver,
        ("note that {driver} has delivered {shipment}",),
        "the delivery is noted",
        tells=(tells("driver", "stops", "integer", "number of stops that driver has left"),),
        writes=("shipments", "drivers"),
        after={"shipment": {"status": "delivered"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="logistics",
        title="A parcel carrier",
        role="You serve the senders of a parcel carrier.",
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
