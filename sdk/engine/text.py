"""Text of a sequence as it grows: whole characters only, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class GrowingText:
    """Decodes token by token.

    A tail of replacement characters is held back, since the next token may complete it, and so is a tail that could
    begin a stop string.

    Args:
        tokenizer: a tokenizer of transformers.
        stop: strings that end the text.

    Example:
        >>> text = GrowingText(tokenizer, stop=("END",))
        >>> [text.append(token) for token in tokenizer("a E").input_ids]  # the E may become END
        ['a', ' ', '']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._window = self._read = 0  # ids from _window to _read give context; those from _read on are not settled
        self._settled = ""
        self._text = ""
        self.stopped = False

    def append(self, token_id: int) -> str:
        """Take one token and return the text that is certain now; sets `stopped` when a stop string is complete."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        if len(after) > len(before) and not after.endswith(REPLACEMENT):
            self._settled += after[len(before) :]
            self._window, self._read = self._read, len(self._ids)
            return self._emit(self._settled)
        return self._emit(self._settled + after[len(before) :].rstrip(REPLACEMENT))

    def finish(self) -> str:
        """Return what was held back and is not part of a stop string."""
        if not self.stopped:
            whole = self._decode(self._ids)
            if whole.startswith(self._text):
                self._settled = whole
        return self._emit(self._settled, final=True)

    @property
    def text(self) -> str:
        """Everything returned so far."""
        return self._text

    def _emit(self, known: str, *, final: bool = False) -> str:
        """Return the part of `known` that no later token can change and that was not returned yet."""
        if self.stopped:
            return ""
        end = len(known)
        found = [at for stop in self._stop if (at := known.find(stop)) >= 0]
        if found:
            self.stopped, end = True, min(found)
        elif not final:
            end -= max((_overlap(known, stop) for stop in self._stop), default=0)
        piece = known[len(self._text) : end]
        self._text += piece
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
