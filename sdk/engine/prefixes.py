"""Keys and values of what prompts begin with, in pages that sequences share.

Shape legend: P pages, L layers, G key/value heads, S tokens, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

BLOCK = 16  # tokens of a page

Key: TypeAlias = tuple[int, tuple[int, ...]]  # number of the page before (-1: none) and this page's tokens


@dataclass
class _Page:
    index: int
    key: Key
    before: _Page | None
    followers: int = 0


class Prefixes:
    """A tree of pages, each the continuation of the one before; the page that was not used for longest is replaced.

    Args:
        shape: of one token's keys and values, (L, 2, G, K).
        dtype, device: of the pages.
        limit: most bytes; memory is taken as pages fill.

    Example:
        >>> prefixes = Prefixes((1, 2, 1, 4), torch.float32, torch.device("cpu"), limit=2**20)
        >>> prefixes.put(range(40), torch.zeros(1, 2, 1, 40, 4))
        >>> prefixes.take([*range(33), 99], torch.empty(1, 2, 1, 64, 4))
        32
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, limit: int) -> None:
        layers, two, heads, width = shape
        pages = limit // max(1, BLOCK * prod(shape) * dtype.itemsize)
        self._pool_PL2GSK = torch.empty((pages, layers, two, heads, BLOCK, width), dtype=dtype, device=device)
        self._free = list(reversed(range(pages)))
        self._pages: dict[Key, _Page] = {}  # the one that was used last at the end, a page before its followers' end

    @property
    def capacity(self) -> int:
        """Most pages."""
        return self._pool_PL2GSK.shape[0]

    def __len__(self) -> int:
        """Number of pages in use."""
        return len(self._pages)

    def take(self, tokens: Sequence[int], row_L2GSK: Tensor) -> int:
        """Copy what is known of a sequence's beginning into its row of memory, and return how many tokens that is."""
        found = self._walk(tokens)
        if found:
            index = torch.tensor([page.index for page in found], device=row_L2GSK.device)
            pages_L2GPSK = self._pool_PL2GSK[index].permute(1, 2, 3, 0, 4, 5)
            row_L2GSK[:, :, :, : len(found) * BLOCK] = pages_L2GPSK.flatten(3, 4)
        return len(found) * BLOCK

    def known(self, tokens: Sequence[int]) -> int:
        """Return how many first tokens `take` would copy."""
        return len(self._walk(tokens)) * BLOCK

    def put(self, tokens: Sequence[int], row_L2GSK: Tensor) -> None:
        """Keep the whole pages of a sequence, whose keys and values lie in a row of memory, as far as there is room."""
        found = self._walk(tokens)
        for start in range(len(found) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
            before = found[-1] if found else None
            page = self._add(before, tuple(tokens[start : start + BLOCK]))
            if page is None:
                return
            self._pool_PL2GSK[page.index] = row_L2GSK[:, :, :, start : start + BLOCK]
            found.append(page)

    def _walk(self, tokens: Sequence[int]) -> list[_Page]:
        """Return the pages of a sequence's beginning, and mark them as used, the first last."""
        keys: list[Key] = []
        before = -1
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = (before, tuple(tokens[start : start + BLOCK]))
            if key not in self._pages:
                break
            keys.append(key)
            before = self._pages[key].index
        for key in reversed(keys):
            self._pages[key] = self._pages.pop(key)
        return [self._pages[key] for key in keys]

    def _add(self, before: _Page | None, tokens: tuple[int, ...]) -> _Page | None:
        """Return an empty page behind `before`, or None where every page has followers."""
        if before is not None:
            before.followers += 1  # keeps it from being replaced by its own follower
        if not self._free:
            oldest = next((page for page in self._pages.values() if not page.followers), None)
            if oldest is None:
                if before is not None:
                    before.followers -= 1
                return None
            del self._pages[oldest.key]
            if oldest.before is not None:
                oldest.before.followers -= 1
            self._free.append(oldest.index)
        key = (-1 if before is None else before.index, tokens)
        page = self._pages[key] = _Page(self._free.pop(), key, before)
        return page
