"""A college office: students, courses, enrolments, assignments, exams, fees and dormitory rooms."""

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
    says_day,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

DEGREES = ("bachelor", "master", "doctorate")
FEES = ("tuition", "lab", "library", "sports")

BLUEPRINT = Blueprint(
    person="student",
    entities=(
        Entity(
            "student",
            "students",
            "ST",
            (
                *person_columns(edit_email=False),
                Column("address", "text", address, edit="change my home address[ to {value}]", noun="home address"),
                one_of("degree", DEGREES),
                number("credits", 10, 170, step=5, noun="number of credits"),
                Column("tutor", "text", full_name),
            ),
            count=5,
        ),
        Entity(
            "course",
            "courses",
            "CO",
            (
                word("name", "course", noun="course", known=True, shown=True, unique=True),
                Column("lecturer", "text", full_name),
                Column("hall", "text", lambda d: f"{d.rng.choice('ABCD')}{d.rng.randint(1, 30)}"),
                number("places_left", 1, 40, noun="number of free places"),
                number("credits", 2, 12, noun="number of credits"),
            ),
            handles=(Handle(("name",), "the course {name}"),),
            count=8,
        ),
        Entity(
            "enrolment",
            "enrolments",
            "EN",
            (
                parent("student", own=True),
                parent("course"),
                Column("subject", "text", lambda d: d.parent("course_id")["name"], known=True, shown=True),
                number("absences", 0, 8, noun="number of absences"),
                status(("enrolled", "passed", "dropped"), drawn=("enrolled", "enrolled", "passed")),
            ),
            handles=(Handle(("subject",), "my enrolment in {subject}"),),
            count=8,
        ),
        Entity(
            "assignment",
            "assignments",
            "AS",
            (
                parent("enrolment", own=True),
                word("name", "assignment", noun="assignment", known=True, shown=True),
                day("due_on", 1, 40, noun="due date"),
                number("points", 0, 100, noun="number of points", most=100),
                status(("set", "handed_in", "graded"), drawn=("set", "set", "handed_in", "graded")),
            ),
            handles=(Handle(("name",), "the {name} of {enrolment}"),),
            count=8,
        ),
        Entity(
            "exam",
            "exams",
            "EX",
            (
                parent("enrolment", own=True),
                clock("starts", 5, 60, hours=(8, 16), noun="time", known=True, shown=True),
                Column("hall", "text", lambda d: f"{d.rng.choice('EFG')}{d.rng.randint(1, 20)}"),
                number("seat", 1, 240, noun="seat number"),
                status(("registered", "withdrawn"), drawn=("registered", "registered", "withdrawn")),
            ),
            handles=(Handle(("starts",), "my exam of {starts}"),),
            count=6,
        ),
        Entity(
            "fee",
            "fees",
            "FE",
            (
                parent("student", own=True),
                one_of("kind", FEES, noun="kind of fee", known=True, shown=True),
                amount("total", 20, 1800, step=500),
                day("due_on", 2, 50, noun="due date", edit="move the due date of {it}[ to {value}]"),
                status(("open", "paid", "waived"), drawn=("open", "open", "paid")),
            ),
            handles=(Handle(("kind",), "my {kind} fee"),),
            count=7,
        ),
        Entity(
            "dorm_room",
            "dorm_rooms",
            "DM",
            (
                Column(
                    "name",
                    "text",
                    lambda d: f"{d.one('city')} House {d.rng.randint(1, 99)}",
                    noun="room",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                amount("rent", 180, 520, step=1000, noun="monthly rent"),
                number("beds_left", 1, 4, noun="number of free beds"),
                one_of("kitchen", ("shared", "own")),
            ),
            handles=(Handle(("name",), "the dormitory room {name}"),),
            count=5,
            noun="dormitory room",
        ),
        Entity(
            "tenancy",
            "tenancies",
            "TY",
            (
                parent("student", own=True),
                parent("dorm_room"),
                Column(
                    "place", "text", lambda d: d.parent("dorm_room_id")["name"], noun="room", known=True, shown=True
                ),
                day("until", 40, 300, noun="end date", edit="let me stay in {it}[ until {value}]"),
                status(("lived_in", "moved_out"), drawn=("lived_in", "lived_in", "moved_out")),
            ),
            handles=(Handle(("place",), "my place in {place}"),),
            count=4,
        ),
    ),
)


def _enrol(db: View, given: Given) -> Row:
    course = given["course"]
    made = db.insert(
        "enrolments",
        student_id=given["student"]["id"],
        course_id=course["id"],
        subject=course["name"],
        absences=0,
        status="enrolled",
    )
    db.update("courses", course["id"], places_left=course["places_left"] - 1)
    return {"enrolment_id": made["id"], "hall": course["hall"], "lecturer": course["lecturer"]}


def _drop(db: View, given: Given) -> Row:
    enrolment = given["enrolment"]
    course = db.get("courses", enrolment["course_id"])
    assert course is not None
    db.update("enrolments", enrolment["id"], status="dropped")
    db.update("courses", course["id"], places_left=course["places_left"] + 1)
    return {"absences": enrolment["absences"]}


def _pass(db: View, given: Given) -> Row:
    enrolment = given["enrolment"]
    course, student = db.get("courses", enrolment["course_id"]), db.get("students", enrolment["student_id"])
    assert course is not None
    assert student is not None
    total = student["credits"] + course["credits"]
    db.update("enrolments", enrolment["id"], status="passed")
    db.update("students", student["id"], credits=total)
    return {"credits": total}


def _hand_in(db: View, given: Given) -> Row:
    db.update("assignments", given["assignment"]["id"], status="handed_in")
    return {"due_on": given["assignment"]["due_on"]}


def _more_time(db: View, given: Given) -> Row:
    db.update("assignments", given["assignment"]["id"], due_on=given["until"])
    return {"points": given["assignment"]["points"]}


def _regrade(db: View, given: Given) -> Row:
    db.update("assignments", given["assignment"]["id"], status="handed_in")
    return {"points": given["assignment"]["points"]}


def _register(db: View, given: Given) -> Row:
    made = db.insert(
        "exams",
        enrolment_id=given["enrolment"]["id"],
        starts=f"{given['day']} 10:00",
        hall="E1",
        seat=1,
        status="registered",
    )
    return {"exam_id": made["id"], "starts": f"{given['day']} 10:00"}


def _withdraw(db: View, given: Given) -> Row:
    db.update("exams", given["exam"]["id"], status="withdrawn")
    return {"seat": given["exam"]["seat"], "hall": given["exam"]["hall"]}


def _pay(db: View, given: Given) -> Row:
    db.update("fees", given["fee"]["id"], status="paid")
    return {"total": given["fee"]["total"]}


def _waive(db: View, given: Given) -> Row:
    db.update("fees", given["fee"]["id"], status="waived")
    return {"total": given["fee"]["total"]}


def _move_in(db: View, given: Given) -> Row:
    room = given["dorm_room"]
    made = db.insert(
        "tenancies",
        student_id=given["student"]["id"],
        dorm_room_id=room["id"],
        place=room["name"],
        until=given["until"],
        status="lived_in",
    )
    db.update("dorm_rooms", room["id"], beds_left=room["beds_left"] - 1)
    return {"tenancy_id": made["id"], "rent": room["rent"]}


def _move_out(db: View, given: Given) -> Row:
    tenancy = given["tenancy"]
    room = db.get("dorm_rooms", tenancy["dorm_room_id"])
    assert room is not None
    db.update("tenancies", tenancy["id"], status="moved_out")
    db.update("dorm_rooms", room["id"], beds_left=room["beds_left"] + 1)
    return {"until": tenancy["until"]}


ENROLLED = {"status": ("enrolled",)}
ACTIONS = (
    Action(
        "enrol",
        "Enrol a student in a course",
        {
            "student": Wants("student"),
            "course": Wants("course", where=lambda row, g: row["places_left"] > 0, why="it is full"),
        },
        _enrol,
        ("enrol me in {course}", "sign me up for {course}"),
        "you are enrolled",
        tells=(
            tells_id("enrolment", "number of the enrolment"),
            tells("course", "hall", "text", "hall of that course"),
            tells("course", "lecturer", "text", "name of the lecturer"),
        ),
        writes=("enrolments", "courses"),
    ),
    Action(
        "drop_course",
        "Drop a course",
        {"enrolment": Wants("enrolment", ENROLLED)},
        _drop,
        ("drop {enrolment}", "take me out of {enrolment}"),
        "the course is dropped",
        tells=(tells("enrolment", "absences", "integer", "number of absences I had"),),
        reads=("courses",),
        writes=("enrolments", "courses"),
        after={"enrolment": {"status": "dropped"}},
    ),
    Action(
        "record_pass",
        "Note that a student passed a course",
        {"enrolment": Wants("enrolment", ENROLLED)},
        _pass,
        ("I passed; please note it in {enrolment}",),
        "the pass is noted",
        tells=(tells("student", "credits", "integer", "number of credits now"),),
        reads=("courses", "students"),
        writes=("enrolments", "students"),
        after={"enrolment": {"status": "passed"}},
    ),
    Action(
        "hand_in",
        "Note that an assignment was handed in",
        {"assignment": Wants("assignment", {"status": ("set",)})},
        _hand_in,
        ("I handed in {assignment}; please note it",),
        "the hand-in is noted",
        tells=(tells("assignment", "due_on", "date", "date on which it was due"),),
        writes=("assignments",),
        after={"assignment": {"status": "handed_in"}},
    ),
    Action(
        "give_more_time",
        "Give more time for an assignment",
        {
            "assignment": Wants("assignment", {"status": ("set",)}),
            "until": says_day("assignment.due_on", "new due date", 41, 70),
        },
        _more_time,
        ("give me more time for {assignment}[, until {until}]",),
        "there is more time now",
        tells=(tells("assignment", "points", "integer", "number of points for it so far"),),
        writes=("assignments",),
    ),
    Action(
        "ask_for_regrade",
        "Send a graded assignment back to be graded again",
        {"assignment": Wants("assignment", {"status": ("graded",)})},
        _regrade,
        ("I disagree with the points for {assignment}; have it graded again", "ask for a new grading of {assignment}"),
        "it will be graded again",
        tells=(tells("assignment", "points", "integer", "number of points it had"),),
        writes=("assignments",),
        after={"assignment": {"status": "handed_in"}},
    ),
    Action(
        "register_exam",
        "Register for an exam of a course",
        {"enrolment": Wants("enrolment", ENROLLED), "day": says_day("exam.day", "day", 61, 90)},
        _register,
        ("register me for an exam under {enrolment}[ on {day}]",),
        "you are registered",
        tells=(tells_id("exam", "number of the registration"), tells("exam", "starts", "clock", "time of that exam")),
        writes=("exams",),
    ),
    Action(
        "withdraw_exam",
        "Withdraw from an exam",
        {"exam": Wants("exam", {"status": ("registered",)})},
        _withdraw,
        ("withdraw me from {exam}", "I will not take {exam}; withdraw me"),
        "you are withdrawn",
        tells=(tells("exam", "seat", "integer", "seat number that I had"), tells("exam", "hall", "text", "hall of it")),
        writes=("exams",),
        after={"exam": {"status": "withdrawn"}},
    ),
    Action(
        "pay_fee",
        "Take the payment of a fee",
        {"fee": Wants("fee", {"status": ("open",)})},
        _pay,
        ("charge my card for {fee}",),
        "the fee is paid",
        tells=(tells("fee", "total", "money", "total of it"),),
        writes=("fees",),
        after={"fee": {"status": "paid"}},
    ),
    Action(
        "waive_fee",
        "Waive a fee that is no tuition",
        {"fee": Wants("fee", {"status": ("open",), "kind": ("lab", "library", "sports")})},
        _waive,
        ("waive {fee}",),
        "the fee is waived",
        tells=(tells("fee", "total", "money", "total that is waived"),),
        writes=("fees",),
        after={"fee": {"status": "waived"}},
    ),
    Action(
        "move_in",
        "Give a student a place in a dormitory room",
        {
            "student": Wants("student"),
            "dorm_room": Wants("dorm_room", where=lambda row, g: row["beds_left"] > 0, why="no bed is free"),
            "until": says_day("tenancy.until", "end date", 100, 300),
        },
        _move_in,
        ("give me a place in {dorm_room}[ until {until}]",),
        "the place is yours",
        tells=(
            tells_id("tenancy", "number of the contract"),
            tells("dorm_room", "rent", "money", "monthly rent there"),
        ),
        writes=("tenancies", "dorm_rooms"),
    ),
    Action(
        "move_out",
        "End a student's place in a dormitory",
        {"tenancy": Wants("tenancy", {"status": ("lived_in",)})},
        _move_out,
        ("I move out; end {tenancy}",),
        "the contract is ended",
        tells=(tells("tenancy", "until", "date", "date until which it would have run"),),
        reads=("dorm_rooms",),
        writes=("tenancies", "dorm_rooms"),
        after={"tenancy": {"status": "moved_out"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="education",
        title="A college office",
        role="You work in the student office of a college.",
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
