"""An office: calendars with meetings, invitations and rooms, mail with drafts and labels, and to-do lists."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import person_columns
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.rows import Draw
from stackloom.environments.world import View

LABELS = ("inbox", "archive", "follow_up", "finance", "travel")
PRIORITIES = ("low", "normal", "high")
ANSWERS = ("accepted", "declined", "tentative", "unanswered")


def _start(draw: Draw) -> str:
    return draw.clock(1, 20, hours=(8, 17))


BLUEPRINT = Blueprint(
    person="employee",
    entities=(
        Entity(
            "employee",
            "employees",
            "EM",
            (
                *person_columns(edit_email=False),
                Column(
                    "department",
                    "choice",
                    lambda d: d.rng.choice(("finance", "design", "sales", "legal")),
                    choices=("finance", "design", "sales", "legal"),
                ),
                Column(
                    "works_from",
                    "choice",
                    lambda d: d.rng.choice(("office", "home", "elsewhere")),
                    noun="place of work",
                    choices=("office", "home", "elsewhere"),
                    edit="set my place of work[ to {value}]",
                ),
                Column("leave_days", "integer", lambda d: d.rng.randint(6, 28), noun="number of leave days left"),
            ),
            count=5,
        ),
        Entity(
            "room",
            "rooms",
            "RM",
            (
                Column("name", "text", lambda d: d.one("room"), known=True, shown=True, unique=True),
                Column("seats", "integer", lambda d: d.rng.randint(4, 24), noun="number of seats"),
                Column(
                    "equipment",
                    "choice",
                    lambda d: d.rng.choice(("projector", "whiteboard", "video")),
                    choices=("projector", "whiteboard", "video"),
                    shown=True,
                ),
                Column("floor", "integer", lambda d: d.rng.randint(1, 9), noun="floor"),
            ),
            handles=(Handle(("name",), "room {name}"),),
            count=5,
        ),
        Entity(
            "event",
            "events",
            "EV",
            (
                Column("employee_id", "id", parent="employee", own=True),
                Column("title", "text", lambda d: d.one("meeting"), known=True, shown=True),
                Column("starts_at", "clock", _start, noun="start time", edit="move {it}[ to {value}]"),
                Column(
                    "minutes",
                    "integer",
                    lambda d: d.rng.choice((30, 45, 60, 90)),
                    noun="length in minutes",
                    low=5,
                    high=480,
                    edit="change the length of {it}[ to {value} minutes]",
                ),
                Column("room_id", "id", parent="room"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("scheduled", "scheduled", "cancelled")),
                    shown=True,
                    choices=("scheduled", "cancelled"),
                    asked=False,
                ),
            ),
            handles=(Handle(("title",), 'my meeting "{title}"'),),
            count=9,
        ),
        Entity(
            "invitation",
            "invitations",
            "IV",
            (
                Column("event_id", "id", parent="event", own=True),
                Column("guest", "text", lambda d: f"{d.one('first')} {d.one('last')}", known=True, shown=True),
                Column("answer", "choice", lambda d: d.rng.choice(ANSWERS), choices=ANSWERS),
                Column("sent_on", "date", lambda d: d.day(-20, -1), noun="date"),
            ),
            handles=(Handle(("guest",), "the invitation of {guest} to {event}"),),
            count=8,
        ),
        Entity(
            "email",
            "emails",
            "ML",
            (
                Column("employee_id", "id", parent="employee", own=True),
                Column("subject", "text", lambda d: d.one("subject"), known=True, shown=True),
                Column("sender", "text", lambda d: f"{d.one('first')} {d.one('last')}", shown=True, known=True),
                Column("received_at", "clock", lambda d: d.clock(-12, -1, step=1), noun="time of arrival"),
                Column(
                    "label",
                    "choice",
                    lambda d: d.rng.choice(LABELS),
                    choices=LABELS,
                    edit="put {it} under another label[: {value}]",
                ),
                Column("attachments", "integer", lambda d: d.rng.randint(0, 4), noun="number of attachments"),
                Column(
                    "state",
                    "choice",
                    lambda d: d.rng.choice(("unread", "read")),
                    choices=("unread", "read", "deleted"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(
                Handle(("subject",), 'the email "{subject}"'),
                Handle(("subject", "sender"), 'the email "{subject}" by {sender}'),
            ),
            count=9,
        ),
        Entity(
            "draft",
            "drafts",
            "DR",
            (
                Column("employee_id", "id", parent="employee", own=True),
                Column(
                    "to",
                    "email",
                    lambda d: f"{d.one('last').lower().replace('ö', 'o')}@{d.one('mail')}",
                    noun="recipient",
                    asked=False,
                    edit="address {it} to somebody else[: {value}]",
                ),
                Column("subject", "text", lambda d: d.one("subject"), known=True, shown=True),
                Column("saved_at", "clock", lambda d: d.clock(-5, -1, step=1), noun="time of saving"),
                Column(
                    "state",
                    "choice",
                    lambda d: d.rng.choice(("waiting", "waiting", "sent")),
                    choices=("waiting", "sent"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(Handle(("subject",), 'my draft "{subject}"'),),
            count=5,
        ),
        Entity(
            "todo",
            "todos",
            "TD",
            (
                Column("employee_id", "id", parent="employee", own=True),
                Column("title", "text", lambda d: d.one("task"), known=True, shown=True),
                Column(
                    "due_on",
                    "date",
                    lambda d: d.day(1, 30),
                    noun="due date",
                    edit="move the due date of {it}[ to {value}]",
                ),
                Column(
                    "priority",
                    "choice",
                    lambda d: d.rng.choice(PRIORITIES),
                    choices=PRIORITIES,
                    edit="set the priority of {it}[ to {value}]",
                ),
                Column(
                    "state",
                    "choice",
                    lambda d: d.rng.choice(("pending", "pending", "finished")),
                    shown=True,
                    asked=False,
                    choices=("pending", "finished"),
                ),
            ),
            handles=(Handle(("title",), 'the to-do "{title}"'),),
            count=7,
            noun="to-do",
        ),
    ),
)


def _schedule(db: View, given: Given) -> Row:
    made = db.insert(
        "events",
        employee_id=given["employee"]["id"],
        title=given["title"],
        starts_at=given["starts_at"],
        minutes=60,
        room_id=given["room"]["id"],
        status="scheduled",
    )
    return {"event_id": made["id"], "seats": given["room"]["seats"]}


def _room_is_free(db: View, given: Given) -> str:
    taken = db.select("events", room_id=given["room"]["id"], starts_at=given["starts_at"], status="scheduled")
    return "the room is taken at that time" if taken else ""


def _cancel(db: View, given: Given) -> Row:
    for invitation in db.select("invitations", event_id=given["event"]["id"]):
        db.update("invitations", invitation["id"], answer="declined")
    db.update("events", given["event"]["id"], status="cancelled")
    return {"starts_at": given["event"]["starts_at"]}


def _move_room(db: View, given: Given) -> Row:
    db.update("events", given["event"]["id"], room_id=given["room"]["id"])
    return {"floor": given["room"]["floor"], "starts_at": given["event"]["starts_at"]}


def _reschedule(db: View, given: Given) -> Row:
    db.update("events", given["event"]["id"], starts_at=given["starts_at"])
    return {"minutes": given["event"]["minutes"]}


def _invite(db: View, given: Given) -> Row:
    made = db.insert(
        "invitations", event_id=given["event"]["id"], guest=given["guest"], answer="unanswered", sent_on=db.today
    )
    return {"invitation_id": made["id"], "starts_at": given["event"]["starts_at"]}


def _uninvite(db: View, given: Given) -> Row:
    db.delete("invitations", given["invitation"]["id"])
    return {"sent_on": given["invitation"]["sent_on"]}


def _respond(db: View, given: Given) -> Row:
    db.update("invitations", given["invitation"]["id"], answer=given["answer"])
    return {"sent_on": given["invitation"]["sent_on"]}


def _delete_mail(db: View, given: Given) -> Row:
    db.update("emails", given["email"]["id"], state="deleted", label="archive")
    return {"received_at": given["email"]["received_at"]}


def _send(db: View, given: Given) -> Row:
    db.update("drafts", given["draft"]["id"], state="sent")
    return {"saved_at": given["draft"]["saved_at"]}


def _write(db: View, given: Given) -> Row:
    made = db.insert(
        "drafts",
        employee_id=given["employee"]["id"],
        to=given["to"],
        subject=given["subject"],
        saved_at=f"{db.today} 09:00",
        state="waiting",
    )
    return {"draft_id": made["id"]}


def _finish(db: View, given: Given) -> Row:
    db.update("todos", given["todo"]["id"], state="finished")
    return {"due_on": given["todo"]["due_on"]}


def _todo_from(db: View, given: Given) -> Row:
    email = given["email"]
    made = db.insert(
        "todos",
        employee_id=email["employee_id"],
        title=email["subject"],
        due_on=given["due_on"],
        priority="normal",
        state="pending",
    )
    db.update("emails", email["id"], state="read", label="follow_up")
    return {"todo_id": made["id"], "attachments": email["attachments"]}


def _take_leave(db: View, given: Given) -> Row:
    left = given["employee"]["leave_days"] - given["days"]
    db.update("employees", given["employee"]["id"], leave_days=left)
    db.insert(
        "events",
        employee_id=given["employee"]["id"],
        title="Annual leave",
        starts_at=f"{given['first_day']} 09:00",
        minutes=480 * given["days"],
        room_id=given["room"]["id"],
        status="scheduled",
    )
    return {"leave_days": left}


START = Says("event.starts_at", "clock", lambda d, g: d.clock(21, 40, hours=(8, 17)), "start time")
ACTIONS = (
    Action(
        "schedule_event",
        "Schedule a meeting of an hour in a room",
        {
            "employee": Wants("employee"),
            "room": Wants("room"),
            "title": Says("event.title", "text", lambda d, g: f"{d.one('meeting')} with {d.one('first')}", "title"),
            "starts_at": START,
        },
        _schedule,
        ('put a meeting "{title}" into my calendar, in {room}[, starting {starts_at}]',),
        "the meeting is in your calendar",
        tells=(
            Tells("event_id", "id", "event.id", "number of the new meeting"),
            Tells("seats", "integer", "room.seats", "number of seats in that room"),
        ),
        writes=("events",),
        pre=_room_is_free,
    ),
    Action(
        "cancel_event",
        "Cancel a meeting; all invitations count as declined",
        {"event": Wants("event", {"status": ("scheduled",)})},
        _cancel,
        ("cancel {event}", "call off {event}"),
        "the meeting is off",
        tells=(Tells("starts_at", "clock", "event.starts_at", "time at which it would have begun"),),
        writes=("events", "invitations"),
        after={"event": {"status": "cancelled"}},
    ),
    Action(
        "change_room",
        "Move a meeting to another room",
        {
            "event": Wants("event", {"status": ("scheduled",)}),
            "room": Wants(
                "room", where=lambda row, g: row["id"] != g["event"]["room_id"], why="it is in that room already"
            ),
        },
        _move_room,
        ("move {event} to {room}", "have {event} in {room} instead"),
        "the meeting has another room",
        tells=(
            Tells("floor", "integer", "room.floor", "floor of that room"),
            Tells("starts_at", "clock", "event.starts_at", "start time of that meeting"),
        ),
        writes=("events",),
    ),
    Action(
        "reschedule_event",
        "Move a scheduled meeting to another time",
        {"event": Wants("event", {"status": ("scheduled",)}), "starts_at": START},
        _reschedule,
        ("reschedule {event}[ to {starts_at}]", "have {event} at another time[: {starts_at}]"),
        "the meeting is moved",
        tells=(Tells("minutes", "integer", "event.minutes", "length of it in minutes"),),
        writes=("events",),
    ),
    Action(
        "invite_guest",
        "Invite somebody to a scheduled meeting",
        {
            "event": Wants("event", {"status": ("scheduled",)}),
            "guest": Says("invitation.guest", "text", lambda d, g: f"{d.one('first')} {d.one('last')}", "guest"),
        },
        _invite,
        ("invite {guest} to {event}", "add {guest} to {event}"),
        "the invitation is out",
        tells=(
            Tells("invitation_id", "id", "invitation.id", "number of the invitation"),
            Tells("starts_at", "clock", "event.starts_at", "start time of that meeting"),
        ),
        writes=("invitations",),
    ),
    Action(
        "withdraw_invitation",
        "Take an invitation back",
        {"invitation": Wants("invitation")},
        _uninvite,
        ("withdraw {invitation}", "take back {invitation}"),
        "the invitation is withdrawn",
        tells=(Tells("sent_on", "date", "invitation.sent_on", "date on which it was sent"),),
        writes=("invitations",),
    ),
    Action(
        "record_answer",
        "Record what a guest answered",
        {
            "invitation": Wants("invitation", {"answer": ("unanswered", "tentative")}),
            "answer": Says(
                "invitation.answer",
                "choice",
                lambda d, g: d.rng.choice(("accepted", "declined")),
                "answer",
                choices=("accepted", "declined"),
            ),
        },
        _respond,
        ("record the answer to {invitation}[: {answer}]",),
        "the reply is recorded",
        tells=(Tells("sent_on", "date", "invitation.sent_on", "date on which it was sent"),),
        writes=("invitations",),
    ),
    Action(
        "delete_email",
        "Delete an email",
        {"email": Wants("email", {"state": ("unread", "read")})},
        _delete_mail,
        ("delete {email}", "throw away {email}"),
        "the message is gone",
        tells=(Tells("received_at", "clock", "email.received_at", "time at which it had arrived"),),
        writes=("emails",),
        after={"email": {"state": "deleted"}},
    ),
    Action(
        "send_draft",
        "Send a draft that is waiting",
        {"draft": Wants("draft", {"state": ("waiting",)})},
        _send,
        ("send {draft}", "send off {draft}"),
        "the draft is on its way",
        tells=(Tells("saved_at", "clock", "draft.saved_at", "time at which it was last saved"),),
        writes=("drafts",),
        after={"draft": {"state": "sent"}},
    ),
    Action(
        "write_draft",
        "Begin a draft",
        {
            "employee": Wants("employee"),
            "to": Says(
                "draft.to",
                "email",
                lambda d, g: f"{d.rng.choice(('info', 'team', 'desk'))}{d.digits(2)}@{d.one('mail')}",
                "recipient",
            ),
            "subject": Says("draft.subject", "text", lambda d, g: f"{d.one('subject')} again", "subject"),
        },
        _write,
        ('begin a draft "{subject}" for me[, to {to}]',),
        "the draft is saved",
        tells=(Tells("draft_id", "id", "draft.id", "number of the draft"),),
        writes=("drafts",),
    ),
    Action(
        "finish_todo",
        "Tick a to-do off",
        {"todo": Wants("todo", {"state": ("pending",)})},
        _finish,
        ("tick off {todo}", "mark {todo} as done"),
        "the item is ticked off",
        tells=(Tells("due_on", "date", "todo.due_on", "date on which it was due"),),
        writes=("todos",),
        after={"todo": {"state": "finished"}},
    ),
    Action(
        "make_todo_of_email",
        "Make a to-do of an email and label it for follow-up",
        {
            "email": Wants("email", {"state": ("unread", "read")}),
            "due_on": Says("todo.due_on", "date", lambda d, g: d.day(2, 30), "due date"),
        },
        _todo_from,
        ("make a to-do of {email}[, due on {due_on}]",),
        "the to-do is on your list",
        tells=(
            Tells("todo_id", "id", "todo.id", "number of the to-do"),
            Tells("attachments", "integer", "email.attachments", "number of attachments of that email"),
        ),
        writes=("todos", "emails"),
    ),
    Action(
        "book_leave",
        "Book days of leave; the calendar shows them with the room that stays free",
        {
            "employee": Wants("employee"),
            "room": Wants("room"),
            "first_day": Says("event.first_day", "date", lambda d, g: d.day(21, 60), "first day"),
            "days": Says(
                "employee.leave_taken", "integer", lambda d, g: d.rng.randint(1, 5), "number of days", low=1, high=30
            ),
        },
        _take_leave,
        ("book leave for me; {room} stays free meanwhile[. It begins on {first_day} and lasts {days} days]",),
        "your leave is booked",
        tells=(Tells("leave_days", "integer", "employee.leave_days", "number of leave days left"),),
        writes=("employees", "events"),
        pre=lambda db, g: "" if g["days"] <= g["employee"]["leave_days"] else "there are fewer leave days than that",
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="calendar",
        title="Calendar and email",
        role="You assist the employees of a company with their calendar and their email.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=("Hi, {name} here.", "Morning, this is {name}.", "Hello, it's {name}.", "Hey, {name} from upstairs."),
    )
