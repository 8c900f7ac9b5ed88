"""An insurer: policies, claims, vehicles, payments, documents, experts and beneficiaries."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
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

KINDS = ("car", "home", "liability", "travel", "life")
RELATIONS = ("spouse", "child", "parent", "friend")

BLUEPRINT = Blueprint(
    person="holder",
    entities=(
        Entity(
            "holder",
            "holders",
            "HD",
            (
                *person_columns(),
                Column("address", "text", address, edit="change my address[ to {value}]"),
                one_of(
                    "payment",
                    ("yearly", "monthly"),
                    noun="way of payment",
                    edit="change my way of payment[ to {value}]",
                ),
                number("bonus_years", 0, 25, noun="number of claim-free years"),
                one_of(
                    "language",
                    ("english", "french", "german"),
                    edit="write to me in another language[, namely {value}]",
                ),
            ),
            count=5,
        ),
        Entity(
            "policy",
            "policies",
            "",
            (
                parent("holder", own=True),
                one_of("kind", KINDS, noun="kind of policy", known=True, shown=True),
                amount("premium", 40, 900, step=500, noun="yearly premium"),
                amount("excess", 0, 600, step=5000, noun="excess"),
                day("renews_on", 10, 360, noun="renewal date"),
                status(("running", "lapsed", "ended"), drawn=("running", "running", "running", "lapsed")),
            ),
            handles=(Handle(("id",), "policy {id}"), Handle(("kind",), "my {kind} policy")),
            count=9,
            known_id=True,
        ),
        Entity(
            "claim",
            "claims",
            "CL",
            (
                parent("policy", own=True),
                word("event", "event", known=True, shown=True),
                day("happened_on", -120, -3, noun="date of the event"),
                amount("asked", 50, 4000, step=500, noun="amount asked for"),
                status(("reported", "in_review", "settled", "withdrawn"), drawn=("reported", "in_review", "settled")),
            ),
            handles=(Handle(("event",), 'my claim "{event}"'),),
            count=8,
        ),
        Entity(
            "vehicle",
            "vehicles",
            "VH",
            (
                parent("policy", own=True),
                word("model", "car", known=True, shown=True),
                Column(
                    "plate",
                    "text",
                    lambda d: f"{d.rng.choice('BDKLN')}{d.rng.choice('AEHX')} {d.digits(4)}",
                    known=True,
                ),
                one_of("colour", ("black", "grey", "red", "white"), edit="change the colour of {it}[ to {value}]"),
                one_of("use", ("private", "work", "both"), edit="change the use of {it}[ to {value}]"),
                number(
                    "kilometres",
                    4_000,
                    180_000,
                    step=500,
                    noun="number of kilometres",
                    edit="set the kilometres of {it}[ to {value}]",
                ),
            ),
            handles=(Handle(("plate",), "the car with the plate {plate}"),),
            count=5,
        ),
        Entity(
            "payment",
            "payments",
            "PM",
            (
                parent("policy", own=True),
                day("due_on", -30, 60, noun="due date", known=True, shown=True),
                amount("total", 15, 900, step=50),
                status(("open", "paid", "late"), drawn=("open", "open", "paid", "late")),
            ),
            handles=(Handle(("due_on",), "the payment due on {due_on} of {policy}"),),
            count=7,
        ),
        Entity(
            "document",
            "documents",
            "DC",
            (
                parent("claim", own=True),
                word("name", "document", noun="document", known=True, shown=True),
                day("received_on", -90, -1, noun="date of receipt"),
                number("pages", 1, 30, noun="number of pages"),
            ),
            handles=(Handle(("name",), 'the document "{name}" of {claim}'),),
            count=7,
        ),
        Entity(
            "expert",
            "experts",
            "XP",
            (
                Column("name", "text", full_name, noun="expert's name", known=True, shown=True, unique=True),
                one_of("field", ("cars", "buildings", "medicine")),
                one_of("region", ("north", "south", "coast")),
                number("cases", 0, 20, noun="number of cases"),
                Column("direct_line", "text", lambda d: f"+44 20 {d.digits(4)} {d.digits(4)}", noun="direct line"),
            ),
            handles=(Handle(("name",), "expert {name}"),),
            count=5,
        ),
        Entity(
            "beneficiary",
            "beneficiaries",
            "BF",
            (
                parent("policy", own=True),
                Column("name", "text", full_name, known=True, shown=True),
                one_of("relation", RELATIONS, edit="change the relation of {it}[ to {value}]"),
                number(
                    "share",
                    10,
                    100,
                    step=10,
                    noun="share in percent",
                    most=100,
                    edit="change the share of {it}[ to {value}]",
                ),
            ),
            handles=(Handle(("name",), "{name} as a beneficiary of {policy}"),),
            count=4,
        ),
    ),
)


def _report(db: View, given: Given) -> Row:
    made = db.insert(
        "claims",
        policy_id=given["policy"]["id"],
        event=given["event"],
        happened_on=given["happened_on"],
        asked=given["asked"],
        status="reported",
    )
    return {"claim_id": made["id"], "excess": given["policy"]["excess"]}


def _withdraw(db: View, given: Given) -> Row:
    db.update("claims", given["claim"]["id"], status="withdrawn")
    return {"asked": given["claim"]["asked"]}


def _send_expert(db: View, given: Given) -> Row:
    expert = given["expert"]
    db.update("claims", given["claim"]["id"], status="in_review")
    db.update("experts", expert["id"], cases=expert["cases"] + 1)
    return {"direct_line": expert["direct_line"]}


def _settle(db: View, given: Given) -> Row:
    claim = given["claim"]
    policy = db.get("policies", claim["policy_id"])
    assert policy is not None
    paid = max(0, claim["asked"] - policy["excess"])
    db.update("claims", claim["id"], status="settled")
    db.update("policies", policy["id"], premium=policy["premium"] + 2000)
    return {"paid": paid}


def _end(db: View, given: Given) -> Row:
    db.update("policies", given["policy"]["id"], status="ended")
    return {"renews_on": given["policy"]["renews_on"]}


def _revive(db: View, given: Given) -> Row:
    db.update("policies", given["policy"]["id"], status="running", premium=given["policy"]["premium"] + 1000)
    return {"premium": given["policy"]["premium"] + 1000}


def _excess(db: View, given: Given) -> Row:
    db.update(
        "policies", given["policy"]["id"], excess=given["excess"], premium=max(1000, given["policy"]["premium"] - 1500)
    )
    return {"premium": max(1000, given["policy"]["premium"] - 1500)}


def _take_out(db: View, given: Given) -> Row:
    made = db.insert(
        "policies",
        holder_id=given["holder"]["id"],
        kind=given["kind"],
        premium=12_000,
        excess=given["excess"],
        renews_on="2027-05-18",
        status="running",
    )
    return {"policy_id": made["id"], "renews_on": "2027-05-18"}


def _pay(db: View, given: Given) -> Row:
    db.update("payments", given["payment"]["id"], status="paid")
    return {"total": given["payment"]["total"]}


def _add_document(db: View, given: Given) -> Row:
    made = db.insert(
        "documents", claim_id=given["claim"]["id"], name=given["document"], received_on=db.today, pages=given["pages"]
    )
    return {"document_id": made["id"]}


def _insure_car(db: View, given: Given) -> Row:
    made = db.insert(
        "vehicles",
        policy_id=given["policy"]["id"],
        model=given["model"],
        colour="grey",
        use="private",
        plate=given["plate"],
        kilometres=0,
    )
    return {"vehicle_id": made["id"], "premium": given["policy"]["premium"]}


def _name(db: View, given: Given) -> Row:
    made = db.insert(
        "beneficiaries",
        policy_id=given["policy"]["id"],
        name=given["name"],
        relation=given["relation"],
        share=given["share"],
    )
    return {"beneficiary_id": made["id"]}


RUNNING = {"status": ("running",)}
ACTIONS = (
    Action(
        "report_claim",
        "Report a claim on a running policy",
        {
            "policy": Wants("policy", RUNNING),
            "event": says_word("claim.event", "event", "event"),
            "happened_on": says_day("claim.happened_on", "date of the event", -20, -1),
            "asked": says_amount("claim.asked", "amount asked for", 50, 4000),
        },
        _report,
        ('report the claim "{event}" on {policy}[: it happened on {happened_on}, I ask for {asked}]',),
        "the claim is reported",
        tells=(tells_id("claim", "number of the claim"), tells("policy", "excess", "money", "excess of that policy")),
        writes=("claims",),
    ),
    Action(
        "withdraw_claim",
        "Withdraw a claim",
        {"claim": Wants("claim", {"status": ("reported", "in_review")})},
        _withdraw,
        ("withdraw {claim}", "take back {claim}"),
        "the claim is withdrawn",
        tells=(tells("claim", "asked", "money", "amount I had asked for"),),
        writes=("claims",),
        after={"claim": {"status": "withdrawn"}},
    ),
    Action(
        "send_expert",
        "Have an expert review a reported claim",
        {"claim": Wants("claim", {"status": ("reported",)}), "expert": Wants("expert")},
        _send_expert,
        ("have {expert} look at {claim}",),
        "the expert has the case",
        tells=(tells("expert", "direct_line", "text", "direct line of the expert"),),
        writes=("claims", "experts"),
        after={"claim": {"status": "in_review"}},
    ),
    Action(
        "settle_claim",
        "Settle a claim in review: what was asked less the excess",
        {"claim": Wants("claim", {"status": ("in_review",)})},
        _settle,
        ("settle {claim}",),
        "the claim is settled",
        tells=(Tells("paid", "money", "claim.paid", "amount that is paid"),),
        reads=("policies",),
        writes=("claims", "policies"),
        after={"claim": {"status": "settled"}},
    ),
    Action(
        "end_policy",
        "End a running policy at its renewal",
        {"policy": Wants("policy", RUNNING)},
        _end,
        ("end {policy}", "cancel {policy}"),
        "the policy ends",
        tells=(tells("policy", "renews_on", "date", "date on which it ends"),),
        writes=("policies",),
        after={"policy": {"status": "ended"}},
    ),
    Action(
        "revive_policy",
        "Revive a lapsed policy at a higher premium",
        {"policy": Wants("policy", {"status": ("lapsed",)})},
        _revive,
        ("revive {policy}", "bring {policy} back"),
        "the policy runs again",
        tells=(tells("policy", "premium", "money", "new yearly premium"),),
        writes=("policies",),
        after={"policy": {"status": "running"}},
    ),
    Action(
        "change_excess",
        "Change the excess of a running policy",
        {"policy": Wants("policy", RUNNING), "excess": says_amount("policy.excess", "excess", 650, 1200, step=5000)},
        _excess,
        ("change the excess of {policy}[ to {excess}]",),
        "the excess is changed",
        tells=(tells("policy", "premium", "money", "yearly premium now"),),
        writes=("policies",),
    ),
    Action(
        "take_out_policy",
        "Take out a new policy",
        {
            "holder": Wants("holder"),
            "kind": says_one("policy.kind", "kind of policy", KINDS),
            "excess": says_amount("policy.excess", "excess", 50, 600, step=5000),
        },
        _take_out,
        ("take out a new policy for me[: {kind}, excess {excess}]",),
        "the policy runs",
        tells=(
            tells_id("policy", "number of the policy"),
            tells("policy", "renews_on", "date", "date on which it renews"),
        ),
        writes=("policies",),
    ),
    Action(
        "pay_premium",
        "Take a payment that is open or late",
        {"payment": Wants("payment", {"status": ("open", "late")})},
        _pay,
        ("charge my card for {payment}",),
        "the payment is made",
        tells=(tells("payment", "total", "money", "total that I paid"),),
        writes=("payments",),
        after={"payment": {"status": "paid"}},
    ),
    Action(
        "add_document",
        "Add a document to a claim",
        {
            "claim": Wants("claim", {"status": ("reported", "in_review")}),
            "document": says_word("document.name", "document", "document"),
            "pages": says_number("document.pages", "number of pages", 1, 30),
        },
        _add_document,
        ('add the document "{document}" to {claim}[; it has {pages} pages]',),
        "the document is added",
        tells=(tells_id("document", "number of the document"),),
        writes=("documents",),
    ),
    Action(
        "insure_car",
        "Put another car on a running car policy",
        {
            "policy": Wants("policy", {"status": ("running",), "kind": ("car",)}),
            "model": says_word("vehicle.model", "model", "car"),
            "plate": Says("vehicle.plate", "text", lambda d, g: f"T{d.rng.choice('AEHX')} {d.digits(4)}", "plate"),
        },
        _insure_car,
        ("put another car on {policy}[: a {model} with the plate {plate}]",),
        "the car is insured",
        tells=(
            tells_id("vehicle", "number of the entry"),
            tells("policy", "premium", "money", "yearly premium of the policy"),
        ),
        writes=("vehicles",),
    ),
    Action(
        "name_beneficiary",
        "Name a beneficiary of a running policy",
        {
            "policy": Wants("policy", RUNNING),
            "name": Says("beneficiary.name", "text", lambda d, g: full_name(d), "name"),
            "relation": says_one("beneficiary.relation", "relation", RELATIONS),
            "share": says_number("beneficiary.share", "share in percent", 10, 100, step=10),
        },
        _name,
        ("name {name} as a beneficiary of {policy}[: relation {relation}, share {share} percent]",),
        "the beneficiary is named",
        tells=(tells_id("beneficiary", "number of the entry"),),
        writes=("beneficiaries",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="insurance",
        title="An insurance company",
        role="You serve the policy holders of an insurance company.",
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
