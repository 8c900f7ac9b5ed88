"""A phone company: lines, plans, devices, add-ons, bills, outages and porting."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import address, person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    clock,
    day,
    number,
    one_of,
    parent,
    says_day,
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

REASONS = ("price", "moving", "coverage", "another_provider")
LINE = ("active", "suspended", "ended")

BLUEPRINT = Blueprint(
    person="customer",
    entities=(
        Entity(
            "customer",
            "customers",
            "CU",
            (
                *person_columns(edit_phone=False),
                Column(
                    "address", "text", address, edit="change my billing address[ to {value}]", noun="billing address"
                ),
                one_of("paper_bill", ("yes", "no"), asked=False),
                amount("credit", 0, 60, step=100, noun="account credit"),
            ),
            count=5,
        ),
        Entity(
            "plan",
            "plans",
            "PL",
            (
                word("name", "plan", noun="plan", known=True, shown=True, unique=True),
                number("gigabytes", 2, 120, step=2, noun="number of gigabytes"),
                amount("monthly_price", 8, 70, step=50, noun="monthly price"),
                one_of("roaming", ("none", "europe", "world")),
            ),
            handles=(Handle(("name",), "the {name} plan"),),
            count=7,
        ),
        Entity(
            "line",
            "lines",
            "LI",
            (
                parent("customer", own=True),
                parent("plan"),
                Column(
                    "number",
                    "phone",
                    lambda d: f"+44 7{d.digits(3)} {d.digits(6)}",
                    noun="number of the line",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                number("used_gigabytes", 0, 60, noun="number of gigabytes used"),
                day("renews_on", 1, 30, noun="renewal date"),
                status(LINE, drawn=("active", "active", "active", "suspended")),
            ),
            handles=(Handle(("number",), "line {number}"),),
            count=8,
        ),
        Entity(
            "addon",
            "addons",
            "AO",
            (
                parent("line", own=True),
                word("name", "addon", noun="add-on", known=True, shown=True),
                amount("price", 1, 20, step=50),
                day("ends_on", 3, 60, noun="last day", edit="extend {it}[ until {value}]"),
                status(("running", "stopped"), drawn=("running", "running", "stopped")),
            ),
            handles=(Handle(("name",), "the {name} add-on on {line}"),),
            count=7,
            noun="add-on",
        ),
        Entity(
            "handset",
            "handsets",
            "HS",
            (
                parent("customer", own=True),
                word("model", "handset", known=True, shown=True),
                amount("instalment", 9, 60, step=50, noun="monthly instalment"),
                number("months_left", 1, 24, noun="number of instalments left"),
                status(("financed", "paid_off", "lost"), drawn=("financed", "financed", "paid_off")),
            ),
            handles=(Handle(("model",), "my {model}"),),
            count=6,
        ),
        Entity(
            "bill",
            "bills",
            "BL",
            (
                parent("customer", own=True),
                day("issued_on", -120, -3, noun="date", known=True, shown=True),
                amount("total", 9, 180, step=1),
                day("due_on", 2, 20, noun="due date"),
                status(("open", "paid", "disputed"), drawn=("open", "open", "paid")),
            ),
            handles=(Handle(("issued_on",), "my bill of {issued_on}"),),
            count=7,
        ),
        Entity(
            "outage",
            "outages",
            "OU",
            (
                word("district", "district", known=True, shown=True, unique=True),
                clock("began", -3, 0, noun="beginning"),
                clock("expected_end", 0, 3, noun="expected end"),
                number("reports", 1, 400, noun="number of reports"),
            ),
            handles=(Handle(("district",), "the outage in {district}"),),
            count=4,
        ),
        Entity(
            "port",
            "ports",
            "PO",
            (
                parent("customer", own=True),
                Column(
                    "number",
                    "phone",
                    lambda d: f"+44 7{d.digits(3)} {d.digits(6)}",
                    noun="number to be ported",
                    known=True,
                    shown=True,
                ),
                day("on", 3, 25, noun="date of porting"),
                status(("requested", "done", "cancelled"), drawn=("requested", "requested", "done")),
            ),
            handles=(Handle(("number",), "the porting of {number}"),),
            count=4,
            noun="porting",
        ),
    ),
)


def _change_plan(db: View, given: Given) -> Row:
    db.update("lines", given["line"]["id"], plan_id=given["plan"]["id"])
    return {"monthly_price": given["plan"]["monthly_price"], "gigabytes": given["plan"]["gigabytes"]}


def _suspend(db: View, given: Given) -> Row:
    db.update("lines", given["line"]["id"], status="suspended")
    return {"renews_on": given["line"]["renews_on"]}


def _resume(db: View, given: Given) -> Row:
    db.update("lines", given["line"]["id"], status="active")
    return {"used_gigabytes": given["line"]["used_gigabytes"]}


def _open_line(db: View, given: Given) -> Row:
    count = len(db.select("lines"))
    made = db.insert(
        "lines",
        customer_id=given["customer"]["id"],
        plan_id=given["plan"]["id"],
        number=f"+44 7999 {100_000 + count}",
        used_gigabytes=0,
        renews_on="2026-06-18",
        status="active",
    )
    return {"line_id": made["id"]}


def _add(db: View, given: Given) -> Row:
    made = db.insert(
        "addons", line_id=given["line"]["id"], name=given["addon"], price=500, ends_on=given["until"], status="running"
    )
    return {"addon_id": made["id"]}


def _stop(db: View, given: Given) -> Row:
    db.update("addons", given["addon"]["id"], status="stopped")
    return {"price": given["addon"]["price"]}


def _pay(db: View, given: Given) -> Row:
    db.update("bills", given["bill"]["id"], status="paid")
    return {"total": given["bill"]["total"]}


def _dispute(db: View, given: Given) -> Row:
    db.update("bills", given["bill"]["id"], status="disputed", due_on="2026-07-01")
    return {"total": given["bill"]["total"]}


def _use_credit(db: View, given: Given) -> Row:
    bill = given["bill"]
    customer = db.get("customers", bill["customer_id"])
    assert customer is not None
    left = max(0, bill["total"] - customer["credit"])
    db.update("customers", customer["id"], credit=max(0, customer["credit"] - bill["total"]))
    db.update("bills", bill["id"], total=left)
    return {"total": left}


def _lost(db: View, given: Given) -> Row:
    db.update("handsets", given["handset"]["id"], status="lost")
    return {"months_left": given["handset"]["months_left"]}


def _pay_off(db: View, given: Given) -> Row:
    handset = given["handset"]
    total = handset["instalment"] * handset["months_left"]
    db.update("handsets", handset["id"], status="paid_off", months_left=0)
    return {"amount": total}


def _report(db: View, given: Given) -> Row:
    outage = given["outage"]
    db.update("outages", outage["id"], reports=outage["reports"] + 1)
    return {"expected_end": outage["expected_end"], "reports": outage["reports"] + 1}


def _port(db: View, given: Given) -> Row:
    made = db.insert(
        "ports", customer_id=given["customer"]["id"], number=given["number"], on=given["day"], status="requested"
    )
    return {"port_id": made["id"]}


def _cancel_port(db: View, given: Given) -> Row:
    db.update("ports", given["port"]["id"], status="cancelled")
    return {"on": given["port"]["on"]}


ACTIVE = {"status": ("active",)}
ACTIONS = (
    Action(
        "change_plan",
        "Move an active line to another plan",
        {
            "line": Wants("line", ACTIVE),
            "plan": Wants(
                "plan", where=lambda row, g: row["id"] != g["line"]["plan_id"], why="the line has that plan already"
            ),
        },
        _change_plan,
        ("move {line} to {plan}", "put {line} on {plan}"),
        "the plan is changed",
        tells=(
            tells("plan", "monthly_price", "money", "new monthly price"),
            tells("plan", "gigabytes", "integer", "number of gigabytes in it"),
        ),
        writes=("lines",),
    ),
    Action(
        "suspend_line",
        "Suspend an active line",
        {"line": Wants("line", ACTIVE)},
        _suspend,
        ("suspend {line}", "put {line} on pause"),
        "the line is suspended",
        tells=(tells("line", "renews_on", "date", "date on which it renews"),),
        writes=("lines",),
        after={"line": {"status": "suspended"}},
    ),
    Action(
        "resume_line",
        "Take a suspended line back into service",
        {"line": Wants("line", {"status": ("suspended",)})},
        _resume,
        ("take {line} back into service", "resume {line}"),
        "the line works again",
        tells=(tells("line", "used_gigabytes", "integer", "number of gigabytes used on it"),),
        writes=("lines",),
        after={"line": {"status": "active"}},
    ),
    Action(
        "open_line",
        "Open a new line with a plan",
        {"customer": Wants("customer"), "plan": Wants("plan")},
        _open_line,
        ("open another line for me with {plan}", "I want one more line, with {plan}"),
        "the line is open",
        tells=(tells_id("line", "id of the new line"),),
        writes=("lines",),
    ),
    Action(
        "add_addon",
        "Book an add-on for an active line until a date",
        {
            "line": Wants("line", ACTIVE),
            "addon": says_word("addon.name", "add-on", "addon"),
            "until": says_day("addon.ends_on", "last day", 10, 60),
        },
        _add,
        ("book the add-on {addon} for {line}[ until {until}]",),
        "the add-on is booked",
        tells=(tells_id("addon", "number of the booking"),),
        writes=("addons",),
    ),
    Action(
        "stop_addon",
        "Stop a running add-on",
        {"addon": Wants("addon", {"status": ("running",)})},
        _stop,
        ("stop {addon}", "cancel {addon}"),
        "the add-on is stopped",
        tells=(tells("addon", "price", "money", "price that it had"),),
        writes=("addons",),
        after={"addon": {"status": "stopped"}},
    ),
    Action(
        "pay_bill",
        "Charge the stored card for an open bill",
        {"bill": Wants("bill", {"status": ("open",)})},
        _pay,
        ("pay {bill} with my card", "charge my card for {bill}"),
        "the bill is paid",
        tells=(tells("bill", "total", "money", "total of it"),),
        writes=("bills",),
        after={"bill": {"status": "paid"}},
    ),
    Action(
        "dispute_bill",
        "Open a dispute about a bill; it is due later then",
        {"bill": Wants("bill", {"status": ("open",)})},
        _dispute,
        ("I dispute {bill}; please note it", "open a dispute about {bill}"),
        "the dispute is open",
        tells=(tells("bill", "total", "money", "total in dispute"),),
        writes=("bills",),
        after={"bill": {"status": "disputed"}},
    ),
    Action(
        "use_credit",
        "Use the account's credit for an open bill",
        {"bill": Wants("bill", {"status": ("open",)})},
        _use_credit,
        ("use my credit for {bill}",),
        "your credit is used",
        tells=(tells("bill", "total", "money", "total that is left to pay"),),
        reads=("customers",),
        writes=("bills", "customers"),
        pre=lambda db, g: (
            "" if (db.get("customers", g["bill"]["customer_id"]) or {"credit": 0})["credit"] else "there is no credit"
        ),
    ),
    Action(
        "report_lost_handset",
        "Note that a phone is lost",
        {"handset": Wants("handset", {"status": ("financed", "paid_off")})},
        _lost,
        ("I lost {handset}; please note that", "report {handset} as lost"),
        "the loss is noted",
        tells=(tells("handset", "months_left", "integer", "number of instalments that are left"),),
        writes=("handsets",),
        after={"handset": {"status": "lost"}},
    ),
    Action(
        "pay_off_handset",
        "Take the rest of a phone's instalments at once",
        {"handset": Wants("handset", {"status": ("financed",)})},
        _pay_off,
        ("let me pay off {handset}",),
        "the phone is paid off",
        tells=(Tells("amount", "money", "handset.rest", "amount I am charged"),),
        writes=("handsets",),
        after={"handset": {"status": "paid_off", "months_left": 0}},
    ),
    Action(
        "report_outage",
        "Add a report to a known outage",
        {"outage": Wants("outage")},
        _report,
        ("I am hit by {outage}; add my report", "count me in for {outage}"),
        "your report is added",
        tells=(
            tells("outage", "expected_end", "clock", "time when it should end"),
            tells("outage", "reports", "integer", "number of reports now"),
        ),
        writes=("outages",),
    ),
    Action(
        "port_number",
        "Bring a number from another company on a date",
        {
            "customer": Wants("customer"),
            "number": Says(
                "port.number", "phone", lambda d, g: f"+44 7{d.digits(3)} {d.digits(6)}", "number to be ported"
            ),
            "day": says_day("port.on", "date of porting", 5, 25),
        },
        _port,
        ("bring a number of mine over from another company[: {number}, on {day}]",),
        "the porting is requested",
        tells=(tells_id("port", "number of the request"),),
        writes=("ports",),
    ),
    Action(
        "cancel_port",
        "Cancel a requested porting",
        {"port": Wants("port", {"status": ("requested",)})},
        _cancel_port,
        ("cancel {port}", "call off {port}"),
        "the porting is cancelled",
        tells=(tells("port", "on", "date", "date it was planned for"),),
        writes=("ports",),
        after={"port": {"status": "cancelled"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="telecom",
        title="A phone company",
        role="You serve the customers of a phone company.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hi, {name} here.",
            "Hello, this is {name}.",
            "Good evening, {name} speaking.",
            "Hey, my name is {name}.",
        ),
    )
