"""A personnel office: employees, leave, expenses, trainings, equipment, reviews and openings."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Wants, read_words
from stackloom.environments.domains.people import address, full_name, person_columns
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
    says_other,
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

DEPARTMENTS = ("finance", "sales", "engineering", "legal", "operations")
LEAVES = ("holiday", "sick", "parental", "unpaid")
ITEMS = ("laptop", "phone", "badge", "car")

BLUEPRINT = Blueprint(
    person="employee",
    entities=(
        Entity(
            "employee",
            "employees",
            "EM",
            (
                *person_columns(edit_email=False),
                Column("address", "text", address, edit="change my home address[ to {value}]", noun="home address"),
                one_of("department", DEPARTMENTS),
                number("leave_left", 6, 30, noun="number of leave days left"),
                amount("salary", 2400, 7800, step=5000, noun="monthly salary"),
                Column(
                    "bank_account",
                    "text",
                    lambda d: f"GB{d.digits(2)} {d.digits(4)} {d.digits(4)}",
                    noun="bank account",
                    edit="change my bank account[ to {value}]",
                ),
            ),
            count=5,
        ),
        Entity(
            "leave",
            "leaves",
            "LV",
            (
                parent("employee", own=True),
                one_of("kind", LEAVES, noun="kind of leave"),
                day("first_day", 2, 90, noun="first day", known=True, shown=True),
                number("days", 1, 15, noun="number of days"),
                status(("asked", "approved", "refused", "taken_back"), drawn=("asked", "approved", "approved")),
            ),
            handles=(Handle(("first_day",), "my leave from {first_day}"),),
            count=7,
        ),
        Entity(
            "expense",
            "expenses",
            "EX",
            (
                parent("employee", own=True),
                word("purpose", "purpose", known=True, shown=True),
                amount("total", 8, 600, step=10),
                day("spent_on", -50, -2, noun="date of the expense"),
                status(("filed", "approved", "paid", "refused"), drawn=("filed", "filed", "approved", "paid")),
            ),
            handles=(Handle(("purpose",), 'my expense "{purpose}"'),),
            count=8,
        ),
        Entity(
            "training",
            "trainings",
            "TR",
            (
                word("name", "training", noun="training", known=True, shown=True, unique=True),
                clock("starts", 5, 60, hours=(8, 15), noun="start"),
                number("seats_left", 1, 20, noun="number of free seats"),
                Column("room", "text", lambda d: f"{d.rng.choice('NSEW')}{d.rng.randint(101, 420)}"),
            ),
            handles=(Handle(("name",), 'the training "{name}"'),),
            count=6,
        ),
        Entity(
            "enrolment",
            "enrolments",
            "EN",
            (
                parent("employee", own=True),
                parent("training"),
                Column("course", "text", lambda d: d.parent("training_id")["name"], known=True, shown=True),
                status(("enrolled", "finished", "cancelled"), drawn=("enrolled", "enrolled", "finished")),
                number("score", 40, 100, noun="score in points", most=100),
            ),
            handles=(Handle(("course",), 'my enrolment in "{course}"'),),
            count=6,
        ),
        Entity(
            "item",
            "items",
            "IT",
            (
                parent("employee", own=True),
                one_of("kind", ITEMS, noun="kind of item", known=True, shown=True),
                Column("serial", "text", lambda d: f"{d.rng.choice('CDFGH')}{d.digits(6)}", noun="serial number"),
                day("due_back", 20, 700, noun="date of return", edit="let me keep {it}[ until {value}]"),
                status(("lent", "returned", "lost"), drawn=("lent", "lent", "returned")),
            ),
            handles=(Handle(("kind",), "my company {kind}"),),
            count=7,
            noun="company item",
        ),
        Entity(
            "review",
            "reviews",
            "RW",
            (
                parent("employee", own=True),
                day("held_on", -300, -10, noun="date", known=True, shown=True),
                number("grade", 1, 6, noun="grade", most=6),
                Column("reviewer", "text", full_name),
                one_of("signed", ("yes", "no"), asked=False),
            ),
            handles=(Handle(("held_on",), "my review of {held_on}"),),
            count=4,
        ),
        Entity(
            "opening",
            "openings",
            "OP",
            (
                word("position", "position", known=True, shown=True, unique=True),
                one_of("department", DEPARTMENTS),
                number("applicants", 0, 60, noun="number of applicants"),
                day("closes_on", 4, 60, noun="closing date"),
            ),
            handles=(Handle(("position",), "the opening for a {position}"),),
            count=5,
        ),
    ),
)


def _ask(db: View, given: Given) -> Row:
    employee, days = given["employee"], given["days"]
    made = db.insert(
        "leaves",
        employee_id=employee["id"],
        kind=given["kind"],
        first_day=given["first_day"],
        days=days,
        status="asked",
    )
    db.update("employees", employee["id"], leave_left=employee["leave_left"] - days)
    return {"leave_id": made["id"], "leave_left": employee["leave_left"] - days}


def _approve(db: View, given: Given) -> Row:
    db.update("leaves", given["leave"]["id"], status="approved")
    return {"days": given["leave"]["days"]}


def _take_back(db: View, given: Given) -> Row:
    leave = given["leave"]
    employee = db.get("employees", leave["employee_id"])
    assert employee is not None
    left = employee["leave_left"] + leave["days"]
    db.update("leaves", leave["id"], status="taken_back")
    db.update("employees", employee["id"], leave_left=left)
    return {"leave_left": left}


def _file(db: View, given: Given) -> Row:
    made = db.insert(
        "expenses",
        employee_id=given["employee"]["id"],
        purpose=given["purpose"],
        total=given["total"],
        spent_on=given["spent_on"],
        status="filed",
    )
    return {"expense_id": made["id"]}


def _pay(db: View, given: Given) -> Row:
    db.update("expenses", given["expense"]["id"], status="paid")
    return {"total": given["expense"]["total"]}


def _enrol(db: View, given: Given) -> Row:
    training = given["training"]
    made = db.insert(
        "enrolments",
        employee_id=given["employee"]["id"],
        training_id=training["id"],
        course=training["name"],
        status="enrolled",
        score=0,
    )
    db.update("trainings", training["id"], seats_left=training["seats_left"] - 1)
    return {"enrolment_id": made["id"], "room": training["room"], "starts": training["starts"]}


def _leave_course(db: View, given: Given) -> Row:
    enrolment = given["enrolment"]
    training = db.get("trainings", enrolment["training_id"])
    assert training is not None
    db.update("enrolments", enrolment["id"], status="cancelled")
    db.update("trainings", training["id"], seats_left=training["seats_left"] + 1)
    return {"starts": training["starts"]}


def _lend(db: View, given: Given) -> Row:
    made = db.insert(
        "items",
        employee_id=given["employee"]["id"],
        kind=given["kind"],
        serial="K000000",
        due_back=given["until"],
        status="lent",
    )
    return {"item_id": made["id"]}


def _return(db: View, given: Given) -> Row:
    db.update("items", given["item"]["id"], status="returned")
    return {"serial": given["item"]["serial"]}


def _sign(db: View, given: Given) -> Row:
    db.update("reviews", given["review"]["id"], signed="yes")
    return {"grade": given["review"]["grade"], "reviewer": given["review"]["reviewer"]}


def _apply(db: View, given: Given) -> Row:
    opening = given["opening"]
    db.update("openings", opening["id"], applicants=opening["applicants"] + 1)
    return {"applicants": opening["applicants"] + 1, "closes_on": opening["closes_on"]}


def _move(db: View, given: Given) -> Row:
    db.update(
        "employees",
        given["employee"]["id"],
        department=given["department"],
        salary=given["employee"]["salary"] + 10_000,
    )
    return {"salary": given["employee"]["salary"] + 10_000}


ACTIONS = (
    Action(
        "ask_for_leave",
        "Ask for leave; its days are taken off at once",
        {
            "employee": Wants("employee"),
            "kind": says_one("leave.kind", "kind of leave", LEAVES),
            "first_day": says_day("leave.first_day", "first day", 91, 160),
            "days": says_number("leave.days", "number of days", 1, 5),
        },
        _ask,
        ("ask for leave for me[: {kind}, {days} days from {first_day}]",),
        "the leave is asked for",
        tells=(
            tells_id("leave", "number of the request"),
            tells("employee", "leave_left", "integer", "number of leave days left"),
        ),
        writes=("leaves", "employees"),
    ),
    Action(
        "approve_leave",
        "Approve leave that was asked for",
        {"leave": Wants("leave", {"status": ("asked",)})},
        _approve,
        ("approve {leave}",),
        "the leave is approved",
        tells=(tells("leave", "days", "integer", "number of days of it"),),
        writes=("leaves",),
        after={"leave": {"status": "approved"}},
    ),
    Action(
        "take_back_leave",
        "Take back leave that was asked for or approved",
        {"leave": Wants("leave", {"status": ("asked", "approved")})},
        _take_back,
        ("take back {leave}", "I will not need {leave}; take it back"),
        "the leave is taken back",
        tells=(tells("employee", "leave_left", "integer", "number of leave days left now"),),
        reads=("employees",),
        writes=("leaves", "employees"),
        after={"leave": {"status": "taken_back"}},
    ),
    Action(
        "file_expense",
        "File an expense",
        {
            "employee": Wants("employee"),
            "purpose": says_word("expense.purpose", "purpose", "purpose"),
            "total": says_amount("expense.total", "total", 8, 600, step=10),
            "spent_on": says_day("expense.spent_on", "date of the expense", -30, -1),
        },
        _file,
        ('file the expense "{purpose}" for me[: {total}, spent on {spent_on}]',),
        "the expense is filed",
        tells=(tells_id("expense", "number of the expense"),),
        writes=("expenses",),
    ),
    Action(
        "pay_expense",
        "Pay an approved expense out",
        {"expense": Wants("expense", {"status": ("approved",)})},
        _pay,
        ("pay {expense} out",),
        "the expense is paid out",
        tells=(tells("expense", "total", "money", "total of it"),),
        writes=("expenses",),
        after={"expense": {"status": "paid"}},
    ),
    Action(
        "enrol",
        "Enrol an employee in a training",
        {
            "employee": Wants("employee"),
            "training": Wants("training", where=lambda row, g: row["seats_left"] > 0, why="it is full"),
        },
        _enrol,
        ("enrol me in {training}", "put me down for {training}"),
        "you are enrolled",
        tells=(
            tells_id("enrolment", "number of the enrolment"),
            tells("training", "room", "text", "room of that training"),
            tells("training", "starts", "clock", "start of that training"),
        ),
        writes=("enrolments", "trainings"),
    ),
    Action(
        "cancel_enrolment",
        "Cancel an enrolment",
        {"enrolment": Wants("enrolment", {"status": ("enrolled",)})},
        _leave_course,
        ("cancel {enrolment}", "take me off {enrolment}"),
        "the enrolment is cancelled",
        tells=(tells("training", "starts", "clock", "time at which it would have begun"),),
        reads=("trainings",),
        writes=("enrolments", "trainings"),
        after={"enrolment": {"status": "cancelled"}},
    ),
    Action(
        "lend_item",
        "Lend a company item to an employee",
        {
            "employee": Wants("employee"),
            "kind": says_one("item.kind", "kind of item", ITEMS),
            "until": says_day("item.due_back", "date of return", 60, 700),
        },
        _lend,
        ("lend me a company item[: a {kind}, until {until}]",),
        "the item is lent",
        tells=(tells_id("item", "number of the loan"),),
        writes=("items",),
    ),
    Action(
        "return_item",
        "Take back a company item",
        {"item": Wants("item", {"status": ("lent",)})},
        _return,
        ("take back {item}", "note that I returned {item}"),
        "the item is back",
        tells=(tells("item", "serial", "text", "serial number of it"),),
        writes=("items",),
        after={"item": {"status": "returned"}},
    ),
    Action(
        "sign_review",
        "Note that an employee signs a review",
        {"review": Wants("review", {"signed": ("no",)})},
        _sign,
        ("I sign {review}; please note it",),
        "the signature is noted",
        tells=(
            tells("review", "grade", "integer", "grade in it"),
            tells("review", "reviewer", "text", "name of the reviewer"),
        ),
        writes=("reviews",),
        after={"review": {"signed": "yes"}},
    ),
    Action(
        "apply_for_opening",
        "Add an internal application to an opening",
        {"opening": Wants("opening")},
        _apply,
        ("put me down as an applicant for {opening}",),
        "you are among the applicants",
        tells=(
            tells("opening", "applicants", "integer", "number of applicants now"),
            tells("opening", "closes_on", "date", "closing date of it"),
        ),
        writes=("openings",),
    ),
    Action(
        "change_department",
        "Move an employee to another department with a raise",
        {
            "employee": Wants("employee"),
            "department": says_other("employee.department", "department", DEPARTMENTS, "employee", "department"),
        },
        _move,
        ("move me to another department[, namely {department}]",),
        "the move is noted",
        tells=(tells("employee", "salary", "money", "new monthly salary"),),
        writes=("employees",),
        pre=lambda db, g: "that is the department already" if g["department"] == g["employee"]["department"] else "",
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="hr",
        title="A personnel office",
        role="You work in the personnel office of a company.",
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
