"""The verifier: no right attempt scores 0, no wrong one scores 1, whatever the path."""

import asyncio
import itertools
from dataclasses import replace
from datetime import date, datetime
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stackloom.core.chat import Message, ToolCall
from stackloom.core.slots.environment import ToolError
from stackloom.environments import episodes
from stackloom.environments.acceptance import accept, answer_of, as_call, attempts, perform, possible
from stackloom.environments.agent_loop import judge
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.episodes import WorldEpisode
from stackloom.environments.factory import Factory, Recipe, run_step
from stackloom.environments.solver import solve
from stackloom.environments.statements import Statement, unstated
from stackloom.environments.verifier import matches, verify
from stackloom.environments.wording import report

FACTORIES = {
    (name, tools): Factory(find_domain(name), Recipe(tools=tools)) for name in domain_names() for tools in (4, 24)
}
tasks = st.builds(
    lambda key, seed: FACTORIES[key].build(str(seed)), st.sampled_from(sorted(FACTORIES)), st.integers(0, 10**9)
)
RETAIL = find_domain("retail")


def same(built, found):
    """An independent check that a world is the target: every way of renaming new rows is tried."""
    fresh, names = [], []
    for table, rows in built.target.items():
        old = {row["id"] for row in built.rows[table]}
        mine, goal = [i for i in found[table] if i not in old], [i for i in rows if i not in old]
        if len(mine) != len(goal):
            return False
        fresh.append([(table, i) for i in mine])
        names.append(
            [dict(zip([(table, i) for i in mine], order, strict=True)) for order in itertools.permutations(goal)]
        )
    parents = {
        (entity.plural, column.name): built.domain.blueprint.by_name[column.parent].plural
        for entity in built.domain.blueprint.entities
        for column in entity.columns
        if column.parent
    }
    for choice in itertools.product(*names):
        naming = {key: value for part in choice for key, value in part.items()}

        def renamed(table, row, naming=naming):
            return {
                key: naming.get((table if key == "id" else parents.get((table, key)), value), value)
                for key, value in row.items()
            }

        if all(
            sorted((renamed(table, row) for row in rows.values()), key=repr)
            == sorted(built.target[table].values(), key=repr)
            for table, rows in found.items()
        ):
            return True
    return False


@settings(max_examples=30, deadline=None)
@given(built=tasks)
def test_the_acceptance_suite_holds(built):
    judged = accept(built)
    wrong = [(item.attempt.kind, item.attempt.name, item.verdict.reason) for item in judged if not item.as_wanted]
    assert wrong == [], built.request.opening
    assert {"golden", "retry", "prefix"} <= {item.attempt.kind for item in judged}


def test_the_suite_holds_every_kind_of_attempt():
    kinds = {
        attempt.kind for built in (FACTORIES[key].build("kinds") for key in FACTORIES) for attempt in attempts(built)
    }
    right = {"golden", "order", "alternative", "retry", "detour"}
    assert kinds == right | {"prefix", "mutated", "extra", "idle", "unstated"}


@settings(max_examples=40, deadline=None)
@given(built=tasks, seed=st.integers(0, 10**6))
def test_no_chain_that_a_solver_finds_scores_0(built, seed):
    chain = solve(built, str(seed)).chain
    assume(chain is not None)  # one search in fifty gives up
    world = built.world()
    messages = list(perform(built, world, [as_call(built, step) for step in chain]))
    assert same(built, world.contents())
    final = answer_of(built, chain) or "All is done."
    assert verify(built, world, [*messages, Message("assistant", final)]).passed, built.request.opening


@settings(max_examples=60, deadline=None)
@given(built=tasks, seed=st.integers(0, 10**6), length=st.integers(0, 9))
def test_no_walk_that_ends_elsewhere_scores_1(built, seed, length):
    """Golden calls, other calls and repetitions in any order: the state is right if the check above says so."""
    rng, world = Random(seed), built.world()
    for _ in range(length):
        if rng.random() < 0.6:
            step = rng.choice(built.golden)
        else:
            step = possible(
                built, rng.choice(sorted(built.tools.values(), key=lambda tool: tool.name)), world.contents(), rng
            )
        try:
            if step is not None:
                run_step(built.domain, world, step)
        except ToolError:
            pass
    verdict = verify(built, world, [Message("assistant", report(built.wishes, built.statements))])
    assert verdict.components["state"] == same(built, world.contents())
    assert verdict.passed <= verdict.components["state"]


OTHER = {
    "money": st.integers(0, 10**6),
    "integer": st.integers(0, 10**4),
    "date": st.dates(date(2026, 1, 1), date(2026, 12, 31)).map(str),
    "clock": st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)).map(lambda moment: f"{moment:%Y-%m-%d %H:%M}"),
}


@settings(max_examples=60, deadline=None)
@given(built=tasks, data=st.data())
def test_no_other_value_scores_1_though_the_world_is_right(built, data):
    places = [place for place, statement in enumerate(built.statements) if statement.kind in OTHER]
    assume(places)
    place = data.draw(st.sampled_from(places))
    statement = built.statements[place]
    value = data.draw(OTHER[statement.kind])
    assume(value != statement.value)
    world = built.world()
    for step in built.golden:
        run_step(built.domain, world, step)
    said = [replace(item, value=value) if item is statement else item for item in built.statements]
    verdict = verify(built, world, [Message("assistant", report(built.wishes, said))])
    assert verdict.components["state"]
    assert not verdict.passed


def test_rows_made_in_another_order_are_the_same_rows_and_mixed_up_children_are_not():
    """Two new orders with two lines each: the lines may not change places, though each line and each order is there."""
    order = {"customer_id": "c", "total": 1}
    target = {"orders": {"1": {"id": "1", **order}, "2": {"id": "2", **order}}, "order_lines": {}}

    def lines(*pairs):
        return {str(n): {"id": str(n), "order_id": o, "product_name": p} for n, (o, p) in enumerate(pairs)}

    class Small:
        class Column:
            name, parent = "order_id", "order"

        class Orders:
            plural, columns = "orders", ()

        class Lines:
            plural = "order_lines"

    Small.by_table = {"orders": Small.Orders, "order_lines": Small.Lines}
    Small.by_name = {"order": Small.Orders}
    Small.Lines.columns = (Small.Column,)
    target["order_lines"] = lines(("1", "a"), ("1", "b"), ("2", "c"), ("2", "d"))
    swapped = {**target, "order_lines": lines(("2", "a"), ("2", "b"), ("1", "c"), ("1", "d"))}
    mixed = {**target, "order_lines": lines(("1", "a"), ("2", "b"), ("1", "c"), ("2", "d"))}
    assert next(matches(Small, {}, target, swapped), None) is not None
    assert next(matches(Small, {}, target, mixed), None) is None
    assert (
        next(matches(Small, {"orders": frozenset("12")}, target, swapped), None) is None
    )  # known orders keep their ids


MONEY = Statement("money", 4250, "order.total", "the total")
NUMBER = Statement("integer", 3, "customer.order_count", "the number of orders")
DAY = Statement("date", "2026-06-04", "order.expected_on", "the delivery date")
STATUS = Statement("choice", "shipped", "order.status", "the status")
CODE = Statement("id", "RT-12345", "return.id", "the return number")
REFUND = Statement("money", 4250, "return.refund", "the refund")
CONTENTS = {table: {} for table in RETAIL.blueprint.by_table}  # no field holds anything


@pytest.mark.parametrize(
    ("statement", "text", "stated"),
    [
        (MONEY, "The total is $42.50.", True),
        (MONEY, "It comes to 42.50 dollars.", True),
        (MONEY, "USD 42.5 in all, for your order from 4 June.", True),
        (MONEY, "The total is $42.51.", False),
        (MONEY, "The total is $142.50.", False),
        (MONEY, "The total is $42.50 or $43.00.", False),
        (MONEY, "It isn't $42.50.", False),
        (MONEY, "It is not $41.00, but $42.50.", False),
        (MONEY, "Is it $42.50?", False),
        (MONEY, "$42.50", True),
        (MONEY, "", False),
        (MONEY, "-$42.50 is the total.", False),
        (replace(MONEY, value=4200), "The total is 42 dollars.", True),
        (replace(MONEY, value=4200), "The total is 42.", True),
        (NUMBER, "You have 3 orders.", True),
        (NUMBER, "You have three orders.", True),
        (NUMBER, "You have 3 or 4 orders.", False),
        (NUMBER, "You have 13 orders.", False),
        (NUMBER, "The order of 3 May is here.", False),
        (replace(NUMBER, value=0), "You have no orders.", True),
        (replace(NUMBER, value=0), "You have no open orders.", True),
        (replace(NUMBER, value=0), "No problem, all is done.", False),
        (replace(NUMBER, value=1), "You have one order.", True),
        (replace(NUMBER, value=1), "The new one is on its way.", False),
        (NUMBER, "You have 3 orders; the price of the new one is on the bill.", True),
        (DAY, "It arrives on 4 June.", True),
        (DAY, "It arrives on June 4th, 2026.", True),
        (DAY, "It arrives on 2026-06-04.", True),
        (DAY, 'Your ticket "Badge does not work" is due on 4 June.', True),
        (DAY, "It arrives on 4 July.", False),
        (DAY, "It arrives between 4 June and 8 June.", False),
        (STATUS, "It is shipped.", True),
        (STATUS, "It is SHIPPED!", True),
        (STATUS, "It is shipped, or pending.", False),
        (STATUS, "It is unshipped.", False),
        (MONEY, "The store credit is $42.50.", False),
        (MONEY, "Store credit: $42.50", False),
        (MONEY, "Your order is cancelled, and its unit price is $42.50.", False),
        (MONEY, "The store credit is $42.50. The total is $42.50.", True),
        (MONEY, "The total in store credit is $42.50.", True),
        (MONEY, "Your store credit is untouched and you pay $42.50.", True),
        (MONEY, "Your store credit is untouched, you pay $42.50.", True),
        (REFUND, "You get the total of $42.50 back.", True),
        (REFUND, "We refunded the unit price, $42.50.", True),
        (REFUND, "We refunded the unit price of $42.50.", True),
        (REFUND, "You get the unit price of $42.50 back.", False),
        (NUMBER, "The number of stars is 3.", False),
        (DAY, "The order date is 4 June.", False),
        (DAY, "The last day of validity is 4 June.", False),
        (DAY, "The next delivery date is 4 June.", True),
        (CODE, "Your return is RT-12345.", True),
        (CODE, "Your return is RT-12345 for order RO-99999.", True),
        (CODE, "Your return is RT-12345 or RT-12346.", False),
        (CODE, "Your return is RT-123456.", False),
    ],
)
def test_a_statement_is_read_as_people_write_it(statement, text, stated):
    assert (unstated(RETAIL, [(statement, statement.value)], text, "", CONTENTS) == "") == stated


def test_a_name_under_which_a_row_holds_the_value_is_not_wrong():
    line = {"l": {"quantity": 1, "unit_price": 4250}}
    text = "You get the unit price of $42.50 back."
    assert unstated(RETAIL, [(REFUND, 4250)], text, "", {**CONTENTS, "order_lines": line}) == ""


def test_values_that_the_user_said_may_be_repeated():
    text = "I moved $250.00; the total is $42.50."
    assert unstated(RETAIL, [(MONEY, 4250)], text, "Move $250 for me.", CONTENTS) == ""
    assert unstated(RETAIL, [(MONEY, 4250)], text, "Move it for me.", CONTENTS) != ""


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200), statement=st.sampled_from([MONEY, NUMBER, DAY, STATUS, CODE]))
def test_any_text_is_judged_without_a_crash(text, statement):
    unstated(RETAIL, [(statement, statement.value)], text, text[::-1], CONTENTS)


@settings(max_examples=15, deadline=None)
@given(built=tasks)
def test_judging_changes_nothing_and_does_not_depend_on_when(built):
    episode = WorldEpisode(built)
    for step in built.golden:
        made = as_call(built, step)
        episode.call(ToolCall(made.tool, made.arguments))
    final = [Message("assistant", report(built.wishes, built.statements))]
    before = episode.snapshot()
    assert [episode.reward(final).value for _ in range(3)] == [1.0] * 3
    assert episode.snapshot() == before
    episode.restore(built.world().snapshot())
    assert episode.reward(final).value == float(not built.recorded[0][1])


def test_a_crash_of_the_verifier_is_masked_not_scored(monkeypatch):
    built = FACTORIES["retail", 4].build("crash")

    def broken(*given):
        raise RuntimeError("no verdict")

    monkeypatch.setattr(episodes, "verify", broken)
    reward, answer = judge(WorldEpisode(built), [Message("assistant", "Done.")])
    assert (reward.valid, answer) == (False, None)
    assert "no verdict" in reward.reason


def test_an_agent_reaches_no_tool_beyond_its_own_and_nothing_of_the_target():
    built = FACTORIES["retail", 4].build("reach")
    episode = WorldEpisode(built)
    for name in (*RETAIL.tools, "reward", "snapshot", "world", "__class__"):
        if name not in built.tools:
            with pytest.raises(ToolError, match="there is no tool"):
                episode.call(ToolCall(name, {}))


def test_parallel_attempts_give_the_same_transcripts_as_serial_ones():
    built = [FACTORIES[key].build("parallel") for key in sorted(FACTORIES)]

    async def attempt(task):
        world, texts = task.world(), []
        for step in task.golden:
            texts.append(run_step(task.domain, world, step).text)
            await asyncio.sleep(0)
        return texts

    async def together():
        return await asyncio.gather(*(attempt(task) for task in built))

    assert asyncio.run(together()) == [list(task.recorded[0][0]) for task in built]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The number of bags is 5.", True),
        ("The number of bags is 5. You have 4 bookings.", True),
        ("The number of bags is 5. Or is it rather 4.", False),
        ("The number of bags is 5 or 4.", False),
        ("The number of bags is 5. Maybe it is 4.", False),
        ("The number of bags is 5. Write again or call us!", True),
    ],
)
def test_a_second_value_that_is_offered_spoils_the_first_even_if_the_user_said_it(text, right):
    statement = Statement("integer", 5, "booking.bags", "number of bags")
    contents = {entity.plural: {} for entity in RETAIL.blueprint.entities}
    found = unstated(RETAIL, [(statement, 5)], text, "I want 4 of them.", contents)
    assert (found == "") is right
