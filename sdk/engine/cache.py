"""`DenseView`: the plain torch implementation of core's `CacheView`, one contiguous buffer per page.

Shape legend: B sequences, T appended tokens, L capacity in tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stackloom.core.cache import Buffer, CacheSpec
from stackloom.core.errors import EngineError, PluginError

GROWTH = 2  # capacity multiplies by this when a page is full


@dataclass(frozen=True)
class _Snapshot:
    """Fixed state at the moment when `appended` tokens had been appended since the view was made."""

    appended: int
    states: dict[str, Tensor]


class DenseView:
    """One layer's cache for B sequences, in preallocated buffers that grow by doubling. Holds no gradients.

    Args:
        spec: what the attention plugin declared.
        batch: number of sequences B.
        dtype: what "compute" stands for in the spec.
        device: where the buffers live.
        capacity: tokens to allocate at once.
        poison: fill everything past a sequence's length with NaN (integers: the smallest value), so that a plugin that
            reads there is caught.
        max_snapshots: how many snapshots of fixed state are kept; the oldest is forgotten first.

    Example:
        >>> spec = CacheSpec(pages={"k": Buffer(shape=(2, 8))})
        >>> view = DenseView(spec, batch=3, dtype=torch.float32)
        >>> view.append(5, k=torch.zeros(3, 5, 2, 8))
        >>> view.read("k").shape, view.lengths_B.tolist()
        (torch.Size([3, 5, 2, 8]), [5, 5, 5])
    """

    def __init__(
        self,
        spec: CacheSpec,
        batch: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int = 16,
        poison: bool = False,
        max_snapshots: int = 8,
    ) -> None:
        self.spec, self.dtype, self.device, self.poison = spec, dtype, torch.device(device), poison
        self._lengths = [0] * batch
        self._appended = 0
        self._pages = {name: self._allocate(buffer, (batch, capacity)) for name, buffer in spec.pages.items()}
        self._states = {
            name: torch.zeros((batch, *buffer.shape), dtype=self._dtype(buffer), device=self.device)
            for name, buffer in spec.state.items()
        }
        self._snapshots: deque[_Snapshot] = deque(maxlen=max_snapshots)
        self.snapshot()

    @property
    def lengths_B(self) -> Tensor:
        """Tokens cached per sequence, int64 (B,)."""
        return torch.tensor(self._lengths, dtype=torch.int64, device=self.device)

    @property
    def used_bytes(self) -> int:
        """Bytes of the cached tokens and of the state; spare capacity and snapshots are not counted."""
        pages = sum(
            buffer[0, 0].numel() * buffer.element_size() * sum(self._lengths) for buffer in self._pages.values()
        )
        return pages + sum(state.numel() * state.element_size() for state in self._states.values())

    def append(self, tokens: int, /, **entries: Tensor) -> None:
        """Append `tokens` tokens to every sequence; each entry is (B, tokens, *page shape).

        Raises:
            PluginError: a page is missing or unknown, or an entry's shape or dtype is not the spec's.
        """
        _expect_names(entries, self.spec.pages)
        if tokens < 0:
            raise PluginError(f"append() of {tokens} tokens", where="cache")
        batch = len(self._lengths)
        for name, entry in entries.items():
            _expect(name, entry, (batch, tokens, *self.spec.pages[name].shape), self._pages[name].dtype)
        self._reserve(max(self._lengths, default=0) + tokens)
        rows = torch.arange(batch, device=self.device)[:, None]
        slots_BT = self.lengths_B[:, None] + torch.arange(tokens, device=self.device)
        for name, entry in entries.items():
            self._pages[name][rows, slots_BT] = entry.detach()
        self._lengths = [length + tokens for length in self._lengths]
        self._appended += tokens

    def read(self, name: str) -> Tensor:
        """Return page `name`, (B, longest, *page shape), without a copy; undefined past a sequence's length.

        Raises:
            PluginError: the spec has no such page.
        """
        _expect_known(name, self._pages, "page")
        return self._pages[name][:, : max(self._lengths, default=0)]

    def state(self, name: str) -> Tensor:
        """Return state `name`, (B, *state shape); zeros before the first write. Not to be changed in place.

        Raises:
            PluginError: the spec has no such state.
        """
        _expect_known(name, self._states, "state")
        return self._states[name]

    def write(self, **states: Tensor) -> None:
        """Replace states, each (B, *state shape); states that are not named stay.

        Raises:
            PluginError: an unknown state, or a shape or dtype that is not the spec's.
        """
        for name, value in states.items():
            _expect_known(name, self._states, "state")
            _expect(name, value, tuple(self._states[name].shape), self._states[name].dtype)
        self._states |= {name: value.detach().clone() for name, value in states.items()}

    def snapshot(self) -> None:
        """Remember the fixed state at the current lengths; with pages alone there is nothing to remember."""
        if self._states and (not self._snapshots or self._snapshots[-1].appended < self._appended):
            self._snapshots.append(
                _Snapshot(self._appended, {name: state.clone() for name, state in self._states.items()})
            )

    def rollback(self, n: int) -> int:
        """Forget the last `n` tokens of every sequence, and with fixed state the tokens since the snapshot before them.

        Returns:
            Tokens that the caller must feed again, always 0 without fixed state.

        Raises:
            EngineError: fewer than n tokens are cached, or no snapshot reaches back that far. The view stays as it was.
        """
        if n < 0 or n > min(self._lengths, default=0):
            raise EngineError(f"cannot roll {n} tokens back, the shortest sequence has {min(self._lengths, default=0)}")
        target = self._appended - n
        if n and self._states:
            found = next((snapshot for snapshot in reversed(self._snapshots) if snapshot.appended <= target), None)
            if found is None:
                raise EngineError(
                    f"cannot roll {n} tokens back: no snapshot reaches back that far",
                    fix="take snapshots more often or keep more",
                )
            while self._snapshots[-1].appended > found.appended:
                self._snapshots.pop()
            self._states = {name: state.clone() for name, state in found.states.items()}
            replay = target - found.appended
        else:
            replay = 0
        self._truncate([length - n - replay for length in self._lengths])
        self._appended -= n + replay
        return replay

    @classmethod
    def merge(cls, views: Sequence[DenseView]) -> DenseView:
        """Return one view of all sequences of `views`, in order; their lengths may differ. Snapshots start anew.

        Raises:
            EngineError: no views, or views of different specs, dtypes or devices.
        """
        if not views or len({(view.spec.model_dump_json(), view.dtype, view.device) for view in views}) != 1:
            raise EngineError("merge() needs at least one view, all of one spec, dtype and device")
        first = views[0]
        lengths = [length for view in views for length in view._lengths]
        whole = cls(
            first.spec,
            len(lengths),
            dtype=first.dtype,
            device=first.device,
            capacity=max(lengths, default=1) or 1,
            poison=any(view.poison for view in views),
            max_snapshots=first._snapshots.maxlen or 8,
        )
        row = 0
        for view in views:
            rows = slice(row, row := row + len(view._lengths))
            for name, page in whole._pages.items():
                page[rows, : max(view._lengths, default=0)] = view.read(name)
            for name, state in whole._states.items():
                state[rows] = view._states[name]
        whole._truncate(lengths)
        whole._snapshots.clear()
        whole.snapshot()
        return whole

    def select(self, rows: Sequence[int]) -> DenseView:
        """Return a view of the sequences `rows` alone, in that order. Snapshots come along.

        Raises:
            EngineError: a row that the view does not have.
        """
        if any(not 0 <= row < len(self._lengths) for row in rows):
            raise EngineError(f"rows {list(rows)} of a view of {len(self._lengths)} sequences")
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        part = DenseView.__new__(DenseView)
        part.__dict__ |= self.__dict__
        part._lengths = [self._lengths[row] for row in rows]
        part._pages = {name: page.index_select(0, index) for name, page in self._pages.items()}
        part._states = {name: state.index_select(0, index) for name, state in self._states.items()}
        part._snapshots = deque(
            (
                _Snapshot(kept.appended, {name: state.index_select(0, index) for name, state in kept.states.items()})
                for kept in self._snapshots
            ),
            maxlen=self._snapshots.maxlen,
        )
        return part

    def copy(self) -> DenseView:
        """Return an independent copy, snapshots included."""
        twin = DenseView.__new__(DenseView)
        twin.__dict__ |= self.__dict__
        twin._lengths = list(self._lengths)
        twin._pages = {name: page.clone() for name, page in self._pages.items()}
        twin._states = {name: state.clone() for name, state in self._states.items()}
        twin._snapshots = deque(self._snapshots, maxlen=self._snapshots.maxlen)
        return twin

    def _dtype(self, buffer: Buffer) -> torch.dtype:
        return self.dtype if buffer.dtype == "compute" else getattr(torch, buffer.dtype)

    def _allocate(self, buffer: Buffer, leading: tuple[int, int]) -> Tensor:
        page = torch.empty((*leading, *buffer.shape), dtype=self._dtype(buffer), device=self.device)
        return page.fill_(_poison(page.dtype)) if self.poison else page

    def _reserve(self, tokens: int) -> None:
        """Grow every page to hold `tokens` tokens."""
        for name, old in self._pages.items():
            if old.shape[1] < tokens:
                self._pages[name] = self._allocate(
                    self.spec.pages[name], (old.shape[0], max(tokens, GROWTH * old.shape[1]))
                )
                self._pages[name][:, : old.shape[1]] = old

    def _truncate(self, lengths: list[int]) -> None:
        self._lengths = lengths
        if self.poison:
            for page in self._pages.values():
                for row, length in enumerate(lengths):
                    page[row, length:] = _poison(page.dtype)


def _poison(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


def _expect_names(given: dict[str, Tensor], known: dict[str, Buffer]) -> None:
    if given.keys() != known.keys():
        raise PluginError(
            f"append() takes all pages at once: expected {sorted(known)}, got {sorted(given)}", where="cache"
        )


def _expect_known(name: str, known: dict[str, Tensor], kind: str) -> None:
    if name not in known:
        raise PluginError(f"the cache spec declares no {kind} {name!r}, only {sorted(known)}", where="cache")


def _expect(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise PluginError(
            f"{name} is {tuple(value.shape)} {value.dtype}, the cache spec says {shape} {dtype}", where="cache"
        )
