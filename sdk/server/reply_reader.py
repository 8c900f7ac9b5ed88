"""One choice of a chat completion, read piece by piece: what is said, what is thought, and what is called."""

from __future__ import annotations

import uuid
from dataclasses import replace

from stackloom.client.event_stream import ReasoningSplitter
from stackloom.core.chat import ToolCall, parse_tool_calls

OPENING = "<tool_call>"


class ReplyReader:
    """Holds back what may become a tool call, so that a client never sees its markup.

    Args:
        tools: whether there are tools to call.
        forced: whether the whole text is one call, as JSON.

    Example:
        >>> reader = ReplyReader(tools=True, forced=False)
        >>> reader.feed('Hm. <tool_call>{"name": "now", "arguments": {}}</tool_call>')
        ('Hm. ', '')
        >>> reader.close()
        ('', '')
        >>> reader.calls[0].name
        'now'
    """

    def __init__(self, *, tools: bool, forced: bool) -> None:
        self._tools, self._forced = tools, forced
        self._splitter = ReasoningSplitter()
        self._visible = self._shown = self._thought = ""
        self.calls: tuple[ToolCall, ...] = ()

    @property
    def content(self) -> str:
        """What was shown so far."""
        return self._shown

    @property
    def reasoning(self) -> str:
        """What was thought so far."""
        return self._thought

    def feed(self, text: str) -> tuple[str, str]:
        """Return what became certain of (content, reasoning)."""
        visible, reasoning = self._splitter.feed(text)
        self._visible += visible
        self._thought += reasoning
        return self._show(self._certain()), reasoning

    def close(self) -> tuple[str, str]:
        """Return the rest and set `calls`."""
        visible, reasoning = self._splitter.close()
        self._visible += visible
        self._thought += reasoning
        if not self._tools:
            return self._show(self._visible), reasoning
        parsed = parse_tool_calls(self._visible, format="json" if self._forced else "hermes")
        if not parsed.calls:
            return self._show(self._visible), reasoning
        self.calls = tuple(replace(call, id=f"call_{uuid.uuid4().hex[:24]}") for call in parsed.calls)
        rest = parsed.text.removeprefix(self._shown.strip())
        self._shown += rest
        return rest, reasoning

    def _certain(self) -> str:
        if self._forced:
            return ""
        if not self._tools:
            return self._visible
        before, found, _ = self._visible.partition(OPENING)
        held = (
            0
            if found
            else next((size for size in range(len(OPENING) - 1, 0, -1) if before.endswith(OPENING[:size])), 0)
        )
        return before[: len(before) - held]

    def _show(self, known: str) -> str:
        piece = known[len(self._shown) :]
        self._shown += piece
        return piece
