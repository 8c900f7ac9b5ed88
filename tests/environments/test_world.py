"""Worlds: a call is one transaction, snapshots are exact, declarations are enforced."""

import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.errors import ArtifactError, EngineError
from stackloom.core.slots.environment import ToolError
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.factory import Factory, Recipe, replay
from stackloom.environments.tools import call
from stackloom.environments.values import mentioned, parse, say
from stackloom.environments.world import World, commute, make_id

RETAIL = find_domain("retail")
BUILT = Factory(RETAIL, Recipe(tools=24)).build("world")

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def world():
    found = BUILT.world()
    yield found
    found.close()


def an_order(world, **where):
    return world.rows("orders", where)[0]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_refused_calls_leave_no_trace(data):
    world = BUILT.world()
    before, image = world.digest(), world.snapshot()
    tool = data.draw(st.sampled_from(sorted(RETAIL.tools.values(), key=lambda tool: tool.name)))
    ids = [row["id"] for rows in world.contents().values() for row in rows.values()]
    value = st.sampled_from(ids) | junk
    arguments = {item.name: data.draw(value) for item in tool.parameters if data.draw(st.integers(0, 9)) > 0}
    try:
        call(world, tool, arguments, RETAIL.today)
    except ToolError as refused:
        assert str(refused)
        assert (world.digest(), world.snapshot()) == (before, image)
    else:
        assert tool.writes or world.digest() == before
    world.close()


def test_a_call_that_breaks_half_way_leaves_no_trace(world):
    before = world.digest()
    tool = RETAIL.tools["cancel_order"]
    order = an_order(world)
    world.update("orders", order["id"], {"status": "pending"})
    before = world.digest()

    def breaks(db, given):
        db.update("orders", given["order"]["id"], status="cancelled")
        db.insert("returns", order_line_id="nobody", opened_on=db.today, reason="too_small", refund=1, status="open")

    broken = replace(tool, run=breaks, writes=frozenset({"orders", "returns"}))
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        call(world, broken, {"order_id": order["id"], "reason": "plans_changed"}, RETAIL.today)
    assert world.digest() == before


def test_a_false_post_condition_undoes_the_call(world):
    order = an_order(world)
    world.update("orders", order["id"], {"status": "pending"})
    before = world.digest()
    idle = replace(RETAIL.tools["cancel_order"], run=lambda db, given: {"refund": 0})
    with pytest.raises(EngineError, match="post-condition"):
        call(world, idle, {"order_id": order["id"], "reason": "plans_changed"}, RETAIL.today)
    assert world.digest() == before


@pytest.mark.parametrize("verb", ["reads", "writes"])
def test_a_tool_cannot_touch_a_table_that_it_does_not_declare(world, verb):
    def peeks(db, given):
        return db.select("reviews") if verb == "reads" else db.update("orders", given["order"]["id"], total=0)

    sly = replace(RETAIL.tools["get_order"], run=peeks)
    with pytest.raises(EngineError, match="does not declare"):
        call(world, sly, {"order_id": an_order(world)["id"]}, RETAIL.today)


def test_an_answer_out_of_its_schema_is_the_tools_fault(world):
    short = replace(RETAIL.tools["get_order"], run=lambda db, given: {"id": given["order"]["id"]})
    with pytest.raises(EngineError, match="its schema says"):
        call(world, short, {"order_id": an_order(world)["id"]}, RETAIL.today)


def test_restoring_a_snapshot_is_the_identity():
    world = BUILT.world()
    replay(RETAIL, world, BUILT.golden[:-1])
    middle, image = world.digest(), world.snapshot()
    first = replay(RETAIL, world, BUILT.golden[-1:]).texts
    end = world.digest()
    world.restore(image)
    assert (world.digest(), world.snapshot()) == (middle, image)
    assert replay(RETAIL, world, BUILT.golden[-1:]).texts == first  # ids of new rows are the same again
    assert world.digest() == end


@pytest.mark.parametrize("image", [b"", b"nothing", b"SQLite format 3\x00" + b"\xff" * 500])
def test_bytes_that_are_no_snapshot_are_refused(world, image):
    before = world.digest()
    with pytest.raises(ArtifactError):
        world.restore(image)
    assert world.digest() == before


def test_a_snapshot_of_another_domain_is_refused(world):
    other = Factory(find_domain("banking"), Recipe(tools=5)).build("x").world()
    with pytest.raises(ArtifactError, match="other tables"):
        world.restore(other.snapshot())


def test_a_world_in_a_file_is_the_same_world(tmp_path):
    url = f"sqlite:///{tmp_path / 'world.db'}"
    kept = BUILT.world(url)
    replay(RETAIL, kept, BUILT.golden)
    digest = kept.digest()
    kept.close()
    again = World(RETAIL.schema, url=url, salt=BUILT.seed)
    memory = BUILT.world()
    replay(RETAIL, memory, BUILT.golden)
    assert again.digest() == memory.digest() == digest
    again.restore(BUILT.world().snapshot())
    assert again.digest() == BUILT.world().digest()
    again.close()


def test_two_worlds_share_nothing():
    first, second = BUILT.world(), BUILT.world()
    before = second.digest()
    replay(RETAIL, first, BUILT.golden)
    assert second.digest() == before != first.digest()


def test_a_trial_leaves_nothing(world):
    before = world.snapshot()
    with world.trial():
        replay(RETAIL, world, BUILT.golden)
    assert world.snapshot() == before


def test_ids_cannot_be_guessed_from_others():
    first, second = (make_id("RO", f"{salt}/order/1") for salt in ("a", "b"))
    assert first != second


def test_reads_commute_and_a_read_of_what_is_written_does_not(world):
    world.update("orders", an_order(world)["id"], {"status": "pending"})
    order = an_order(world, status="pending")
    show, stop = RETAIL.tools["get_order"], RETAIL.tools["cancel_order"]
    seen = call(world, show, {"order_id": order["id"]}, RETAIL.today).view
    changed = call(world, stop, {"order_id": order["id"], "reason": "plans_changed"}, RETAIL.today).view
    customer = call(world, RETAIL.tools["get_customer"], {"customer_id": order["customer_id"]}, RETAIL.today).view
    assert commute(seen, seen)
    assert not commute(seen, changed)
    assert commute(customer, changed)


def test_conditions_are_refused_in_words(world):
    order = an_order(world)
    world.update("orders", order["id"], {"status": "shipped"})
    stop = RETAIL.tools["cancel_order"]
    with pytest.raises(ToolError, match="status is shipped, it must be pending"):
        call(world, stop, {"order_id": order["id"], "reason": "plans_changed"}, RETAIL.today)
    with pytest.raises(ToolError, match="there is no order 'RO-00000'"):
        call(world, stop, {"order_id": "RO-00000", "reason": "plans_changed"}, RETAIL.today)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("integer", True, "is a number, got bool"),
        ("integer", 1.5, "whole number"),
        ("integer", 10**30, "lies from"),
        ("money", float("nan"), "finite"),
        ("money", 1.005, "two decimals"),
        ("date", "2026-02-30", "is written like"),
        ("date", "2026-5-1", "is written like"),
        ("clock", "2026-05-01", "is written like"),
        ("text", " ", "1 to 300"),
        ("text", "a\x00b", "no text"),
        ("text", "\ud800", "no text"),
        ("text", None, "got nothing"),
    ],
)
def test_bad_values_are_refused_with_the_argument_named(kind, value, reason):
    with pytest.raises(ToolError, match=rf"^amount .*{reason}"):
        parse(kind, value, "amount")


@settings(max_examples=200, deadline=None)
@given(
    cents=st.integers(0, 10**8),
    day=st.dates(
        min_value=__import__("datetime").date(2026, 1, 1), max_value=__import__("datetime").date(2026, 12, 31)
    ),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
)
def test_what_is_said_is_what_is_mentioned(cents, day, hour, minute):
    moment = f"{day.isoformat()} {hour:02d}:{minute:02d}"
    assert mentioned(f"It is {say('money', cents)}.")["money"] == [cents]
    for text in (say("date", day.isoformat()), day.isoformat(), f"{day:%B} {day.day}", f"{day:%B} {day.day}, 2026"):
        assert mentioned(f"It is {text}.")["date"] == [day.isoformat()], text
    for text in (
        say("clock", moment),
        moment,
        f"{day:%B} {day.day} at {hour:02d}:{minute:02d}",
        f"{hour:02d}:{minute:02d} on {day.day} {day:%B}",
    ):
        found = mentioned(f"It is {text}.")
        assert (found["clock"], found["date"], found["number"]) == ([moment], [], []), text


@pytest.mark.parametrize("name", domain_names())
def test_every_domain_has_its_sixty_tools(name):
    assert len(find_domain(name).tools) >= 60
