"""A sales desk: accounts, contacts, deals, quotes, meetings, calls and campaigns."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Wants, read_words
from stackloom.environments.domains.people import full_name, person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    clock,
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

STAGES = ("new", "qualified", "offered", "won", "lost")
REASONS = ("price", "timing", "competitor", "no_answer")
REGIONS = ("north", "south", "east", "west")

BLUEPRINT = Blueprint(
    person="seller",
    entities=(
        Entity(
            "seller",
            "sellers",
            "SE",
            (
                *person_columns(edit_email=False),
                one_of("region", REGIONS, edit="change my region[ to {value}]"),
                amount("quota", 20_000, 180_000, step=100_000, noun="sales quota"),
                number("deals_won", 0, 40, noun="number of deals won"),
            ),
            count=5,
        ),
        Entity(
            "account",
            "accounts",
            "AC",
            (
                parent("seller", own=True),
                word("company", "company", known=True, shown=True, unique=True),
                one_of("size", ("small", "medium", "large")),
                amount("revenue", 5_000, 400_000, step=50_000, noun="yearly revenue with us"),
                status(("prospect", "customer", "dormant"), drawn=("prospect", "customer", "customer")),
            ),
            handles=(Handle(("company",), "the account {company}"),),
            count=9,
        ),
        Entity(
            "contact",
            "contacts",
            "CN",
            (
                parent("account", own=True),
                Column("name", "text", full_name, known=True, shown=True),
                one_of("role", ("buyer", "engineer", "director"), edit="change the role of {it}[ to {value}]"),
                Column("extension", "text", lambda d: f"ext. {d.digits(3)}"),
                day("last_spoken", -120, -2, noun="date of the last talk"),
            ),
            handles=(Handle(("name",), "the contact {name} at {account}"),),
            count=8,
        ),
        Entity(
            "deal",
            "deals",
            "DL",
            (
                parent("account", own=True),
                word("product", "product", known=True, shown=True),
                amount("value", 500, 60_000, step=10_000),
                number(
                    "chance",
                    10,
                    90,
                    step=10,
                    noun="chance in percent",
                    most=100,
                    edit="set the chance of {it}[ to {value}]",
                ),
                day("closes_on", 5, 120, noun="expected closing date"),
                status(STAGES, drawn=("new", "qualified", "offered", "offered", "won"), name="stage"),
            ),
            handles=(Handle(("product",), "the {product} deal with {account}"),),
            count=9,
        ),
        Entity(
            "quote",
            "quotes",
            "",
            (
                parent("deal", own=True),
                amount("total", 500, 60_000, step=10_000),
                number("discount", 0, 20, noun="discount in percent", most=50),
                day("valid_until", 5, 60, noun="last day of validity", known=True, shown=True),
                status(("draft", "sent", "accepted", "withdrawn"), drawn=("draft", "sent", "sent")),
            ),
            handles=(
                Handle(("id",), "quote {id}"),
                Handle(("valid_until",), "the quote that is valid until {valid_until}"),
            ),
            count=7,
            known_id=True,
        ),
        Entity(
            "meeting",
            "meetings",
            "ME",
            (
                parent("account", own=True),
                clock("starts", 1, 30, hours=(8, 17), noun="time", known=True, shown=True),
                number(
                    "minutes",
                    15,
                    120,
                    step=15,
                    noun="length in minutes",
                    edit="make {it} a different length[, {value} minutes]",
                ),
                one_of("place", ("video", "our_office", "their_office")),
                status(("planned", "held", "cancelled"), drawn=("planned", "planned", "held")),
            ),
            handles=(Handle(("starts",), "the meeting of {starts} with {account}"),),
            count=7,
        ),
        Entity(
            "campaign",
            "campaigns",
            "CA",
            (
                word("name", "campaign", noun="campaign", known=True, shown=True, unique=True),
                day("starts_on", 5, 90, noun="first day"),
                amount("budget", 500, 12_000, step=10_000),
                number("guests", 0, 120, noun="number of guests"),
            ),
            handles=(Handle(("name",), 'the campaign "{name}"'),),
            count=5,
        ),
    ),
)


def _open(db: View, given: Given) -> Row:
    made = db.insert(
        "deals",
        account_id=given["account"]["id"],
        product=given["product"],
        value=given["value"],
        chance=20,
        closes_on=given["closes_on"],
        stage="new",
    )
    return {"deal_id": made["id"], "revenue": given["account"]["revenue"]}


def _qualify(db: View, given: Given) -> Row:
    db.update("deals", given["deal"]["id"], stage="qualified", chance=40)
    return {"value": given["deal"]["value"]}


def _win(db: View, given: Given) -> Row:
    deal = given["deal"]
    account = db.get("accounts", deal["account_id"])
    assert account is not None
    revenue = account["revenue"] + deal["value"]
    db.update("deals", deal["id"], stage="won", chance=100)
    db.update("accounts", account["id"], status="customer", revenue=revenue)
    return {"revenue": revenue}


def _lose(db: View, given: Given) -> Row:
    db.update("deals", given["deal"]["id"], stage="lost", chance=0)
    return {"value": given["deal"]["value"]}


def _quote(db: View, given: Given) -> Row:
    deal = given["deal"]
    total = deal["value"] * (100 - given["discount"]) // 100
    made = db.insert(
        "quotes",
        deal_id=deal["id"],
        total=total,
        discount=given["discount"],
        valid_until=given["until"],
        status="draft",
    )
    return {"quote_id": made["id"], "total": total}


def _send(db: View, given: Given) -> Row:
    quote = given["quote"]
    db.update("quotes", quote["id"], status="sent")
    db.update("deals", quote["deal_id"], stage="offered")
    return {"total": quote["total"]}


def _withdraw(db: View, given: Given) -> Row:
    db.update("quotes", given["quote"]["id"], status="withdrawn")
    return {"discount": given["quote"]["discount"]}


def _meet(db: View, given: Given) -> Row:
    made = db.insert(
        "meetings",
        account_id=given["account"]["id"],
        starts=f"{given['day']} 10:30",
        minutes=given["minutes"],
        place="video",
        status="planned",
    )
    return {"meeting_id": made["id"], "starts": f"{given['day']} 10:30"}


def _cancel_meeting(db: View, given: Given) -> Row:
    db.update("meetings", given["meeting"]["id"], status="cancelled")
    return {"minutes": given["meeting"]["minutes"]}


def _log(db: View, given: Given) -> Row:
    contact = given["contact"]
    db.update("contacts", contact["id"], last_spoken=db.today)
    return {"extension": contact["extension"]}


def _add_contact(db: View, given: Given) -> Row:
    made = db.insert(
        "contacts",
        account_id=given["account"]["id"],
        name=given["name"],
        role=given["role"],
        extension="ext. 000",
        last_spoken=db.today,
    )
    return {"contact_id": made["id"]}


def _invite(db: View, given: Given) -> Row:
    campaign = given["campaign"]
    db.update("campaigns", campaign["id"], guests=campaign["guests"] + given["guests"])
    return {"guests": campaign["guests"] + given["guests"], "starts_on": campaign["starts_on"]}


def _sleep(db: View, given: Given) -> Row:
    db.update("accounts", given["account"]["id"], status="dormant")
    return {"revenue": given["account"]["revenue"]}


LIVE = {"stage": ("new", "qualified", "offered")}
ACTIONS = (
    Action(
        "open_deal",
        "Open a deal with an account",
        {
            "account": Wants("account"),
            "product": says_word("deal.product", "product", "product"),
            "value": says_amount("deal.value", "value", 500, 60_000, step=10_000),
            "closes_on": says_day("deal.closes_on", "expected closing date", 20, 120),
        },
        _open,
        ("open a deal about {product} with {account}[, worth {value}, closing on {closes_on}]",),
        "the deal is open",
        tells=(
            tells_id("deal", "number of the deal"),
            tells("account", "revenue", "money", "yearly revenue with that account"),
        ),
        writes=("deals",),
    ),
    Action(
        "qualify_deal",
        "Move a new deal on to qualified",
        {"deal": Wants("deal", {"stage": ("new",)})},
        _qualify,
        ("qualify {deal}",),
        "the deal is qualified",
        tells=(tells("deal", "value", "money", "value of it"),),
        writes=("deals",),
        after={"deal": {"stage": "qualified"}},
    ),
    Action(
        "win_deal",
        "Note that an offered deal is won",
        {"deal": Wants("deal", {"stage": ("offered",)})},
        _win,
        ("we won {deal}; note it", "mark {deal} as won"),
        "the deal is won",
        tells=(tells("account", "revenue", "money", "yearly revenue with that account now"),),
        reads=("accounts",),
        writes=("deals", "accounts"),
        after={"deal": {"stage": "won"}},
    ),
    Action(
        "lose_deal",
        "Note that a deal is lost",
        {"deal": Wants("deal", LIVE)},
        _lose,
        ("we lost {deal}; note it", "mark {deal} as lost"),
        "the deal is closed",
        tells=(tells("deal", "value", "money", "value that it had"),),
        writes=("deals",),
        after={"deal": {"stage": "lost"}},
    ),
    Action(
        "write_quote",
        "Write a quote for a deal",
        {
            "deal": Wants("deal", {"stage": ("qualified", "offered")}),
            "discount": says_number("quote.discount", "discount in percent", 0, 20),
            "until": says_day("quote.valid_until", "last day of validity", 61, 90),
        },
        _quote,
        ("write a quote for {deal}[ with {discount} percent off, valid until {until}]",),
        "the quote is written",
        tells=(tells_id("quote", "number of the quote"), tells("quote", "total", "money", "total of the quote")),
        writes=("quotes",),
    ),
    Action(
        "send_quote",
        "Send a drafted quote; its deal counts as offered",
        {"quote": Wants("quote", {"status": ("draft",)})},
        _send,
        ("send {quote}",),
        "the quote is sent",
        tells=(tells("quote", "total", "money", "total of it"),),
        writes=("quotes", "deals"),
        after={"quote": {"status": "sent"}},
    ),
    Action(
        "withdraw_quote",
        "Withdraw a quote",
        {"quote": Wants("quote", {"status": ("draft", "sent")})},
        _withdraw,
        ("withdraw {quote}",),
        "the quote is withdrawn",
        tells=(tells("quote", "discount", "integer", "discount in percent that was in it"),),
        writes=("quotes",),
        after={"quote": {"status": "withdrawn"}},
    ),
    Action(
        "plan_meeting",
        "Plan a video meeting with an account",
        {
            "account": Wants("account"),
            "day": says_day("meeting.day", "day", 31, 60),
            "minutes": says_number("meeting.minutes", "length in minutes", 15, 120, step=15),
        },
        _meet,
        ("plan a meeting with {account}[ on {day}, {minutes} minutes]",),
        "the meeting is planned",
        tells=(
            tells_id("meeting", "number of the meeting"),
            tells("meeting", "starts", "clock", "time of that meeting"),
        ),
        writes=("meetings",),
    ),
    Action(
        "cancel_meeting",
        "Cancel a planned meeting",
        {"meeting": Wants("meeting", {"status": ("planned",)})},
        _cancel_meeting,
        ("cancel {meeting}", "call off {meeting}"),
        "the meeting is cancelled",
        tells=(tells("meeting", "minutes", "integer", "length in minutes it had"),),
        writes=("meetings",),
        after={"meeting": {"status": "cancelled"}},
    ),
    Action(
        "log_call",
        "Note a talk with a contact today",
        {"contact": Wants("contact")},
        _log,
        ("I spoke to {contact} today; note it",),
        "the talk is noted",
        tells=(tells("contact", "extension", "text", "extension of that contact"),),
        writes=("contacts",),
    ),
    Action(
        "add_contact",
        "Add a contact to an account",
        {
            "account": Wants("account"),
            "name": Says("contact.name", "text", lambda d, g: full_name(d), "name"),
            "role": says_one("contact.role", "role", ("buyer", "engineer", "director")),
        },
        _add_contact,
        ("add {name} as a contact to {account}[, role {role}]",),
        "the contact is added",
        tells=(tells_id("contact", "number of the contact"),),
        writes=("contacts",),
    ),
    Action(
        "invite_guests",
        "Add guests to a campaign",
        {"campaign": Wants("campaign"), "guests": says_number("campaign.guests", "number of guests", 1, 20)},
        _invite,
        ("add guests of mine to {campaign}[: {guests}]",),
        "they are invited",
        tells=(
            tells("campaign", "guests", "integer", "number of guests now"),
            tells("campaign", "starts_on", "date", "first day of it"),
        ),
        writes=("campaigns",),
    ),
    Action(
        "retire_account",
        "Mark an account as dormant",
        {"account": Wants("account", {"status": ("prospect", "customer")})},
        _sleep,
        ("mark {account} as dormant",),
        "the account sleeps",
        tells=(tells("account", "revenue", "money", "yearly revenue with it"),),
        writes=("accounts",),
        after={"account": {"status": "dormant"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="crm",
        title="A sales desk",
        role="You assist the sellers of a company with their customer records.",
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
