"""Server-sent events and inline reasoning tags, read piece by piece, whatever the pieces' borders."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from stackloom.core.generation import ServerError

MAX_EVENT = 8 * 1024**2
TAGS = {"<think>": "</think>", "<longcat_think>": "</longcat_think>", "<thinking>": "</thinking>"}


class EventStream:
    """Turns bytes into the data of events.

    Lines end with \\n, \\r\\n or \\r; comments, names and keep-alives are skipped; an event's lines of data are joined.

    Example:
        >>> list(EventStream().feed(b': hi\\n\\ndata: {"a":1}\\n\\n'))
        ['{"a":1}']
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._size = 0
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yield the data of every event that `piece` completes.

        Raises:
            ServerError: an event of more than 8 MiB.
        """
        text = self._rest + self._decoder.decode(piece)
        held = "\r" if text.endswith("\r") else ""  # a \n may follow
        lines = text.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + held
        for line in lines:
            if not line:
                yield from self._event()
            elif line.startswith("data:"):
                self._data.append(line[5:].removeprefix(" "))
                self._size += len(line)
        if self._size + len(self._rest) > MAX_EVENT:
            raise ServerError(f"an event of more than {MAX_EVENT // 1024**2} MiB", where="server")

    def close(self) -> Iterator[str]:
        """Yield the last event where the server ended without an empty line."""
        yield from self.feed(b"\n\n")

    def _event(self) -> Iterator[str]:
        if self._data:
            data, self._data, self._size = "\n".join(self._data), [], 0
            yield data


class ReasoningSplitter:
    """Splits text into (visible, reasoning) where a model writes its reasoning inline, between tags at the start.

    A tag that is never closed leaves everything behind it reasoning: an answer was never begun. A closing tag without
    an opening one makes what stands before it reasoning, for templates that write the opening tag themselves; as that
    is known at its end alone, `split` says it of the whole text.

    Example:
        >>> splitter = ReasoningSplitter()
        >>> [splitter.feed(piece) for piece in ("<th", "ink>6*7</thi", "nk>42")], splitter.close()
        ([('', ''), ('', '6*7'), ('42', '')], ('', ''))
    """

    def __init__(self) -> None:
        self._state = "start"
        self._rest = self._closing = ""

    def feed(self, piece: str) -> tuple[str, str]:
        """Return what of the text so far is certain by now and was not returned before."""
        self._rest += piece
        if self._state == "start":
            begun = self._rest.lstrip()
            found = next((tag for tag in TAGS if begun.startswith(tag)), None)
            if found:
                self._state, self._closing, self._rest = "inside", TAGS[found], begun[len(found) :]
            elif any(tag.startswith(begun) for tag in TAGS):
                return "", ""
            else:
                self._state = "visible"
        if self._state == "inside":
            before, closing, after = self._rest.partition(self._closing)
            if not closing:
                sizes = range(len(self._closing) - 1, 0, -1)
                held = next((size for size in sizes if before.endswith(self._closing[:size])), 0)
                self._rest = before[len(before) - held :]
                return "", before[: len(before) - held]
            self._state, self._rest = "after", after
            visible = self._visible()
            return visible, before
        return self._visible(), ""

    def _visible(self) -> str:
        if self._state == "after":
            self._rest = self._rest.lstrip()
            if not self._rest:
                return ""
            self._state = "visible"
        text, self._rest = self._rest, ""
        return text

    def close(self) -> tuple[str, str]:
        """Return the rest."""
        rest, self._rest = self._rest, ""
        return ("", rest) if self._state == "inside" else (rest, "")


def split(text: str) -> tuple[str, str]:
    """Split a whole text into (visible, reasoning).

    Example:
        >>> split("6 * 7</think>42")
        ('42', '6 * 7')
    """
    splitter = ReasoningSplitter()
    visible, reasoning = map("".join, zip(splitter.feed(text), splitter.close(), strict=True))
    if not reasoning:
        for closing in TAGS.values():
            before, found, after = visible.partition(closing)
            if found:
                return after.lstrip(), before
    return visible, reasoning
