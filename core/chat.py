"""Chat: messages, tool schemas, rendering and parsing of tool calls. Standard library only; nobody else parses."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from stackloom.core.errors import ConfigError, did_you_mean

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
MAX_CALL_CHARS = 200_000
MAX_DEPTH = 64


@dataclass(frozen=True)
class Tool:
    """A tool as a model sees it, in the shape that MCP gives it.

    Attributes:
        name: letters, digits, `_`, `-`, `.`; at most 128.
        description: what it does, for the model.
        input_schema: JSON Schema of the arguments, of type object.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", self.name):
            raise ConfigError(f"{self.name!r} is not a tool name", fix="letters, digits, '_', '-' and '.', at most 128")
        if self.input_schema.get("type") != "object":
            raise ConfigError(f"input_schema of tool {self.name!r} is not of type object")

    def to_openai(self) -> dict[str, Any]:
        """Return the OpenAI function form."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": dict(self.input_schema)},
        }

    def signature(self) -> str:
        """Return a compact one-line form for small models: `add(a: number, b: number) - Add two numbers`."""
        properties: Mapping[str, Any] = self.input_schema.get("properties", {})
        required = set(self.input_schema.get("required", ()))
        arguments = ", ".join(
            f"{name}{'' if name in required else '?'}: {_type_name(schema)}" for name, schema in properties.items()
        )
        return f"{self.name}({arguments}) - {self.description}"


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "|".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"{_type_name(schema.get('items', {}))}[]"
    return "|".join(kind) if isinstance(kind, list) else str(kind)


@dataclass(frozen=True)
class ToolCall:
    """One call that a model made."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        content: text without the tool calls.
        tool_calls: of an assistant message.
        tool_call_id, name: of a tool's answer.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def to_openai(self) -> dict[str, Any]:
        """Return the OpenAI chat form, in which arguments are a JSON string."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            data["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
                }
                for call in self.tool_calls
            ]
        return data | {key: value for key, value in (("tool_call_id", self.tool_call_id), ("name", self.name)) if value}

    @classmethod
    def from_openai(cls, data: Mapping[str, Any]) -> Message:
        """Read the OpenAI chat form.

        Raises:
            ConfigError: unknown role, content that is no text, or arguments that are no JSON object.
        """
        role, content = data.get("role"), data.get("content") or ""
        if role not in ("system", "user", "assistant", "tool"):
            raise ConfigError(f"unknown role {role!r}", fix="system, user, assistant or tool")
        if isinstance(content, list):
            if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
                raise ConfigError("content parts other than text are not supported here")
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise ConfigError(f"content is {type(content).__name__}, not text")
        raw_calls = data.get("tool_calls") or ()
        if not isinstance(raw_calls, list | tuple):
            raise ConfigError("tool_calls is not a list")
        calls = tuple(_call_from_openai(raw) for raw in raw_calls)
        return cls(
            role=role,
            content=content,
            tool_calls=calls,
            tool_call_id=str(data.get("tool_call_id") or ""),
            name=str(data.get("name") or ""),
        )


def _call_from_openai(raw: object) -> ToolCall:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(function, Mapping):
        raise ConfigError("a tool call has no function")
    call = _as_call({"name": function.get("name"), "arguments": function.get("arguments")}, str(raw.get("id") or ""))
    if isinstance(call, str):
        raise ConfigError(f"bad tool call: {call}")
    return call


@dataclass(frozen=True)
class Parsed:
    """What a model's text held.

    Attributes:
        text: the text without calls.
        calls: well-formed calls, in order, with ids call_0, call_1, ...
        errors: one sentence per malformed call, fit to be shown to the model.
    """

    text: str
    calls: tuple[ToolCall, ...]
    errors: tuple[str, ...]


@dataclass(frozen=True)
class ToolFormat:
    """How one family of models writes tool calls.

    Attributes:
        render_call: a call as the assistant writes it.
        render_result: a tool's answer as the model reads it.
        extract: text to (text without calls, raw call or error per call).
    """

    name: str
    instructions: str
    render_call: Callable[[ToolCall], str]
    render_result: Callable[[str, str], str]
    extract: Callable[[str], tuple[str, list[Any]]]


def tool_prompt(tools: Sequence[Tool], *, format: str = "hermes", compact: bool = False) -> str:
    """Return the system text that tells a model its tools.

    Args:
        tools: what it may call.
        format: "hermes", "json" or "pythonic".
        compact: one signature line per tool instead of its JSON Schema.
    """
    lines = "\n".join(tool.signature() if compact else json.dumps(tool.to_openai()) for tool in tools)
    return f"You can call these tools:\n<tools>\n{lines}\n</tools>\n{find_format(format).instructions}"


def render_call(call: ToolCall, *, format: str = "hermes") -> str:
    """Write a call the way the model would."""
    return find_format(format).render_call(call)


def render_result(name: str, content: str, *, format: str = "hermes") -> str:
    """Write a tool's answer the way the model reads it."""
    return find_format(format).render_result(name, content)


def parse_tool_calls(text: str, *, format: str = "hermes") -> Parsed:
    """Find the tool calls in a model's text. Never raises on the model's account.

    Example:
        >>> parse_tool_calls('Hm. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>').calls[0].arguments
        {'a': 1}
    """
    if len(text) > MAX_CALL_CHARS:
        error = f"the message has {len(text)} characters; at most {MAX_CALL_CHARS} are read for tool calls"
        return Parsed(text, (), (error,))
    rest, found = find_format(format).extract(text)
    calls: list[ToolCall] = []
    errors: list[str] = []
    for raw in found:
        call = raw if isinstance(raw, str) else _as_call(raw, f"call_{len(calls)}")
        if isinstance(call, str):
            errors.append(call)
        else:
            calls.append(call)
    return Parsed(rest.strip(), tuple(calls), tuple(errors))


def find_format(name: str) -> ToolFormat:
    """Return the format called `name`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"unknown tool-call format {name!r}",
            fix=did_you_mean(name, FORMATS, otherwise=f"known: {', '.join(FORMATS)}"),
        )
    return FORMATS[name]


def _as_call(raw: object, call_id: str) -> ToolCall | str:
    """Return the call that `raw` describes, or what is wrong with it."""
    if not isinstance(raw, Mapping):
        return f"a tool call is a JSON object, got {type(raw).__name__}"
    name, arguments = raw.get("name"), raw.get("arguments", raw.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return "a tool call needs a name"
    if isinstance(arguments, str):
        arguments = _load_json(arguments or "{}")
    if not isinstance(arguments, Mapping):
        return f"arguments of {name!r} are no JSON object"
    return ToolCall(name, dict(arguments), call_id)


class _NotJSON:
    """Stands for text that is no JSON; distinct from every JSON value."""


def _load_json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return _NotJSON()
    return value if _depth(value) <= MAX_DEPTH else _NotJSON()


def _depth(value: Any, limit: int = MAX_DEPTH + 1) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 0 if limit <= 0 else 1 + max((_depth(item, limit - 1) for item in inner), default=0)


def _describe(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)


_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _extract_hermes(text: str) -> tuple[str, list[Any]]:
    found: list[Any] = []
    for match in _BLOCK.finditer(text):
        value = _load_json(match[1].strip())
        unclosed = "" if match[0].endswith("</tool_call>") else "; the block is not closed with </tool_call>"
        found.append(f"the text inside <tool_call> is not JSON{unclosed}" if isinstance(value, _NotJSON) else value)
    return _BLOCK.sub("", text), found


def _extract_json(text: str) -> tuple[str, list[Any]]:
    """A whole message that is one call, a list of calls, or text before a call at the end; fences are ignored."""
    body = re.sub(r"```(?:json)?\s*(.*?)\s*```", r"\1", text, flags=re.DOTALL).strip()
    for start in [match.start() for match in re.finditer(r"[\[{]", body)][:64]:
        value = _load_json(body[start:])
        calls = value if isinstance(value, list) else [value]
        if calls and all(isinstance(call, dict) and "name" in call for call in calls):
            return body[:start], calls
    return text, ["the call is not JSON"] if body.startswith(("{", "[{")) else []


def _extract_pythonic(text: str) -> tuple[str, list[Any]]:
    """`[add(a=1, b=2), now()]`: literals only, parsed and never evaluated."""
    body = text.strip()
    start = body.find("[")
    if start < 0 or not body.endswith("]"):
        return text, []
    try:
        tree = ast.parse(body[start:], mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else []
        calls = [
            {
                "name": ast.unparse(node.func),
                "arguments": {item.arg: ast.literal_eval(item.value) for item in node.keywords},
            }
            for node in nodes
            if isinstance(node, ast.Call) and not node.args and all(item.arg for item in node.keywords)
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return text, ["the list of calls is not Python with literal keyword arguments"]
    if len(calls) != len(nodes):
        return body[:start], [*calls, "every call takes keyword arguments: name(argument=value)"]
    return (body[:start], calls) if calls else (text, [])


FORMATS: dict[str, ToolFormat] = {
    item.name: item
    for item in (
        ToolFormat(
            "hermes",
            'To call one, write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.',
            lambda call: f"<tool_call>\n{_describe(call)}\n</tool_call>",
            lambda name, content: f"<tool_response>\n{content}\n</tool_response>",
            _extract_hermes,
        ),
        ToolFormat(
            "json",
            'To call one, answer with {"name": ..., "arguments": {...}} and nothing else.',
            _describe,
            lambda name, content: json.dumps({"name": name, "content": content}, ensure_ascii=False),
            _extract_json,
        ),
        ToolFormat(
            "pythonic",
            "To call some, answer with a list of Python calls with keyword arguments: [name(argument=value)].",
            lambda call: "[{}({})]".format(
                call.name, ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
            ),
            lambda name, content: json.dumps({name: content}, ensure_ascii=False),
            _extract_pythonic,
        ),
    )
}
