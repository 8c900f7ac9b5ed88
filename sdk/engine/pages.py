"""Keys and values of all sequences, in pages that sequences share.

Shape legend: L layers, P pages, G key/value heads, H = 2 G heads of keys, then of values, S tokens of a page,
K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch

BLOCK = 16  # tokens of a page

Key: TypeAlias = tuple[int, tuple[int, ...]]  # number of the page before (-1: none) and this page's tokens


@dataclass
class _Known:
    """A page whose tokens are known, so that other sequences may begin with it."""

    index: int
    key: Key
    before: _Known | None
    followers: int = 0


class Pages:
    """The memory, who holds which page, and a tree of the pages that sequences begin with.

    A page is held by every sequence that reads it, and by the tree while it stands there; what nobody holds is free.
    Pages that the tree alone holds are idle: the one that was used longest ago is given away first, and no more than
    `kept` bytes of them stay. Page 0 holds zeros and belongs to nobody.

    Args:
        shape: of one token's keys and values, (L, 2, G, K).
        dtype, device: of the pages.
        limit: most bytes; memory is taken as pages are first used.
        kept: most bytes of idle pages.

    Example:
        >>> pages = Pages((1, 2, 1, 4), torch.float32, torch.device("cpu"), limit=2**20, kept=2**20)
        >>> row = pages.new(3)
        >>> pages.keep(range(40), row)
        >>> pages.release(row)
        >>> len(pages.take([*range(33), 99])), pages.used
        (2, 2)
    """

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, *, limit: int, kept: int
    ) -> None:
        layers, two, heads, width = shape
        size = max(1, BLOCK * prod(shape) * dtype.itemsize)
        self.capacity, self._kept = limit // size, kept // size
        self.memory_LPHSK = torch.empty(
            (layers, self.capacity + 1, two * heads, BLOCK, width), dtype=dtype, device=device
        )
        self.memory_LPHSK[:, 0] = 0
        self._free = list(range(self.capacity, 0, -1))
        self._holders = [0] * (self.capacity + 1)
        self._known: dict[Key, _Known] = {}  # the one used last at the end, a page before its followers' end
        self._keys: dict[int, Key] = {}  # of the pages in the tree
        self._idle = 0

    @property
    def keeps(self) -> bool:
        """Whether later sequences may begin with what earlier ones computed."""
        return self._kept > 0

    @property
    def used(self) -> int:
        """Pages that anybody holds, the tree included."""
        return self.capacity - len(self._free)

    @property
    def idle(self) -> int:
        """Pages that the tree alone holds."""
        return self._idle

    @property
    def available(self) -> int:
        """Pages that `new` can give."""
        return len(self._free) + self._idle

    def new(self, count: int) -> list[int] | None:
        """Return pages that nobody else holds, or None where there are too few; their content is left over."""
        if count > self.available:
            return None
        while len(self._free) < count:
            self._forget_oldest()
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def clean(self, page: int) -> None:
        """Fill a page with zeros: what lies past a sequence's length is masked, and must be finite for that."""
        self.memory_LPHSK[:, page] = 0

    def hold(self, pages: Sequence[int]) -> None:
        """Hold pages once more."""
        for page in pages:
            self._holders[page] += 1
            self._idle -= self._holders[page] == 2 and page in self._keys

    def release(self, pages: Sequence[int]) -> None:
        """Let go of pages."""
        for page in pages:
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
            elif self._holders[page] == 1 and page in self._keys:
                self._idle += 1
        while self._idle > self._kept:
            self._forget_oldest()

    def shared(self, page: int) -> bool:
        """Whether anybody else holds a page that the caller holds."""
        return self._holders[page] > 1

    def own(self, page: int) -> int | None:
        """Return a page with the same content that nobody else holds, in exchange; None where there is none left."""
        if not self.shared(page):
            return page
        found = self.new(1)
        if found is None:
            return None
        self.memory_LPHSK[:, found[0]] = self.memory_LPHSK[:, page]
        self.release([page])
        return found[0]

    def known(self, tokens: Sequence[int]) -> int:
        """Return how many first tokens `take` would give."""
        return len(self._walk(tokens)) * BLOCK

    def take(self, tokens: Sequence[int]) -> list[int]:
        """Return the pages of a sequence's beginning that are known, held once more."""
        found = [page.index for page in self._walk(tokens)]
        self.hold(found)
        return found

    def keep(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Put the whole pages of a sequence into the tree.

        It ends where another sequence's page stands in place of one's own, so that whoever holds a page holds those
        before it: an idle page is never followed by one that is not.
        """
        before: _Known | None = None
        for place, page in enumerate(pages[: len(tokens) // BLOCK]):
            key = (-1 if before is None else before.index, tuple(tokens[place * BLOCK : (place + 1) * BLOCK]))
            found = self._known.get(key)
            if found is None:
                if page in self._keys or not self._kept:
                    return
                found = self._known[key] = _Known(page, key, before)
                self._keys[page] = key
                self._holders[page] += 1
                if before is not None:
                    before.followers += 1
            elif found.index != page:
                return
            before = found

    def forget(self) -> None:
        """Empty the tree."""
        for page in list(self._keys):
            self._idle -= self._holders[page] == 1
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)
        self._known, self._keys = {}, {}

    def _walk(self, tokens: Sequence[int]) -> list[_Known]:
        """Return the known pages of a sequence's beginning, and mark them as used, the first last."""
        keys: list[Key] = []
        before = -1
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = (before, tuple(tokens[start : start + BLOCK]))
            if key not in self._known:
                break
            keys.append(key)
            before = self._known[key].index
        for key in reversed(keys):
            self._known[key] = self._known.pop(key)
        return [self._known[key] for key in keys]

    def _forget_oldest(self) -> None:
        """Free the idle page without followers that was used longest ago."""
        oldest = next(page for page in self._known.values() if not page.followers and self._holders[page.index] == 1)
        del self._known[oldest.key], self._keys[oldest.index]
        if oldest.before is not None:
            oldest.before.followers -= 1
        self._idle -= 1
        self._holders[oldest.index] = 0
        self._free.append(oldest.index)
