"""Answers are found, brought to one form and compared; nothing in a model's text can hang or break that."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.chat import Message, ToolCall
from stackloom.plugins.reasoner.answers import Equality, extract, number


def said(text: str, how: str = "auto", **fields: object) -> str | None:
    return extract(Message("assistant", text, **fields), how)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is 1,024.0.", "1024"),
        ("**Answer:** 42 km", "42"),
        ("First I thought the answer is 3. No: \\boxed{7}", "7"),
        ("I think the answer is Paris.", "paris"),
        ("PARIS", "paris"),
        ("-0.50", "-0.5"),
        ("The answer is 3/6.", "0.5"),
        ("The answer is 1/3", "1/3"),
        ("answer: 12%", "12%"),
        ('{"b": 1.0, "a": 2}', '{"a":2,"b":1}'),
        ("It is late.\nWho knows?", None),
        ("", None),
    ],
)
def test_auto_finds_what_is_marked_as_the_answer(text, answer):
    assert said(text) == answer


def test_tool_calls_are_compared_by_name_and_arguments():
    structured = said("", tool_calls=(ToolCall("add", {"b": 2, "a": 1.0}, "call_7"),))
    written = said('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>')
    assert structured == written is not None
    assert said("no call", "tool_call") is None


def test_number_reads_the_last_one_and_a_fraction():
    assert said("3 apples and 4 pears make 7", "number") == "7"
    assert said("\\boxed{\\frac{1}{2}}", "number") == "0.5"
    assert said("none", "number") is None


@pytest.mark.parametrize("text", ["NaN", "Infinity", '{"a": NaN}', "[" * 100_000, "not json"])
def test_what_is_not_json_is_no_json_answer(text):
    assert said(text, "json") is None


@given(st.fractions(max_denominator=10**6))
def test_equal_numbers_have_one_form(value: Fraction):
    text = f"{value.numerator}/{value.denominator}"
    assert number(text) == number(f"{value.numerator * 3}/{value.denominator * 3}")
    assert Fraction(str(number(text))) == value


@given(
    st.recursive(
        st.integers() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_answers_ignore_order_and_spaces(value):
    assert said(json.dumps(value, indent=2), "json") == said(json.dumps(value, sort_keys=True), "json")


@given(st.text(max_size=400))
def test_no_text_breaks_an_extractor(text):
    for how in ("auto", "number", "math", "json", "tool_call", "last_line", "exact"):
        answer = said(text, how)
        assert answer is None or answer


def test_mathematics_is_compared_by_value():
    equal = Equality("math")
    assert equal(said("\\boxed{\\frac{1}{2}}", "math"), "0.5")
    assert equal("x^2-1", "(x-1)(x+1)")
    assert not equal("x^2", "x^3")


@pytest.mark.parametrize("text", ["9^{9^{9^9}}", "10**1000000000", "(10^6)!", "\\sum_{i=0}^{10^9} i", "7" * 5000])
def test_text_that_explodes_is_never_evaluated(text):
    assert not Equality("math")(text, "1")
