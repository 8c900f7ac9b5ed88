"""`environment.arithmetic`: the slot's laws, the calculator against fractions, splits, and how answers are read."""

import operator
import re
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import ToolError
from stackloom.plugins.environment.arithmetic import problems
from stackloom.plugins.environment.arithmetic.arithmetic import home
from stackloom.plugins.environment.arithmetic.calculator import (
    LARGEST,
    MAX_CHARS,
    calculate,
    exact,
    last_number,
    show,
)
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig, Kind
from stackloom.testing import EnvironmentContract

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
numbers = st.one_of(
    st.integers(0, 10**6).map(str), st.decimals(0, 1000, places=2, allow_nan=False).map(lambda number: f"{number:f}")
)
expressions = st.recursive(
    numbers.map(lambda text: (text, Fraction(text))),
    lambda inner: st.one_of(
        inner.map(lambda pair: (f"-({pair[0]})", -pair[1])),
        st.tuples(inner, st.sampled_from("+-*/"), inner)
        .filter(lambda parts: parts[1] != "/" or parts[2][1] != 0)
        .map(lambda parts: (f"({parts[0][0]} {parts[1]} {parts[2][0]})", SIGNS[parts[1]](parts[0][1], parts[2][1]))),
    ),
    max_leaves=6,
)
fractions = st.builds(Fraction, st.integers(-(10**12), 10**12), st.sampled_from((1, 2, 4, 5, 10, 100, 8, 1000)))


class TestDefaults(EnvironmentContract):
    plugin = "environment.arithmetic"


class TestFewKindsAndLargeNumbers(EnvironmentContract):
    plugin = "environment.arithmetic"
    options = {"kinds": ["discount", "sharing"], "unseen_kinds": ["recipe"], "largest": 1_000_000, "seed": 5}  # noqa: RUF012


# --- the calculator ---------------------------------------------------------------------------------------------------


@given(expressions)
def test_calculator_agrees_with_fractions(pair):
    text, value = pair
    assume(len(text) <= MAX_CHARS)
    try:
        found = calculate(text)
    except ToolError as refused:
        assert "10^" in str(refused)
    else:
        assert found == value


def test_precedence_and_association_are_the_usual():
    assert calculate("2 + 3 * 4") == 14
    assert calculate("100 - 20 - 3") == 77
    assert calculate("64 / 4 / 2") == 8
    assert calculate("-2 * -(3 + 1)") == 8


@given(st.decimals(0, 10**6, places=6, allow_nan=False), st.decimals(0, 10**6, places=6, allow_nan=False))
def test_decimals_are_exact(one, two):
    assert calculate(f"{one:f} + {two:f}") == Fraction(one) + Fraction(two)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "2 +",
        "(1",
        "1)",
        "2 ** 3",
        "7 // 2",
        "7 % 2",
        "1 / 0",
        "1 / (2 - 2)",
        "1e3",
        "0x10",
        "1_000",
        "1,000",
        "x",
        "().__class__",
        "__import__('os')",
        "1 if 1 else 2",
        "[1]",
        "1 == 1",
        "1; 2",
        "...",
        "()",
        "2(3)",
        "007",
        "1.2.3",
        "5 5",
        "1\n+1",
        "1\x00",
        "\u0661",
        "9" * 20,
        "9999999999 * 9999999999",
        "1 / 9999999999 / 9999999999",
        "1" * (MAX_CHARS + 1),
        "(" * 199,
        "-" * 200,
    ],
)
def test_anything_else_is_a_tool_error(expression):
    with pytest.raises(ToolError, match=r"\w"):
        calculate(expression)


@given(st.text(alphabet="0123456789.+-*/() ", max_size=MAX_CHARS))
def test_no_text_of_its_alphabet_does_more_than_count(text):
    try:
        assert abs(calculate(text)) <= LARGEST
    except ToolError as refused:
        assert str(refused)


@given(fractions)
def test_shown_value_that_ends_reads_as_itself(value):
    assert Fraction(show(value)) == value
    assert show(value) == exact(value)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**4))
def test_shown_value_that_does_not_end_is_near_and_says_so(above, below):
    value = Fraction(above, below)
    assume(not exact(value))
    text = show(value)
    assert text.startswith("about ")
    assert abs(Fraction(text.removeprefix("about ")) - value) <= abs(value) * Fraction(1, 10**9)


# --- the splits -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(20, 500))
@settings(max_examples=25)
def test_no_problem_of_one_split_is_in_the_other_whatever_the_seeds(one, two, largest):
    train = ArithmeticConfig(seed=one, largest=largest).build().tasks("train", 27)
    held_out = ArithmeticConfig(seed=two, largest=largest, unseen_kinds=()).build().tasks("held-out", 27)
    steps = [{(task.kind, task.secret["steps"]) for task in tasks} for tasks in (train, held_out)]
    assert steps[0].isdisjoint(steps[1])


@given(st.sampled_from(sorted(problems.KINDS)), st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.randoms())
def test_order_of_the_numbers_does_not_move_a_problem_to_the_other_split(kind, values, rng):
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert home(kind, shuffled) == home(kind, values)


@pytest.mark.parametrize("kind", sorted(set(problems.TRAINED) - {"units"}))  # a question of units leaves out the factor
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_numbers_of_a_question_decide_its_split(kind, split):
    for task in ArithmeticConfig(kinds=[kind], unseen_kinds=[]).build().tasks(split, 40):
        numbers = [int(number) for number in re.findall(r"\d+", task.messages[-1].content)]
        assert home(kind, numbers) == split


def test_held_out_split_has_unseen_instances_and_unseen_kinds_and_says_which():
    environment = ArithmeticConfig().build()
    train = {task.kind for task in environment.tasks("train", 100)}
    held_out = [task.kind for task in environment.tasks("held-out", 190)]
    assert train == {f"trained/{kind}" for kind in problems.TRAINED}
    assert set(held_out) - train == {f"unseen/{kind}" for kind in problems.UNSEEN}
    assert {held_out.count(kind) for kind in held_out} == {10}


def test_config_names_every_kind():
    config = ArithmeticConfig()
    assert set(get_args(Kind)) == problems.KINDS.keys()
    assert set(config.kinds) == problems.TRAINED.keys()
    assert set(config.unseen_kinds) == problems.UNSEEN.keys()


def test_kind_that_is_trained_and_unseen_is_refused():
    with pytest.raises(ValueError, match="change"):
        ArithmeticConfig(kinds=["change"], unseen_kinds=["change"])


def test_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="train or held-out"):
        ArithmeticConfig().build().tasks("test", 1)


@given(st.sampled_from(sorted(problems.KINDS)), st.integers(20, 10**6), st.randoms(use_true_random=False))
def test_every_problem_has_an_answer_that_ends(kind, largest, rng):
    problem = problems.KINDS[kind](rng, largest)
    result = ""
    for step in problem.steps:
        result = show(calculate(step.format(result)))
    assert Fraction(result) >= 0
    assert 1 <= len(problem.steps) <= 2
    assert all(len(step) < MAX_CHARS for step in problem.steps)


def test_remainder_is_the_remainder():
    environment = ArithmeticConfig(kinds=["sharing"], unseen_kinds=[]).build()
    for task in environment.tasks("train", 50):
        things, people = map(int, task.secret["steps"][0].split(" / "))
        assert task.secret["answer"] == str(things % people)


def test_prompt_is_short():
    for split in ("train", "held-out"):
        for task in ArithmeticConfig().build().tasks(split, 52):
            assert sum(len(message.content) for message in task.messages) < 450


# --- how answers are read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", 42),
        ("$1,250.50", Fraction(2501, 2)),
        ("It costs \u20ac7.", 7),
        ("first 3, then 4", 4),
        ("-5", -5),
        ("\u22125 degrees", -5),
        ("-$5", -5),
        ("10-5", 5),
        ("10 - 5", 5),
        ("= .5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("6 / 3", 2),
        ("24 km2", 24),
        ("24km", 24),
        ("**42**", 42),
        ("\\boxed{42}", 42),
        ("42.0", 42),
        ("1\u202f000", 1000),
        ("1,2345", 2345),
        ("5/0", None),
        ("no number", None),
        ("x2", None),
        ("", None),
        ("9" * 100, None),
    ],
)
def test_last_number(text, value):
    assert last_number(text) == value


@given(fractions, st.sampled_from(("{}", "{}.", "${}", "The answer is {} dollars.", "7 and {}", "**{}**", "({})")))
def test_equal_numbers_are_one_answer_however_written(value, frame):
    assume("$" not in frame or value >= 0)
    environment = ArithmeticConfig().build()
    episode = environment.start(environment.tasks("train", 1)[0])
    plain = exact(value)
    whole, dot, rest = plain.partition(".")
    spellings = {plain, f"{int(whole):,}{dot}{rest}" if whole != "-0" else plain, plain + ("0" if dot else ".00")}
    said = {episode.answer([Message("assistant", frame.format(text))]) for text in spellings}
    assert said == {plain}


@given(fractions, fractions)
def test_different_numbers_are_different_answers(one, two):
    assume(one != two)
    assert exact(one) != exact(two)


def test_only_a_final_message_answers():
    environment = ArithmeticConfig().build()
    task = environment.tasks("train", 1)[0]
    episode, answer = environment.start(task), task.secret["answer"]
    right = Message("assistant", f"{answer}")
    calling = Message("assistant", f"{answer}", (ToolCall("calculator", {"expression": "1"}),))
    assert episode.reward([right]).value == 1
    assert episode.reward([Message("tool", answer)]).value == 0
    assert episode.reward([calling]).value == 0
    assert episode.reward([right, Message("user", "sure?")]).value == 0


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("calculator", {"expression": 3}),
        ToolCall("calculator", {"expression": "1", "digits": 2}),
        ToolCall("Calculator", {"expression": "1"}),
    ],
)
def test_arguments_must_be_the_tools(call):
    environment = ArithmeticConfig().build()
    with pytest.raises(ToolError, match="calculator"):
        environment.start(environment.tasks("train", 1)[0]).call(call)
