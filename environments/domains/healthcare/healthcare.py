"""A clinic's front desk: doctors, appointments, prescriptions, referrals, results and invoices."""

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
    says_one,
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

KINDS = ("check_up", "follow_up", "first_visit", "vaccination")
INSURERS = ("public", "private", "self_paying")

BLUEPRINT = Blueprint(
    person="patient",
    entities=(
        Entity(
            "patient",
            "patients",
            "PT",
            (
                *person_columns(),
                Column("address", "text", address, edit="change my address[ to {value}]"),
                one_of("insurance", INSURERS, noun="kind of insurance", edit="change my insurance[ to {value}]"),
                Column("born_on", "date", lambda d: d.day(-29_000, -7_000), noun="date of birth", known=True),
                number("visits", 1, 40, noun="number of visits"),
            ),
            count=5,
        ),
        Entity(
            "doctor",
            "doctors",
            "DR",
            (
                Column("name", "text", full_name, noun="doctor's name", known=True, shown=True, unique=True),
                word("specialty", "specialty", known=True, shown=True),
                Column("room", "text", lambda d: f"{d.rng.randint(1, 4)}{d.rng.randint(10, 48)}"),
                amount("fee", 40, 190, step=500),
            ),
            handles=(Handle(("name",), "Dr {name}"),),
            count=6,
            lookups=(("specialty",),),
        ),
        Entity(
            "appointment",
            "appointments",
            "AP",
            (
                parent("patient", own=True),
                parent("doctor"),
                clock("starts", 1, 30, hours=(8, 17), step=15, noun="time", known=True, shown=True),
                one_of("kind", KINDS, noun="kind of visit"),
                status(("booked", "kept", "cancelled"), drawn=("booked", "booked", "kept")),
            ),
            handles=(Handle(("starts",), "my appointment of {starts}"),),
            count=8,
        ),
        Entity(
            "prescription",
            "prescriptions",
            "RX",
            (
                parent("patient", own=True),
                word("medicine", "medicine", known=True, shown=True),
                number("milligrams", 5, 500, step=5, noun="dose in milligrams"),
                number("refills_left", 0, 5, noun="number of refills left", most=12),
                day("valid_until", 10, 300, noun="last day of validity"),
                status(("current", "ended"), drawn=("current", "current", "ended")),
            ),
            handles=(Handle(("medicine",), "my prescription of {medicine}"),),
            count=7,
        ),
        Entity(
            "result",
            "results",
            "RS",
            (
                parent("patient", own=True),
                word("test", "test", known=True, shown=True),
                day("taken_on", -60, -2, noun="date of the test"),
                one_of("verdict", ("normal", "to_discuss", "pending")),
                one_of("released", ("yes", "no"), asked=False),
            ),
            handles=(Handle(("test",), "the result of my test ({test})"),),
            count=6,
        ),
        Entity(
            "referral",
            "referrals",
            "RF",
            (
                parent("patient", own=True),
                word("clinic", "clinic", known=True, shown=True),
                day("written_on", -80, -1, noun="date of writing"),
                one_of("urgency", ("routine", "soon", "urgent")),
                status(("open", "used", "withdrawn"), drawn=("open", "open", "used")),
            ),
            handles=(Handle(("clinic",), "my referral to the {clinic}"),),
            count=5,
        ),
        Entity(
            "invoice",
            "invoices",
            "IN",
            (
                parent("patient", own=True),
                day("issued_on", -90, -3, noun="date", known=True, shown=True),
                amount("total", 20, 420, step=50),
                day("due_on", 3, 30, noun="due date", edit="move the due date of {it}[ to {value}]"),
                status(("open", "paid", "sent_to_insurer"), drawn=("open", "open", "paid")),
            ),
            handles=(Handle(("issued_on",), "the invoice of {issued_on}"),),
            count=6,
        ),
        Entity(
            "allergy",
            "allergies",
            "AL",
            (
                parent("patient", own=True),
                one_of("substance", ("penicillin", "latex", "nuts", "pollen", "iodine"), known=True, shown=True),
                one_of("severity", ("mild", "moderate", "severe"), edit="change the severity of {it}[ to {value}]"),
                day("noted_on", -900, -20, noun="date of the note"),
            ),
            handles=(Handle(("substance",), "my {substance} allergy"),),
            count=4,
        ),
    ),
)


def _book(db: View, given: Given) -> Row:
    doctor, patient = given["doctor"], given["patient"]
    made = db.insert(
        "appointments",
        patient_id=patient["id"],
        doctor_id=doctor["id"],
        starts=f"{given['day']} 09:30",
        kind=given["kind"],
        status="booked",
    )
    db.update("patients", patient["id"], visits=patient["visits"] + 1)
    return {"appointment_id": made["id"], "room": doctor["room"], "fee": doctor["fee"]}


def _move(db: View, given: Given) -> Row:
    appointment = given["appointment"]
    db.update("appointments", appointment["id"], starts=f"{given['day']} 11:15")
    return {"starts": f"{given['day']} 11:15"}


def _cancel(db: View, given: Given) -> Row:
    appointment = given["appointment"]
    patient = db.get("patients", appointment["patient_id"])
    assert patient is not None
    db.update("appointments", appointment["id"], status="cancelled")
    db.update("patients", patient["id"], visits=max(0, patient["visits"] - 1))
    return {"kind": appointment["kind"]}


def _hand_over(db: View, given: Given) -> Row:
    db.update("appointments", given["appointment"]["id"], doctor_id=given["doctor"]["id"])
    return {"room": given["doctor"]["room"], "fee": given["doctor"]["fee"]}


def _refill(db: View, given: Given) -> Row:
    prescription = given["prescription"]
    db.update("prescriptions", prescription["id"], refills_left=prescription["refills_left"] - 1)
    return {"refills_left": prescription["refills_left"] - 1, "milligrams": prescription["milligrams"]}


def _end(db: View, given: Given) -> Row:
    db.update("prescriptions", given["prescription"]["id"], status="ended", refills_left=0)
    return {"valid_until": given["prescription"]["valid_until"]}


def _release(db: View, given: Given) -> Row:
    db.update("results", given["result"]["id"], released="yes")
    return {"verdict": given["result"]["verdict"], "taken_on": given["result"]["taken_on"]}


def _refer(db: View, given: Given) -> Row:
    made = db.insert(
        "referrals",
        patient_id=given["patient"]["id"],
        clinic=given["clinic"],
        written_on=db.today,
        urgency=given["urgency"],
        status="open",
    )
    return {"referral_id": made["id"]}


def _withdraw(db: View, given: Given) -> Row:
    db.update("referrals", given["referral"]["id"], status="withdrawn")
    return {"written_on": given["referral"]["written_on"]}


def _pay(db: View, given: Given) -> Row:
    db.update("invoices", given["invoice"]["id"], status="paid")
    return {"total": given["invoice"]["total"]}


def _send(db: View, given: Given) -> Row:
    db.update("invoices", given["invoice"]["id"], status="sent_to_insurer")
    return {"due_on": given["invoice"]["due_on"]}


def _insured(db: View, given: Given) -> str:
    patient = db.get("patients", given["invoice"]["patient_id"])
    return "the patient pays for everything" if patient and patient["insurance"] == "self_paying" else ""


def _allergy(db: View, given: Given) -> Row:
    made = db.insert(
        "allergies",
        patient_id=given["patient"]["id"],
        substance=given["substance"],
        severity=given["severity"],
        noted_on=db.today,
    )
    return {"allergy_id": made["id"]}


BOOKED = {"status": ("booked",)}
ACTIONS = (
    Action(
        "book_appointment",
        "Book a visit to a doctor on a day",
        {
            "patient": Wants("patient"),
            "doctor": Wants("doctor"),
            "kind": says_one("appointment.kind", "kind of visit", KINDS),
            "day": says_day("appointment.day", "day", 31, 60),
        },
        _book,
        ("book me an appointment with {doctor}[: a {kind} on {day}]",),
        "the appointment is booked",
        tells=(
            tells_id("appointment", "number of the appointment"),
            tells("doctor", "room", "text", "room of the doctor"),
            tells("doctor", "fee", "money", "fee of the doctor"),
        ),
        writes=("appointments", "patients"),
    ),
    Action(
        "move_appointment",
        "Move a booked appointment to another day",
        {"appointment": Wants("appointment", BOOKED), "day": says_day("appointment.day", "day", 31, 60)},
        _move,
        ("move {appointment}[ to {day}]",),
        "the appointment is moved",
        tells=(tells("appointment", "starts", "clock", "new time of it"),),
        writes=("appointments",),
    ),
    Action(
        "cancel_appointment",
        "Cancel a booked appointment",
        {"appointment": Wants("appointment", BOOKED)},
        _cancel,
        ("cancel {appointment}", "call off {appointment}"),
        "the appointment is cancelled",
        tells=(tells("appointment", "kind", "choice", "kind of visit it was"),),
        reads=("patients",),
        writes=("appointments", "patients"),
        after={"appointment": {"status": "cancelled"}},
    ),
    Action(
        "change_doctor",
        "Give a booked appointment to another doctor",
        {
            "appointment": Wants("appointment", BOOKED),
            "doctor": Wants(
                "doctor", where=lambda row, g: row["id"] != g["appointment"]["doctor_id"], why="it is with that doctor"
            ),
        },
        _hand_over,
        ("let me see {doctor} at {appointment} instead",),
        "the doctor is changed",
        tells=(
            tells("doctor", "room", "text", "room of that doctor"),
            tells("doctor", "fee", "money", "fee of that doctor"),
        ),
        writes=("appointments",),
    ),
    Action(
        "refill_prescription",
        "Order a refill of a current prescription",
        {
            "prescription": Wants(
                "prescription",
                {"status": ("current",)},
                where=lambda row, g: row["refills_left"] > 0,
                why="no refill is left",
            )
        },
        _refill,
        ("order a refill for {prescription}", "refill {prescription}"),
        "the refill is ordered",
        tells=(
            tells("prescription", "refills_left", "integer", "number of refills left now"),
            tells("prescription", "milligrams", "integer", "dose in milligrams"),
        ),
        writes=("prescriptions",),
    ),
    Action(
        "end_prescription",
        "End a current prescription",
        {"prescription": Wants("prescription", {"status": ("current",)})},
        _end,
        ("end {prescription}", "I no longer take the medicine of {prescription}; end it"),
        "the prescription is ended",
        tells=(tells("prescription", "valid_until", "date", "date until which it was valid"),),
        writes=("prescriptions",),
        after={"prescription": {"status": "ended", "refills_left": 0}},
    ),
    Action(
        "release_result",
        "Release a result to the patient's file",
        {"result": Wants("result", {"released": ("no",), "verdict": ("normal", "to_discuss")})},
        _release,
        ("release {result} to me",),
        "the result is released",
        tells=(
            tells("result", "verdict", "choice", "verdict of the test"),
            tells("result", "taken_on", "date", "date of that test"),
        ),
        writes=("results",),
        after={"result": {"released": "yes"}},
    ),
    Action(
        "write_referral",
        "Write a referral to a clinic",
        {
            "patient": Wants("patient"),
            "clinic": says_word("referral.clinic", "clinic", "clinic"),
            "urgency": says_one("referral.urgency", "urgency", ("routine", "soon", "urgent")),
        },
        _refer,
        ("refer me to the {clinic}[, urgency {urgency}]",),
        "the referral is written",
        tells=(tells_id("referral", "number of the referral"),),
        writes=("referrals",),
    ),
    Action(
        "withdraw_referral",
        "Withdraw an open referral",
        {"referral": Wants("referral", {"status": ("open",)})},
        _withdraw,
        ("withdraw {referral}", "take back {referral}"),
        "the referral is withdrawn",
        tells=(tells("referral", "written_on", "date", "date on which it was written"),),
        writes=("referrals",),
        after={"referral": {"status": "withdrawn"}},
    ),
    Action(
        "pay_invoice",
        "Take the payment of an invoice",
        {"invoice": Wants("invoice", {"status": ("open",)})},
        _pay,
        ("charge my card for {invoice}", "let me pay {invoice}"),
        "the invoice is paid",
        tells=(tells("invoice", "total", "money", "total of it"),),
        writes=("invoices",),
        after={"invoice": {"status": "paid"}},
    ),
    Action(
        "send_to_insurer",
        "Send an open invoice to the patient's insurer",
        {"invoice": Wants("invoice", {"status": ("open",)})},
        _send,
        ("send {invoice} to my insurer",),
        "the insurer has it",
        tells=(tells("invoice", "due_on", "date", "date on which it is due"),),
        reads=("patients",),
        writes=("invoices",),
        pre=_insured,
        after={"invoice": {"status": "sent_to_insurer"}},
    ),
    Action(
        "note_allergy",
        "Note an allergy in a patient's file",
        {
            "patient": Wants("patient"),
            "substance": says_one(
                "allergy.substance", "substance", ("penicillin", "latex", "nuts", "pollen", "iodine")
            ),
            "severity": says_one("allergy.severity", "severity", ("mild", "moderate", "severe")),
        },
        _allergy,
        ("note an allergy in my file[: {substance}, {severity}]",),
        "the allergy is noted",
        tells=(tells_id("allergy", "number of the note"),),
        writes=("allergies",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="healthcare",
        title="A clinic's front desk",
        role="You work at the front desk of a clinic and never give medical advice.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hello, {name} here.",
            "Good morning, my name is {name}.",
            "Hi, this is {name}.",
            "Hello, I am {name}.",
        ),
    )
