"""A letting agency: flats, viewings, leases, repairs, meters, keys and rents."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Wants, read_words
from stackloom.environments.domains.people import person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    clock,
    day,
    number,
    one_of,
    parent,
    says_day,
    says_one,
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

METERS = ("water", "gas", "power", "heat")
KEYS = ("front_door", "cellar", "mailbox", "garage")

BLUEPRINT = Blueprint(
    person="tenant",
    entities=(
        Entity(
            "tenant",
            "tenants",
            "TN",
            (
                *person_columns(),
                one_of("household", ("single", "couple", "family", "shared"), noun="kind of household"),
                amount("deposit", 300, 2400, step=5000, noun="deposit held"),
                one_of("pets", ("none", "cat", "dog"), edit="change the pets in my file[ to {value}]"),
            ),
            count=5,
        ),
        Entity(
            "flat",
            "flats",
            "FL",
            (
                word("name", "flat", noun="flat", known=True, shown=True, unique=True),
                number("rooms", 1, 6, noun="number of rooms"),
                amount("rent", 420, 1900, step=1000, noun="monthly rent"),
                day("free_from", 5, 120, noun="first free day"),
                status(("free", "reserved", "let"), drawn=("free", "free", "let")),
            ),
            handles=(Handle(("name",), 'the flat "{name}"'),),
            count=9,
        ),
        Entity(
            "viewing",
            "viewings",
            "VW",
            (
                parent("tenant", own=True),
                parent("flat"),
                Column("place", "text", lambda d: d.parent("flat_id")["name"], noun="flat", known=True, shown=True),
                clock("starts", 1, 20, hours=(9, 19), noun="time"),
                status(("planned", "done", "cancelled"), drawn=("planned", "planned", "done")),
            ),
            handles=(Handle(("place",), 'my viewing of "{place}"'),),
            count=6,
        ),
        Entity(
            "lease",
            "leases",
            "LS",
            (
                parent("tenant", own=True),
                parent("flat"),
                Column("place", "text", lambda d: d.parent("flat_id")["name"], noun="flat", known=True, shown=True),
                amount("rent", 420, 1900, step=1000, noun="monthly rent"),
                day("ends_on", 40, 700, noun="end date"),
                status(("running", "given_notice", "ended"), drawn=("running", "running", "given_notice")),
            ),
            handles=(Handle(("place",), 'my lease of "{place}"'),),
            count=6,
        ),
        Entity(
            "repair",
            "repairs",
            "RP",
            (
                parent("lease", own=True),
                word("defect", "defect", known=True, shown=True),
                one_of("urgency", ("low", "normal", "emergency")),
                day("reported_on", -40, -1, noun="date of the report"),
                amount("estimate", 40, 900, noun="estimated cost"),
                status(("reported", "ordered", "fixed"), drawn=("reported", "reported", "ordered", "fixed")),
            ),
            handles=(Handle(("defect",), 'the repair "{defect}"'),),
            count=7,
        ),
        Entity(
            "meter",
            "meters",
            "MT",
            (
                parent("lease", own=True),
                one_of("kind", METERS, noun="kind of meter", known=True, shown=True),
                number("reading", 100, 9000, edit="set the reading of {it}[ to {value}]"),
                day("read_on", -200, -5, noun="date of the last reading"),
            ),
            handles=(Handle(("kind",), "the {kind} meter of {lease}"),),
            count=6,
        ),
        Entity(
            "rent_payment",
            "rent_payments",
            "PY",
            (
                parent("lease", own=True),
                day("due_on", -40, 40, noun="due date", known=True, shown=True),
                amount("total", 420, 1900, step=1000),
                status(("open", "paid", "deferred"), drawn=("open", "open", "paid")),
            ),
            handles=(Handle(("due_on",), "the rent due on {due_on}"),),
            count=7,
            noun="rent payment",
        ),
        Entity(
            "key",
            "keys",
            "KY",
            (
                parent("lease", own=True),
                one_of("opens", KEYS, noun="kind of key", known=True, shown=True),
                Column("code", "text", lambda d: f"{d.rng.choice('HJKQ')}{d.digits(4)}"),
                status(("handed_out", "returned", "lost"), drawn=("handed_out", "handed_out", "returned")),
            ),
            handles=(Handle(("opens",), "the {opens} key of {lease}"),),
            count=6,
        ),
    ),
)


def _view(db: View, given: Given) -> Row:
    flat = given["flat"]
    made = db.insert(
        "viewings",
        tenant_id=given["tenant"]["id"],
        flat_id=flat["id"],
        place=flat["name"],
        starts=f"{given['day']} 16:00",
        status="planned",
    )
    return {"viewing_id": made["id"], "rooms": flat["rooms"], "rent": flat["rent"]}


def _cancel_viewing(db: View, given: Given) -> Row:
    db.update("viewings", given["viewing"]["id"], status="cancelled")
    return {"starts": given["viewing"]["starts"]}


def _reserve(db: View, given: Given) -> Row:
    viewing = given["viewing"]
    flat = db.get("flats", viewing["flat_id"])
    assert flat is not None
    db.update("flats", flat["id"], status="reserved")
    return {"free_from": flat["free_from"]}


def _free(db: View, given: Given) -> str:
    flat = db.get("flats", given["viewing"]["flat_id"])
    return "" if flat and flat["status"] == "free" else "the flat is not free"


def _let(db: View, given: Given) -> Row:
    flat = given["flat"]
    made = db.insert(
        "leases",
        tenant_id=given["tenant"]["id"],
        flat_id=flat["id"],
        place=flat["name"],
        rent=flat["rent"],
        ends_on=given["until"],
        status="running",
    )
    db.update("flats", flat["id"], status="let")
    return {"lease_id": made["id"], "rent": flat["rent"]}


def _notice(db: View, given: Given) -> Row:
    db.update("leases", given["lease"]["id"], status="given_notice", ends_on=given["last_day"])
    return {"rent": given["lease"]["rent"]}


def _extend(db: View, given: Given) -> Row:
    rent = given["lease"]["rent"] + 2000
    db.update("leases", given["lease"]["id"], ends_on=given["until"], rent=rent)
    return {"rent": rent}


def _report(db: View, given: Given) -> Row:
    made = db.insert(
        "repairs",
        lease_id=given["lease"]["id"],
        defect=given["defect"],
        urgency=given["urgency"],
        reported_on=db.today,
        estimate=10_000,
        status="reported",
    )
    return {"repair_id": made["id"]}


def _order(db: View, given: Given) -> Row:
    db.update("repairs", given["repair"]["id"], status="ordered")
    return {"estimate": given["repair"]["estimate"]}


def _fixed(db: View, given: Given) -> Row:
    db.update("repairs", given["repair"]["id"], status="fixed")
    return {"reported_on": given["repair"]["reported_on"]}


def _pay(db: View, given: Given) -> Row:
    db.update("rent_payments", given["rent_payment"]["id"], status="paid")
    return {"total": given["rent_payment"]["total"]}


def _defer(db: View, given: Given) -> Row:
    db.update("rent_payments", given["rent_payment"]["id"], status="deferred", due_on=given["until"])
    return {"total": given["rent_payment"]["total"]}


def _hand_out(db: View, given: Given) -> Row:
    made = db.insert("keys", lease_id=given["lease"]["id"], opens=given["opens"], code="X0000", status="handed_out")
    return {"key_id": made["id"]}


def _return(db: View, given: Given) -> Row:
    db.update("keys", given["key"]["id"], status="returned")
    return {"code": given["key"]["code"]}


RUNNING = {"status": ("running",)}
ACTIONS = (
    Action(
        "plan_viewing",
        "Plan a viewing of a free flat",
        {
            "tenant": Wants("tenant"),
            "flat": Wants("flat", {"status": ("free",)}),
            "day": says_day("viewing.day", "day", 21, 40),
        },
        _view,
        ("plan a viewing of {flat} for me[ on {day}]",),
        "the viewing is planned",
        tells=(
            tells_id("viewing", "number of the viewing"),
            tells("flat", "rooms", "integer", "number of rooms there"),
            tells("flat", "rent", "money", "monthly rent of that flat"),
        ),
        writes=("viewings",),
    ),
    Action(
        "cancel_viewing",
        "Cancel a planned viewing",
        {"viewing": Wants("viewing", {"status": ("planned",)})},
        _cancel_viewing,
        ("cancel {viewing}", "call off {viewing}"),
        "the viewing is cancelled",
        tells=(tells("viewing", "starts", "clock", "time it was planned for"),),
        writes=("viewings",),
        after={"viewing": {"status": "cancelled"}},
    ),
    Action(
        "reserve_flat",
        "Reserve the flat of a viewing that took place",
        {"viewing": Wants("viewing", {"status": ("done",)})},
        _reserve,
        ("reserve the flat of {viewing} for me",),
        "the flat is reserved",
        tells=(tells("flat", "free_from", "date", "first day on which it is free"),),
        reads=("flats",),
        writes=("flats",),
        pre=_free,
    ),
    Action(
        "sign_lease",
        "Let a free flat to a tenant until a date",
        {
            "tenant": Wants("tenant"),
            "flat": Wants("flat", {"status": ("free", "reserved")}),
            "until": says_day("lease.ends_on", "end date", 360, 700),
        },
        _let,
        ("I want to rent {flat}; draw up the lease[ until {until}]",),
        "the lease is signed",
        tells=(tells_id("lease", "number of the lease"), tells("lease", "rent", "money", "monthly rent in it")),
        writes=("leases", "flats"),
    ),
    Action(
        "give_notice",
        "Give notice of a running lease",
        {"lease": Wants("lease", RUNNING), "last_day": says_day("lease.ends_on", "last day", 30, 120)},
        _notice,
        ("I give notice of {lease}[; my last day is {last_day}]",),
        "the notice is noted",
        tells=(tells("lease", "rent", "money", "monthly rent until then"),),
        writes=("leases",),
        after={"lease": {"status": "given_notice"}},
    ),
    Action(
        "extend_lease",
        "Extend a running lease at a slightly higher rent",
        {"lease": Wants("lease", RUNNING), "until": says_day("lease.ends_on", "end date", 710, 1000)},
        _extend,
        ("extend {lease}[ until {until}]",),
        "the lease is extended",
        tells=(tells("lease", "rent", "money", "new monthly rent"),),
        writes=("leases",),
    ),
    Action(
        "report_defect",
        "Report a defect in a let flat",
        {
            "lease": Wants("lease", {"status": ("running", "given_notice")}),
            "defect": says_word("repair.defect", "defect", "defect"),
            "urgency": says_one("repair.urgency", "urgency", ("low", "normal", "emergency")),
        },
        _report,
        ('report the defect "{defect}" under {lease}[, urgency {urgency}]',),
        "the defect is reported",
        tells=(tells_id("repair", "number of the report"),),
        writes=("repairs",),
    ),
    Action(
        "order_repair",
        "Order a reported repair",
        {"repair": Wants("repair", {"status": ("reported",)})},
        _order,
        ("please have {repair} ordered", "order {repair}"),
        "the repair is ordered",
        tells=(tells("repair", "estimate", "money", "estimated cost of it"),),
        writes=("repairs",),
        after={"repair": {"status": "ordered"}},
    ),
    Action(
        "close_repair",
        "Note that an ordered repair is done",
        {"repair": Wants("repair", {"status": ("ordered",)})},
        _fixed,
        ("{repair} is done; please close it",),
        "the repair is closed",
        tells=(tells("repair", "reported_on", "date", "date on which it was reported"),),
        writes=("repairs",),
        after={"repair": {"status": "fixed"}},
    ),
    Action(
        "pay_rent",
        "Note the payment of an open rent",
        {"rent_payment": Wants("rent_payment", {"status": ("open", "deferred")})},
        _pay,
        ("debit my account for {rent_payment}",),
        "the rent is paid",
        tells=(tells("rent_payment", "total", "money", "total of it"),),
        writes=("rent_payments",),
        after={"rent_payment": {"status": "paid"}},
    ),
    Action(
        "defer_rent",
        "Defer an open rent to a date",
        {
            "rent_payment": Wants("rent_payment", {"status": ("open",)}),
            "until": says_day("rent_payment.due_on", "new due date", 45, 80),
        },
        _defer,
        ("let me pay {rent_payment} later[, on {until}]",),
        "the rent is deferred",
        tells=(tells("rent_payment", "total", "money", "total that is deferred"),),
        writes=("rent_payments",),
        after={"rent_payment": {"status": "deferred"}},
    ),
    Action(
        "hand_out_key",
        "Hand out another key",
        {"lease": Wants("lease", RUNNING), "opens": says_one("key.opens", "kind of key", KEYS)},
        _hand_out,
        ("give me another key for {lease}[, namely for the {opens}]",),
        "the key is handed out",
        tells=(tells_id("key", "number of the entry"),),
        writes=("keys",),
    ),
    Action(
        "return_key",
        "Take back a key",
        {"key": Wants("key", {"status": ("handed_out",)})},
        _return,
        ("take back {key}", "note that I returned {key}"),
        "the key is back",
        tells=(tells("key", "code", "text", "code on it"),),
        writes=("keys",),
        after={"key": {"status": "returned"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="real_estate",
        title="A letting agency",
        role="You work for a letting agency and serve its tenants.",
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
