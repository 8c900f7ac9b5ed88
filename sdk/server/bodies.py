"""Bodies of requests, as OpenAI's clients send them; what is not known is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stackloom.engine.requests import TOP_LOGPROBS

Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
MAX_STOPS, MAX_CHOICES, MAX_PROMPTS, MAX_MESSAGES, MAX_TOOLS = 16, 64, 64, 4096, 256


class Body(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Body):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Sampled(Body):
    """How tokens are chosen; what both kinds of completions have."""

    model: str = Field(max_length=256)
    temperature: Finite = Field(1.0, ge=0, le=5, description="0 takes the likeliest token")
    top_p: Finite = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="0 leaves all tokens")
    min_p: Finite = Field(0.0, ge=0, le=1)
    presence_penalty: Finite = Field(0.0, ge=-2, le=2)
    frequency_penalty: Finite = Field(0.0, ge=-2, le=2)
    repetition_penalty: Finite = Field(1.0, ge=0.01, le=10)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="absent: as many as the server allows")
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="choices; they share the prompt's computation")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="absent: drawn anew for every request")
    stop: Stop | list[Stop] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=1024, description="accepted, not used")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        """Refuse halves of characters, which JSON can spell and nobody can encode, wherever they stand."""
        left = [data]
        while left:
            value = left.pop()
            if isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ValueError("a text holds half a character (a lone surrogate)") from None
            elif isinstance(value, dict):
                left += [*value, *value.values()]
            elif isinstance(value, list):
                left += value
        return data

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options says nothing without stream")
        return self


class Function(Body):
    """A tool's name, purpose and arguments."""

    name: str = Field(max_length=128)
    description: str | None = Field(None, max_length=65_536)
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of type object")
    strict: bool | None = Field(None, description="accepted, not used: see tool_choice")


class FunctionTool(Body):
    """Something that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Names a tool."""

    name: str = Field(max_length=128)


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    """What the reply's JSON looks like."""

    name: str = Field("reply", max_length=128)
    description: str | None = Field(None, max_length=65_536)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="accepted; the schema is always kept")


class ResponseFormat(Body):
    """What the reply is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema")
        return self


class ChatMessage(BaseModel):
    """A message; its content is checked when it is read."""

    model_config = ConfigDict(extra="ignore")  # clients send replies back with whatever the server had put there

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class ChatBody(Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="the newer name of max_tokens")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="required, or a tool's name: the reply is a call, and its arguments keep to the schema"
    )
    parallel_tool_calls: bool | None = Field(None, description="accepted, not used")
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = Field(None, description="accepted, not used")
    store: bool | None = Field(None, description="accepted, not used")
    heavy: dict[str, Any] | None = Field(None, description="options of reasoner.heavy-thinking; {} takes its defaults")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are one option: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is no tool of this request")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice required needs tools")
        if self.forced_tools and self.response_format and self.response_format.type != "text":
            raise ValueError("a reply cannot be both a call and response_format")
        clashing = [name for name in ("logprobs", "response_format", "stop") if getattr(self, name)]
        clashing += ["n"] if self.n > 1 else []
        clashing += ["tool_choice"] if self.forced_tools else []
        if self.heavy is not None and clashing:
            raise ValueError(f"{clashing[0]} does not go with heavy")
        return self

    @property
    def forced_tools(self) -> tuple[Function, ...]:
        """The tools one of which must be called."""
        tools = [tool.function for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool):
            return tuple(tool for tool in tools if tool.name == self.tool_choice.function.name)
        return tuple(tools) if self.tool_choice == "required" else ()


class CompletionBody(Sampled):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS)
    echo: Literal[False] = False

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]

    @model_validator(mode="after")
    def _has_prompts(self) -> Self:
        if not 1 <= len(self.prompts) <= MAX_PROMPTS:
            raise ValueError(f"from 1 to {MAX_PROMPTS} prompts")
        if len(self.prompts) * self.n > MAX_CHOICES:
            raise ValueError(f"at most {MAX_CHOICES} choices in all")
        return self
