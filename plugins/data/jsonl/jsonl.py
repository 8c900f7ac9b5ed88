"""Reads JSON Lines into examples with loss masks, without holding the file in memory."""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from stackloom.core.errors import ArtifactError, ConfigError, ErrorGroup, did_you_mean
from stackloom.core.slots.data import Example, Tokenizer
from stackloom.plugins.data.chat_masking import MaskingError, mask_assistant
from stackloom.plugins.data.jsonl.config import JsonlConfig

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_PROBLEMS = 20  # listed in one error; the rest are counted
ROLES = ("system", "user", "assistant", "tool")
Record: TypeAlias = dict[str, Any]


class Jsonl:
    """The examples of one file, in its order. Every line is checked when the object is made and read again on access.

    Memory is 12 bytes per line. A line that changes afterwards is noticed by its checksum.

    Args:
        config: the plugin's options.
        tokenizer: of the model that is trained.

    Raises:
        ConfigError: the file cannot be read or has no good example; with `on_bad: error` also every bad line with its
            number, as an ErrorGroup.

    Example:
        >>> Path("pairs.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}')
        >>> data = Jsonl(JsonlConfig(path="pairs.jsonl", format="prompt-completion"), tokenizer)
        >>> tokenizer.decode([token for token, trained in zip(*data[0]) if trained])
        ' 2<|im_end|>'
    """

    def __init__(self, config: JsonlConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self._path = Path(config.path).absolute()
        self._read = READERS[config.format]
        self._offsets, self._checksums = array("Q"), array("I")
        bad: list[ConfigError] = []
        try:
            with self._path.open("rb") as file:
                for number, offset, line in _lines(file):
                    try:
                        self._example(line)
                    except BadLineError as problem:
                        bad.append(ConfigError(str(problem), where=f"{config.path}:{number}"))
                    else:
                        self._offsets.append(offset)
                        self._checksums.append(zlib.crc32(line))
        except OSError as cause:
            raise ConfigError(
                f"cannot read the file: {cause.strerror}", where=config.path, fix="check the path and its permissions"
            ) from None
        if bad and config.on_bad == "error":
            more = (
                [ConfigError(f"and {len(bad) - MAX_PROBLEMS} more", where=config.path)]
                if len(bad) > MAX_PROBLEMS
                else []
            )
            raise ErrorGroup(
                [*bad[:MAX_PROBLEMS], *more],
                f"{config.path}: {len(bad)} bad line{'s' if len(bad) > 1 else ''}; `on_bad: skip` leaves them out",
            )
        if not self._offsets:
            reason = f"all {len(bad)} lines are bad, the first: {bad[0].reason}" if bad else "the file is empty"
            raise ConfigError(
                reason,
                where=config.path,
                fix=f"write one JSON object per line with {' and '.join(FIELDS[config.format])}",
            )
        self._problems = tuple(f"line {problem.where.rpartition(':')[2]}: {problem.reason}" for problem in bad)

    def __len__(self) -> int:
        """Number of good examples."""
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        """Return example `index`, counted from 0.

        Raises:
            IndexError: no such example.
            ArtifactError: the file changed since it was opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        try:
            with self._path.open("rb") as file:
                file.seek(self._offsets[index])
                line = file.readline(MAX_LINE_BYTES + 1).rstrip(b"\r\n")
        except OSError as cause:
            raise ArtifactError(f"cannot read the file any more: {cause.strerror}", where=self.config.path) from None
        if zlib.crc32(line) != self._checksums[index]:
            raise ArtifactError(
                f"example {index} changed since the file was opened",
                where=self.config.path,
                fix="leave the data alone during a run, or start the run anew",
            )
        return self._example(line)

    def problems(self) -> tuple[str, ...]:
        """Return what was left out: "line 3: no assistant message"."""
        return self._problems

    def _example(self, line: bytes) -> Example:
        tokens, mask = self._read(_record(line), self.tokenizer)
        tokens, mask = tokens[: self.config.max_tokens], mask[: self.config.max_tokens]
        # The first token is never predicted, so a mask on it alone trains nothing.
        if not any(mask[1:]):
            cut = f" within max_tokens {self.config.max_tokens}" if self.config.max_tokens else ""
            raise BadLineError(f"no token to train on{cut}")
        return Example(tokens, mask)


class BadLineError(Exception):
    """A line that is no example; the message says why."""


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line without its end) of every line that is not blank."""
    number = offset = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if line.strip():
            yield number, offset, line.rstrip(b"\r\n")
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):  # the rest of an oversized line
            offset += len(line)
            line = file.readline(MAX_LINE_BYTES + 1)
        offset += len(line)


def _record(line: bytes) -> Record:
    if len(line) > MAX_LINE_BYTES:
        raise BadLineError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise BadLineError(f"not UTF-8 at byte {cause.start + 1}") from None
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as cause:
        raise BadLineError(f"not JSON at column {cause.colno}: {cause.msg}") from None
    except (RecursionError, ValueError) as cause:
        raise BadLineError(f"not JSON: {cause}") from None
    if not isinstance(record, dict):
        raise BadLineError(f"expected a JSON object, got {type(record).__name__}")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _text_of(record: Record, field: str) -> str:
    if field not in record:
        raise BadLineError(
            f"no field {field!r}; {did_you_mean(field, record, otherwise='fields: ' + ', '.join(sorted(record)))}"
        )
    return _clean(record[field], field)


def _clean(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadLineError(f"{what} should be a string, got {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadLineError(f"{what} holds a lone surrogate, which no tokenizer can encode")
    return value


def _from_text(record: Record, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Train on every token, the end of the text included."""
    text = _text_of(record, "text")
    if not text.strip():
        raise BadLineError("the text is empty")
    tokens = [*_opening(text, tokenizer), *_end(tokenizer)]
    return tokens, [True] * len(tokens)


def _from_prompt(record: Record, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Train on the completion and the end. The two are encoded apart, as generation sees a prompt alone."""
    prompt, completion = _text_of(record, "prompt"), _text_of(record, "completion")
    if not completion:
        raise BadLineError("the completion is empty")
    before = _opening(prompt, tokenizer)
    after = [*tokenizer.encode(completion, add_special_tokens=False), *_end(tokenizer)]
    return before + after, [False] * len(before) + [True] * len(after)


def _from_messages(record: Record, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Train on what the assistant writes: from the end of the generation prompt to the end of its message."""
    messages, tools = _conversation(record)
    try:
        return mask_assistant(messages, tools, tokenizer)
    except MaskingError as problem:
        raise BadLineError(str(problem)) from None


def _conversation(record: Record) -> tuple[list[Record], list[Record] | None]:
    """Return checked messages and tools."""
    messages, tools = record.get("messages"), record.get("tools")
    if "messages" not in record:
        _text_of(record, "messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise BadLineError("messages should be a list of objects with role and content")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadLineError("tools should be a list of objects")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if message.get("role") not in ROLES:
            raise BadLineError(f"{where}.role should be one of {', '.join(ROLES)}, got {message.get('role')!r}")
        if message.get("content") is None and not (message["role"] == "assistant" and message.get("tool_calls")):
            raise BadLineError(f"{where} has no content")
        if message.get("content") is not None:
            _clean(message["content"], f"{where}.content")
    if messages[0]["role"] == "assistant":
        raise BadLineError("messages[0] is the assistant's; a conversation opens with what it answers")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadLineError("no assistant message")
    return messages, tools


def _opening(text: str, tokenizer: Tokenizer) -> list[int]:
    """Encode with the tokenizer's own beginning of text, without an end that it may add."""
    tokens = tokenizer.encode(text, add_special_tokens=True)
    return tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


FIELDS = {"messages": ("messages",), "text": ("text",), "prompt-completion": ("prompt", "completion")}
READERS: dict[str, Callable[[Record, Tokenizer], tuple[list[int], list[bool]]]] = {
    "messages": _from_messages,
    "text": _from_text,
    "prompt-completion": _from_prompt,
}
