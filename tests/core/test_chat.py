from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.chat import (
    FORMATS,
    MAX_CALL_CHARS,
    Message,
    Tool,
    ToolCall,
    parse_tool_calls,
    render_call,
    tool_prompt,
)
from stackloom.core.errors import ConfigError

names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True).filter(
    lambda name: name not in {"in", "is", "if", "or", "as", "not", "and", "for", "def", "del", "try"}
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(ToolCall, names, st.dictionaries(names, json_values, max_size=3), st.just("call_0"))


@given(calls, st.sampled_from([name for name in FORMATS if name != "pythonic"]))
def test_a_rendered_call_parses_to_itself(call: ToolCall, format: str) -> None:
    text = render_call(call, format=format)
    if format == "hermes" and "tool_call>" in str(call.arguments):
        return
    parsed = parse_tool_calls(text, format=format)
    assert parsed.calls == (call,)
    assert not parsed.errors


@given(st.text(max_size=300), st.sampled_from(list(FORMATS)))
def test_no_text_of_a_model_raises(text: str, format: str) -> None:
    parsed = parse_tool_calls(text, format=format)
    assert all(isinstance(call.arguments, dict) for call in parsed.calls)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "not JSON"),
        ("<tool_call>{</tool_call>", "not JSON"),
        ('<tool_call>{"name": "a"', "not closed"),
        ("<tool_call>[1]</tool_call>", "JSON object, got list"),
        ('<tool_call>{"arguments": {}}</tool_call>', "needs a name"),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "no JSON object"),
        ("<tool_call>" + '{"a":' * 5000 + "</tool_call>", "not JSON"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text: str, error: str) -> None:
    parsed = parse_tool_calls(text)
    assert parsed.calls == ()
    assert error in parsed.errors[0]


def test_text_around_calls_is_kept_and_calls_are_numbered() -> None:
    one = render_call(ToolCall("a", {}))
    parsed = parse_tool_calls(f"first {one} then {one}")
    assert parsed.text == "first  then"
    assert [call.id for call in parsed.calls] == ["call_0", "call_1"]


def test_arguments_given_as_a_string_are_read() -> None:
    assert parse_tool_calls('<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>').calls[0].arguments == {
        "x": 1
    }


def test_a_list_of_calls_in_json_and_in_python() -> None:
    assert [
        call.name
        for call in parse_tool_calls(
            '```json\n[{"name": "a", "arguments": {}}, {"name": "b"}]\n```', format="json"
        ).calls
    ] == ["a", "b"]
    assert [
        call.arguments for call in parse_tool_calls("Sure: [a(x=1), b(y=[1, 'two'])]", format="pythonic").calls
    ] == [{"x": 1}, {"y": [1, "two"]}]


def test_a_pythonic_call_is_never_evaluated() -> None:
    parsed = parse_tool_calls("[a(x=__import__('os').getpid())]", format="pythonic")
    assert parsed.calls == ()
    assert parsed.errors


def test_a_message_of_absurd_length_is_not_parsed() -> None:
    assert "at most" in parse_tool_calls("<tool_call>" * MAX_CALL_CHARS).errors[0]


@given(
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(max_size=50),
    st.lists(calls, max_size=2).map(tuple),
)
def test_a_message_survives_the_openai_form(role: str, content: str, made: tuple[ToolCall, ...]) -> None:
    message = Message(role, content, made, "id" if role == "tool" else "")  # type: ignore[arg-type]
    assert Message.from_openai(message.to_openai()) == message


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"role": "robot"},
        {"role": "user", "content": 3},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "assistant", "tool_calls": [{}]},
        {"role": "assistant", "tool_calls": 3},
        {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "x"}}]},
    ],
)
def test_what_is_no_openai_message_is_a_config_error(data: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Message.from_openai(data)


def test_a_compact_signature_fits_one_line() -> None:
    tool = Tool(
        "add",
        "Add numbers",
        {
            "type": "object",
            "required": ["a"],
            "properties": {
                "a": {"type": "number"},
                "b": {"type": "array", "items": {"type": "integer"}},
                "mode": {"enum": ["x", "y"]},
            },
        },
    )
    assert tool.signature() == 'add(a: number, b?: integer[], mode?: "x"|"y") - Add numbers'
    assert tool.signature() in tool_prompt([tool], compact=True)


@pytest.mark.parametrize(
    "tool", [{"name": "two words"}, {"name": ""}, {"name": "a", "input_schema": {"type": "array"}}]
)
def test_a_tool_that_no_protocol_takes_is_refused(tool: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Tool(description="", **tool)  # type: ignore[arg-type]


def test_an_unknown_format_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        parse_tool_calls("", format="herms")
