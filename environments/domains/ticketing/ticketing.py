"""A service desk: tickets, comments, devices, loans, access requests, outages and surveys."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import person_columns
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

PRIORITIES = ("low", "medium", "high", "urgent")
ROLES = ("viewer", "editor", "administrator")
RESOLUTIONS = ("fixed", "replaced", "explained", "duplicate")
KINDS = ("laptop", "phone", "monitor", "printer", "headset")
DESKS = ("network", "hardware", "accounts", "workplace")


BLUEPRINT = Blueprint(
    person="requester",
    entities=(
        Entity(
            "requester",
            "requesters",
            "RQ",
            (
                *person_columns(edit_email=False),
                Column(
                    "building",
                    "choice",
                    lambda d: d.rng.choice(("north", "south", "annex")),
                    edit="move me[ to the {value} building]",
                    choices=("north", "south", "annex"),
                ),
                Column("desk_number", "integer", lambda d: d.rng.randint(11, 480), noun="desk number"),
                Column("vip", "choice", lambda d: d.rng.choice(("yes", "no")), choices=("yes", "no"), asked=False),
            ),
            count=5,
        ),
        Entity(
            "agent",
            "agents",
            "AG",
            (
                Column(
                    "name",
                    "text",
                    lambda d: f"{d.one('first')} {d.one('last')}",
                    noun="agent's name",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                Column("team", "choice", lambda d: d.rng.choice(DESKS), choices=DESKS, shown=True),
                Column("load", "integer", lambda d: d.rng.randint(0, 14), noun="number of assigned tickets"),
            ),
            handles=(Handle(("name",), "agent {name}"),),
            count=5,
        ),
        Entity(
            "ticket",
            "tickets",
            "TK",
            (
                Column("requester_id", "id", parent="requester", own=True),
                Column("agent_id", "id", parent="agent"),
                Column("title", "text", lambda d: d.one("problem"), known=True, shown=True),
                Column("priority", "choice", lambda d: d.rng.choice(PRIORITIES), choices=PRIORITIES),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("opened", "in_progress", "solved")),
                    shown=True,
                    asked=False,
                    choices=("opened", "in_progress", "on_hold", "solved"),
                ),
                Column("opened_at", "clock", lambda d: d.clock(-20, -1, step=1), noun="time of opening"),
                Column("due_on", "date", lambda d: d.day(1, 14), noun="due date"),
                Column("resolution", "choice", lambda d: "none", choices=("none", *RESOLUTIONS), asked=False),
            ),
            handles=(Handle(("id",), "ticket {id}"), Handle(("title",), 'my ticket "{title}"')),
            count=9,
            known_id=True,
        ),
        Entity(
            "comment",
            "comments",
            "CT",
            (
                Column("ticket_id", "id", parent="ticket", own=True),
                Column("written_on", "date", lambda d: d.day(-18, -1), noun="date", known=True, shown=True),
                Column("minutes_spent", "integer", lambda d: d.rng.randrange(5, 95, 5), noun="number of minutes spent"),
                Column(
                    "visibility",
                    "choice",
                    lambda d: d.rng.choice(("public", "internal")),
                    choices=("public", "internal"),
                ),
            ),
            handles=(Handle(("written_on",), "the comment of {written_on} on {ticket}"),),
            count=8,
        ),
        Entity(
            "device",
            "devices",
            "DV",
            (
                Column("requester_id", "id", parent="requester", own=True),
                Column("kind", "choice", lambda d: d.rng.choice(KINDS), choices=KINDS, known=True, shown=True),
                Column("model", "text", lambda d: d.one("model"), known=True, shown=True),
                Column("bought_on", "date", lambda d: d.day(-130, -20), noun="date of purchase"),
                Column("value", "money", lambda d: d.money(60, 1900, step=100), noun="book value"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("in_use", "in_use", "in_repair")),
                    shown=True,
                    asked=False,
                    choices=("in_use", "in_repair", "retired"),
                ),
            ),
            handles=(Handle(("kind", "model"), "my {kind} ({model})"), Handle(("kind",), "my {kind}")),
            count=8,
        ),
        Entity(
            "loaner",
            "loaners",
            "LO",
            (
                Column("requester_id", "id", parent="requester", own=True),
                Column("kind", "choice", lambda d: d.rng.choice(KINDS), choices=KINDS, known=True, shown=True),
                Column(
                    "due_back",
                    "date",
                    lambda d: d.day(2, 30),
                    noun="date of return",
                    edit="let me keep {it}[ until {value}]",
                ),
                Column("deposit", "money", lambda d: d.money(0, 120, step=1000)),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("lent", "lent", "returned")),
                    choices=("lent", "returned"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(Handle(("kind",), "the {kind} I have on loan"),),
            count=5,
        ),
        Entity(
            "access_request",
            "access_requests",
            "AR",
            (
                Column("requester_id", "id", parent="requester", own=True),
                Column("application", "text", lambda d: d.one("application"), known=True, shown=True),
                Column("role", "choice", lambda d: d.rng.choice(ROLES), choices=ROLES),
                Column("until", "date", lambda d: d.day(10, 200), noun="end date"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("requested", "granted", "granted")),
                    shown=True,
                    asked=False,
                    choices=("requested", "granted", "revoked"),
                ),
            ),
            handles=(Handle(("application",), "my access to {application}"),),
            count=7,
            noun="access request",
        ),
        Entity(
            "survey",
            "surveys",
            "SV",
            (
                Column("ticket_id", "id", parent="ticket", own=True),
                Column(
                    "score",
                    "integer",
                    lambda d: d.rng.randint(1, 10),
                    low=1,
                    high=10,
                    edit="change the score of {it}[ to {value}]",
                ),
                Column("sent_on", "date", lambda d: d.day(-15, -1), noun="date", known=True, shown=True),
            ),
            handles=(Handle(("sent_on",), "the survey of {sent_on} on {ticket}"),),
            count=4,
        ),
    ),
)


def _open(db: View, given: Given) -> Row:
    agent = given["agent"]
    made = db.insert(
        "tickets",
        requester_id=given["requester"]["id"],
        agent_id=agent["id"],
        title=given["title"],
        priority=given["priority"],
        status="opened",
        opened_at=f"{db.today} 09:00",
        due_on="2026-05-25",
        resolution="none",
    )
    db.update("agents", agent["id"], load=agent["load"] + 1)
    return {"ticket_id": made["id"], "due_on": "2026-05-25"}


def _close(db: View, given: Given) -> Row:
    ticket = given["ticket"]
    agent = db.get("agents", ticket["agent_id"])
    assert agent is not None
    db.update("tickets", ticket["id"], status="solved", resolution=given["resolution"])
    db.update("agents", agent["id"], load=max(0, agent["load"] - 1))
    return {"opened_at": ticket["opened_at"]}


def _escalate(db: View, given: Given) -> Row:
    db.update("tickets", given["ticket"]["id"], priority=given["priority"], due_on="2026-05-20")
    return {"due_on": "2026-05-20"}


def _higher(db: View, given: Given) -> str:
    old, new = PRIORITIES.index(given["ticket"]["priority"]), PRIORITIES.index(given["priority"])
    return "" if new > old else f"the priority is {given['ticket']['priority']} already"


def _assign(db: View, given: Given) -> Row:
    ticket, agent = given["ticket"], given["agent"]
    old = db.get("agents", ticket["agent_id"])
    assert old is not None
    db.update("agents", old["id"], load=max(0, old["load"] - 1))
    db.update("agents", agent["id"], load=agent["load"] + 1)
    db.update("tickets", ticket["id"], agent_id=agent["id"], status="in_progress")
    return {"load": agent["load"] + 1, "due_on": ticket["due_on"]}


def _hold(db: View, given: Given) -> Row:
    db.update("tickets", given["ticket"]["id"], status="on_hold", due_on=given["until"])
    return {"priority": given["ticket"]["priority"]}


def _comment(db: View, given: Given) -> Row:
    made = db.insert(
        "comments",
        ticket_id=given["ticket"]["id"],
        written_on=db.today,
        minutes_spent=given["minutes"],
        visibility=given["visibility"],
    )
    return {"comment_id": made["id"], "opened_at": given["ticket"]["opened_at"]}


def _repair(db: View, given: Given) -> Row:
    db.update("devices", given["device"]["id"], status="in_repair")
    made = db.insert(
        "loaners",
        requester_id=given["device"]["requester_id"],
        kind=given["device"]["kind"],
        due_back=given["back_on"],
        deposit=0,
        status="lent",
    )
    return {"loaner_id": made["id"], "value": given["device"]["value"]}


def _retire(db: View, given: Given) -> Row:
    db.update("devices", given["device"]["id"], status="retired", value=0)
    return {"bought_on": given["device"]["bought_on"]}


def _return(db: View, given: Given) -> Row:
    db.update("loaners", given["loaner"]["id"], status="returned")
    return {"deposit": given["loaner"]["deposit"]}


def _request(db: View, given: Given) -> Row:
    made = db.insert(
        "access_requests",
        requester_id=given["requester"]["id"],
        application=given["application"],
        role=given["role"],
        until=given["until"],
        status="requested",
    )
    return {"access_request_id": made["id"]}


def _grant(db: View, given: Given) -> Row:
    db.update("access_requests", given["access_request"]["id"], status="granted")
    return {"until": given["access_request"]["until"]}


def _revoke(db: View, given: Given) -> Row:
    db.update("access_requests", given["access_request"]["id"], status="revoked")
    return {"until": given["access_request"]["until"]}


OPEN = {"status": ("opened", "in_progress")}
DUE = Tells("due_on", "date", "ticket.due_on", "due date of that ticket")
ACTIONS = (
    Action(
        "open_ticket",
        "Open a ticket and give it to an agent",
        {
            "requester": Wants("requester"),
            "agent": Wants("agent"),
            "title": Says(
                "ticket.title",
                "text",
                lambda d, g: f"{d.one('problem')} since {d.rng.choice(('Monday', 'Friday', 'noon'))}",
                "title",
            ),
            "priority": Says(
                "ticket.priority", "choice", lambda d, g: d.rng.choice(PRIORITIES), "priority", choices=PRIORITIES
            ),
        },
        _open,
        ('open a ticket "{title}" with {agent}[, priority {priority}]',),
        "the ticket is open",
        tells=(
            Tells("ticket_id", "id", "ticket.id", "number of the new ticket"),
            Tells("due_on", "date", "ticket.due_on", "due date of the new ticket"),
        ),
        writes=("tickets", "agents"),
    ),
    Action(
        "close_ticket",
        "Close a ticket with a resolution",
        {
            "ticket": Wants("ticket", OPEN),
            "resolution": Says(
                "ticket.resolution", "choice", lambda d, g: d.rng.choice(RESOLUTIONS), "resolution", choices=RESOLUTIONS
            ),
        },
        _close,
        ("close {ticket}[, resolution: {resolution}]", "mark {ticket} as solved[; the resolution is {resolution}]"),
        "the ticket is closed",
        tells=(Tells("opened_at", "clock", "ticket.opened_at", "time of its opening"),),
        reads=("agents",),
        writes=("tickets", "agents"),
        after={"ticket": {"status": "solved"}},
    ),
    Action(
        "escalate_ticket",
        "Raise the priority of a ticket",
        {
            "ticket": Wants("ticket", {**OPEN, "priority": ("low", "medium", "high")}),
            "priority": Says(
                "ticket.priority",
                "choice",
                lambda d, g: d.rng.choice(PRIORITIES[PRIORITIES.index(g["ticket"]["priority"]) + 1 :]),
                "priority",
                choices=PRIORITIES,
            ),
        },
        _escalate,
        ("escalate {ticket}[ to {priority}]", "raise the priority of {ticket}[ to {priority}]"),
        "the ticket is escalated",
        tells=(Tells("due_on", "date", "ticket.due_on", "new due date"),),
        writes=("tickets",),
        pre=_higher,
    ),
    Action(
        "assign_ticket",
        "Give a ticket to another agent",
        {
            "ticket": Wants("ticket", OPEN),
            "agent": Wants(
                "agent", where=lambda row, g: row["id"] != g["ticket"]["agent_id"], why="the ticket is theirs already"
            ),
        },
        _assign,
        ("give {ticket} to {agent}", "have {agent} take over {ticket}"),
        "the ticket has changed hands",
        tells=(Tells("load", "integer", "agent.load", "number of tickets that agent has now"), DUE),
        writes=("tickets", "agents"),
        after={"ticket": {"status": "in_progress"}},
    ),
    Action(
        "hold_ticket",
        "Put a ticket on hold until a date",
        {"ticket": Wants("ticket", OPEN), "until": Says("ticket.due_on", "date", lambda d, g: d.day(15, 40), "date")},
        _hold,
        ("put {ticket} on hold[ until {until}]",),
        "the ticket is paused",
        tells=(Tells("priority", "choice", "ticket.priority", "priority of that ticket"),),
        writes=("tickets",),
        after={"ticket": {"status": "on_hold"}},
    ),
    Action(
        "add_comment",
        "Add a comment to a ticket",
        {
            "ticket": Wants("ticket", OPEN),
            "minutes": Says(
                "comment.minutes_spent",
                "integer",
                lambda d, g: d.rng.randrange(5, 60, 5),
                "minutes spent",
                low=1,
                high=480,
            ),
            "visibility": Says(
                "comment.visibility",
                "choice",
                lambda d, g: d.rng.choice(("public", "internal")),
                "visibility",
                choices=("public", "internal"),
            ),
        },
        _comment,
        ("add a comment to {ticket}[: {minutes} minutes spent, visibility {visibility}]",),
        "the comment is added",
        tells=(
            Tells("comment_id", "id", "comment.id", "number of the comment"),
            Tells("opened_at", "clock", "ticket.opened_at", "time at which that ticket was opened"),
        ),
        writes=("comments",),
    ),
    Action(
        "send_to_repair",
        "Send a device to repair and lend another one of its kind",
        {
            "device": Wants("device", {"status": ("in_use",)}),
            "back_on": Says("loaner.due_back", "date", lambda d, g: d.day(5, 30), "date of return"),
        },
        _repair,
        ("have {device} repaired and lend me one meanwhile[; I bring that back on {back_on}]",),
        "the repair is arranged",
        tells=(
            Tells("loaner_id", "id", "loaner.id", "number of the loan"),
            Tells("value", "money", "device.value", "book value of the device"),
        ),
        writes=("devices", "loaners"),
        after={"device": {"status": "in_repair"}},
    ),
    Action(
        "retire_device",
        "Take a device out of use for good",
        {"device": Wants("device", {"status": ("in_use", "in_repair")})},
        _retire,
        ("retire {device}", "take {device} out of use"),
        "the device is taken out of use",
        tells=(Tells("bought_on", "date", "device.bought_on", "date of its purchase"),),
        writes=("devices",),
        after={"device": {"status": "retired", "value": 0}},
    ),
    Action(
        "return_loaner",
        "Take back a device on loan",
        {"loaner": Wants("loaner", {"status": ("lent",)})},
        _return,
        ("note that {loaner} is back", "take back {loaner}"),
        "the loan is closed",
        tells=(Tells("deposit", "money", "loaner.deposit", "deposit I get back"),),
        writes=("loaners",),
        after={"loaner": {"status": "returned"}},
    ),
    Action(
        "request_access",
        "Ask for access to an application",
        {
            "requester": Wants("requester"),
            "application": Says("access_request.application", "text", lambda d, g: d.one("application"), "application"),
            "role": Says("access_request.role", "choice", lambda d, g: d.rng.choice(ROLES), "role", choices=ROLES),
            "until": Says("access_request.until", "date", lambda d, g: d.day(20, 200), "end date"),
        },
        _request,
        ("request access to {application} for me[ as {role} until {until}]",),
        "the request is filed",
        tells=(Tells("access_request_id", "id", "access_request.id", "number of the request"),),
        writes=("access_requests",),
    ),
    Action(
        "grant_access",
        "Grant requested access",
        {"access_request": Wants("access_request", {"status": ("requested",)})},
        _grant,
        ("grant {access_request}", "approve {access_request}"),
        "the access works",
        tells=(Tells("until", "date", "access_request.until", "end date of it"),),
        writes=("access_requests",),
        after={"access_request": {"status": "granted"}},
    ),
    Action(
        "revoke_access",
        "Revoke granted access",
        {"access_request": Wants("access_request", {"status": ("granted",)})},
        _revoke,
        ("revoke {access_request}", "end {access_request}"),
        "the access has ended",
        tells=(Tells("until", "date", "access_request.until", "end date that it had"),),
        writes=("access_requests",),
        after={"access_request": {"status": "revoked"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="ticketing",
        title="An IT service desk",
        role="You run the service desk of a company.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hi, {name} here.",
            "Hello, this is {name}.",
            "Hey, {name} again.",
            "Good morning, {name} speaking.",
        ),
    )
