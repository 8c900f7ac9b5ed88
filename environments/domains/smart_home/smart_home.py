"""A smart home: rooms, devices, scenes, schedules, sensors, guests and alarms."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Wants, read_words
from stackloom.environments.domains.people import full_name, person_columns
from stackloom.environments.domains.shorthand import (
    clock,
    day,
    number,
    one_of,
    parent,
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

MODES = ("comfort", "eco", "off")
SENSORS = ("smoke", "motion", "door", "leak", "window")

BLUEPRINT = Blueprint(
    person="resident",
    entities=(
        Entity(
            "resident",
            "residents",
            "RE",
            (
                *person_columns(),
                one_of("role", ("owner", "adult", "child"), asked=False),
                Column("pin", "text", lambda d: d.digits(4), noun="door PIN", edit="change my door PIN[ to {value}]"),
                number("devices_run", 0, 90, noun="number of devices switched today"),
            ),
            count=4,
        ),
        Entity(
            "room",
            "rooms",
            "RM",
            (
                word("name", "room", noun="room", known=True, shown=True, unique=True),
                number("degrees", 14, 25, noun="temperature in degrees", most=35),
                number("humidity", 25, 75, noun="humidity in percent", most=100),
                one_of("mode", MODES, noun="heating mode"),
            ),
            handles=(Handle(("name",), "the {name}"),),
            count=8,
        ),
        Entity(
            "device",
            "devices",
            "DV",
            (
                parent("resident", own=True),
                parent("room"),
                word("name", "device", noun="device", known=True, shown=True),
                number("watts", 3, 2000, noun="power in watts"),
                number("level", 0, 100, step=5, noun="level in percent", most=100),
                Column("firmware", "text", lambda d: f"v{d.rng.randint(1, 9)}.{d.rng.randint(0, 20)}"),
                status(("on", "off", "broken"), drawn=("on", "off", "off")),
            ),
            handles=(Handle(("name",), "my {name}"),),
            count=9,
        ),
        Entity(
            "scene",
            "scenes",
            "SC",
            (
                parent("resident", own=True),
                word("name", "scene", noun="scene", known=True, shown=True),
                number(
                    "brightness",
                    0,
                    100,
                    step=5,
                    noun="brightness in percent",
                    most=100,
                    edit="set the brightness of {it}[ to {value}]",
                ),
                one_of("music", ("none", "jazz", "piano", "news"), edit="change the music of {it}[ to {value}]"),
                number("runs", 0, 200, noun="number of runs"),
            ),
            handles=(Handle(("name",), 'my scene "{name}"'),),
            count=6,
        ),
        Entity(
            "schedule",
            "schedules",
            "SH",
            (
                parent("device", own=True),
                one_of(
                    "weekday",
                    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
                    known=True,
                    shown=True,
                ),
                clock("next_run", 1, 7, hours=(5, 23), step=15, noun="next run"),
                number(
                    "minutes",
                    10,
                    240,
                    step=10,
                    noun="length in minutes",
                    most=600,
                    edit="set the length of {it}[ to {value} minutes]",
                ),
                status(("armed", "paused"), drawn=("armed", "armed", "paused")),
            ),
            handles=(Handle(("weekday",), "the {weekday} schedule of {device}"),),
            count=7,
        ),
        Entity(
            "sensor",
            "sensors",
            "SN",
            (
                parent("room"),
                one_of("kind", SENSORS, noun="kind of sensor", known=True, shown=True),
                number("battery", 4, 100, noun="battery in percent", most=100),
                clock("last_seen", -3, 0, noun="last sign of life"),
                status(("quiet", "triggered", "muted"), drawn=("quiet", "quiet", "triggered")),
            ),
            handles=(Handle(("kind",), "the {kind} sensor of {room}"),),
            count=7,
        ),
        Entity(
            "guest_code",
            "guest_codes",
            "GC",
            (
                parent("resident", own=True),
                Column("guest", "text", full_name, known=True, shown=True),
                Column("code", "text", lambda d: d.digits(6)),
                day("ends_on", 1, 60, noun="last day", edit="let {it} work[ until {value}]"),
                status(("valid", "withdrawn"), drawn=("valid", "valid", "withdrawn")),
            ),
            handles=(Handle(("guest",), "the door code of {guest}"),),
            count=5,
            noun="guest code",
        ),
    ),
)


def _switch(db: View, given: Given, state: str, level: int) -> Row:
    device = given["device"]
    resident = db.get("residents", device["resident_id"])
    assert resident is not None
    db.update("devices", device["id"], status=state, level=level)
    db.update("residents", resident["id"], devices_run=resident["devices_run"] + 1)
    return {"watts": device["watts"], "devices_run": resident["devices_run"] + 1}


def _on(db: View, given: Given) -> Row:
    return _switch(db, given, "on", given["level"])


def _off(db: View, given: Given) -> Row:
    return _switch(db, given, "off", 0)


def _heat(db: View, given: Given) -> Row:
    room = given["room"]
    db.update("rooms", room["id"], degrees=given["degrees"], mode="comfort")
    return {"humidity": room["humidity"]}


def _mode(db: View, given: Given) -> Row:
    db.update("rooms", given["room"]["id"], mode=given["mode"])
    return {"degrees": given["room"]["degrees"]}


def _move(db: View, given: Given) -> Row:
    db.update("devices", given["device"]["id"], room_id=given["room"]["id"])
    return {"firmware": given["device"]["firmware"], "degrees": given["room"]["degrees"]}


def _run(db: View, given: Given) -> Row:
    scene = given["scene"]
    db.update("scenes", scene["id"], runs=scene["runs"] + 1)
    return {"brightness": scene["brightness"], "runs": scene["runs"] + 1}


def _make_scene(db: View, given: Given) -> Row:
    made = db.insert(
        "scenes",
        resident_id=given["resident"]["id"],
        name=given["name"],
        brightness=given["brightness"],
        music="none",
        runs=0,
    )
    return {"scene_id": made["id"]}


def _plan(db: View, given: Given) -> Row:
    device = given["device"]
    made = db.insert(
        "schedules",
        device_id=device["id"],
        weekday=given["weekday"],
        next_run=f"{db.today} 22:00",
        minutes=given["minutes"],
        status="armed",
    )
    return {"schedule_id": made["id"], "watts": device["watts"]}


def _pause(db: View, given: Given) -> Row:
    db.update("schedules", given["schedule"]["id"], status="paused")
    return {"next_run": given["schedule"]["next_run"]}


def _arm(db: View, given: Given) -> Row:
    db.update("schedules", given["schedule"]["id"], status="armed")
    return {"minutes": given["schedule"]["minutes"], "next_run": given["schedule"]["next_run"]}


def _mute(db: View, given: Given) -> Row:
    db.update("sensors", given["sensor"]["id"], status="muted")
    return {"last_seen": given["sensor"]["last_seen"], "battery": given["sensor"]["battery"]}


def _battery(db: View, given: Given) -> Row:
    db.update("sensors", given["sensor"]["id"], battery=100, status="quiet")
    return {"last_seen": given["sensor"]["last_seen"]}


def _invite(db: View, given: Given) -> Row:
    count = len(db.select("guest_codes"))
    made = db.insert(
        "guest_codes",
        resident_id=given["resident"]["id"],
        guest=given["guest"],
        code=str(700_000 + count),
        ends_on=given["until"],
        status="valid",
    )
    return {"guest_code_id": made["id"]}


def _withdraw(db: View, given: Given) -> Row:
    db.update("guest_codes", given["guest_code"]["id"], status="withdrawn")
    return {"code": given["guest_code"]["code"]}


WORKING = {"status": ("on", "off")}
ACTIONS = (
    Action(
        "switch_on",
        "Switch a device on at a level",
        {
            "device": Wants("device", {"status": ("off",)}),
            "level": says_number("device.level", "level in percent", 5, 100, step=5),
        },
        _on,
        ("switch on {device}[ at {level} percent]",),
        "the device is on",
        tells=(
            tells("device", "watts", "integer", "power in watts of it"),
            tells("resident", "devices_run", "integer", "number of devices switched today"),
        ),
        reads=("residents",),
        writes=("devices", "residents"),
        after={"device": {"status": "on"}},
    ),
    Action(
        "switch_off",
        "Switch a device off",
        {"device": Wants("device", {"status": ("on",)})},
        _off,
        ("switch off {device}", "turn {device} off"),
        "the device is off",
        tells=(
            tells("device", "watts", "integer", "power in watts it drew"),
            tells("resident", "devices_run", "integer", "number of devices switched today"),
        ),
        reads=("residents",),
        writes=("devices", "residents"),
        after={"device": {"status": "off", "level": 0}},
    ),
    Action(
        "set_temperature",
        "Heat a room to a temperature",
        {"room": Wants("room"), "degrees": says_number("room.degrees", "temperature in degrees", 15, 28)},
        _heat,
        ("heat {room}[ to {degrees} degrees]",),
        "the heating is set",
        tells=(tells("room", "humidity", "integer", "humidity in percent there"),),
        writes=("rooms",),
        after={"room": {"mode": "comfort"}},
    ),
    Action(
        "set_mode",
        "Set the heating mode of a room",
        {"room": Wants("room"), "mode": says_other("room.mode", "heating mode", MODES, "room", "mode")},
        _mode,
        ("set the heating mode of {room}[ to {mode}]",),
        "the mode is set",
        tells=(tells("room", "degrees", "integer", "temperature in degrees there"),),
        writes=("rooms",),
        pre=lambda db, g: "that is the mode already" if g["mode"] == g["room"]["mode"] else "",
    ),
    Action(
        "move_device",
        "Note that a device stands in another room",
        {
            "device": Wants("device", WORKING),
            "room": Wants(
                "room", where=lambda row, g: row["id"] != g["device"]["room_id"], why="it stands there already"
            ),
        },
        _move,
        ("{device} stands in {room} now; note it",),
        "the device is noted there",
        tells=(
            tells("device", "firmware", "text", "firmware of that device"),
            tells("room", "degrees", "integer", "temperature in degrees there"),
        ),
        writes=("devices",),
    ),
    Action(
        "run_scene",
        "Run a scene",
        {"scene": Wants("scene")},
        _run,
        ("start {scene}", "run {scene}"),
        "the scene runs",
        tells=(
            tells("scene", "brightness", "integer", "brightness in percent of it"),
            tells("scene", "runs", "integer", "number of runs now"),
        ),
        writes=("scenes",),
    ),
    Action(
        "make_scene",
        "Make a scene without music",
        {
            "resident": Wants("resident"),
            "name": says_word("scene.name", "name", "scene"),
            "brightness": says_number("scene.brightness", "brightness in percent", 5, 100, step=5),
        },
        _make_scene,
        ('make a scene "{name}" for me[ at a brightness of {brightness} percent]',),
        "the scene is made",
        tells=(tells_id("scene", "number of the scene"),),
        writes=("scenes",),
    ),
    Action(
        "plan_schedule",
        "Plan a weekly run of a device",
        {
            "device": Wants("device", WORKING),
            "weekday": says_one("schedule.weekday", "weekday", ("monday", "wednesday", "friday", "sunday")),
            "minutes": says_number("schedule.minutes", "length in minutes", 10, 240, step=10),
        },
        _plan,
        ("run {device} every week[ on {weekday}, for {minutes} minutes]",),
        "the schedule is armed",
        tells=(
            tells_id("schedule", "number of the schedule"),
            tells("device", "watts", "integer", "power in watts of that device"),
        ),
        writes=("schedules",),
    ),
    Action(
        "pause_schedule",
        "Pause an armed schedule",
        {"schedule": Wants("schedule", {"status": ("armed",)})},
        _pause,
        ("pause {schedule}",),
        "the schedule is paused",
        tells=(tells("schedule", "next_run", "clock", "run that is left out"),),
        writes=("schedules",),
        after={"schedule": {"status": "paused"}},
    ),
    Action(
        "arm_schedule",
        "Arm a paused schedule",
        {"schedule": Wants("schedule", {"status": ("paused",)})},
        _arm,
        ("arm {schedule} again",),
        "the schedule is armed",
        tells=(
            tells("schedule", "minutes", "integer", "length in minutes of it"),
            tells("schedule", "next_run", "clock", "next run of it"),
        ),
        writes=("schedules",),
        after={"schedule": {"status": "armed"}},
    ),
    Action(
        "mute_sensor",
        "Mute a sensor that was triggered",
        {"sensor": Wants("sensor", {"status": ("triggered",)})},
        _mute,
        ("mute {sensor}",),
        "the sensor is muted",
        tells=(
            tells("sensor", "last_seen", "clock", "last sign of life"),
            tells("sensor", "battery", "integer", "battery in percent of it"),
        ),
        writes=("sensors",),
        after={"sensor": {"status": "muted"}},
    ),
    Action(
        "replace_battery",
        "Note that a sensor has a new battery",
        {"sensor": Wants("sensor", where=lambda row, g: row["battery"] < 100, why="it is full")},
        _battery,
        ("{sensor} has a new battery; note it",),
        "the battery is noted",
        tells=(tells("sensor", "last_seen", "clock", "last sign of life before that"),),
        writes=("sensors",),
        after={"sensor": {"battery": 100}},
    ),
    Action(
        "give_guest_code",
        "Give a guest a door code until a date",
        {
            "resident": Wants("resident"),
            "guest": Says("guest_code.guest", "text", lambda d, g: full_name(d), "guest"),
            "until": says_day("guest_code.ends_on", "last day", 2, 60),
        },
        _invite,
        ("give {guest} a door code from me[ until {until}]",),
        "the code is given",
        tells=(tells_id("guest_code", "number of the entry"),),
        writes=("guest_codes",),
    ),
    Action(
        "withdraw_guest_code",
        "Withdraw a guest's door code",
        {"guest_code": Wants("guest_code", {"status": ("valid",)})},
        _withdraw,
        ("withdraw {guest_code}",),
        "the code is withdrawn",
        tells=(tells("guest_code", "code", "text", "code that it was"),),
        writes=("guest_codes",),
        after={"guest_code": {"status": "withdrawn"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="smart_home",
        title="A smart home",
        role="You run the smart home of a household.",
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
