"""What calibration sequences show of each linear layer's inputs: ranges, second moments, and some of the inputs.

Shape legend: T tokens of a sequence, M rows that reach a layer, K in features, S rows kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stackloom.core.errors import FitError


class InputStatistics:
    """What reached one linear layer. Layers that read the same tensor share one object.

    Args:
        columns: K.
        hessian: whether second moments are accumulated (4 K^2 bytes).
        sample: S, most rows that are kept.
        device: of the accumulators.

    Attributes:
        tokens: rows seen; 0 where calibration never reached the layer.
        low_K, high_K: (K,) float32, smallest and largest value of each channel.
    """

    def __init__(self, columns: int, *, hessian: bool = False, sample: int = 0, device: Any = None) -> None:
        self.tokens = 0
        self.low_K = torch.full((columns,), torch.inf, device=device)
        self.high_K = torch.full((columns,), -torch.inf, device=device)
        self._magnitudes_K = torch.zeros(columns, dtype=torch.float64, device=device)
        self._token_ranges = 0.0
        self._products_KK = torch.zeros(columns, columns, device=device) if hessian else None
        self._rows_SK, self._kept = torch.empty(sample, columns, device=device), 0  # in one piece: no fragments

    def add(self, x_MK: Tensor, rows: int) -> None:
        """Take inputs (M, K), and keep up to `rows` of them, evenly spaced.

        Raises:
            ValueError: a value is not finite.
        """
        wide_MK = x_MK.detach().reshape(-1, x_MK.shape[-1]).float()
        if not len(wide_MK):
            return
        low_K, high_K = wide_MK.aminmax(dim=0)
        if not (torch.isfinite(low_K).all() and torch.isfinite(high_K).all()):
            raise ValueError("an input is not finite")
        self.tokens += len(wide_MK)
        torch.minimum(self.low_K, low_K, out=self.low_K)
        torch.maximum(self.high_K, high_K, out=self.high_K)
        self._magnitudes_K += wide_MK.abs().sum(0)
        self._token_ranges += wide_MK.abs().amax(1).double().sum().item()
        if self._products_KK is not None:
            self._products_KK.addmm_(wide_MK.t(), wide_MK, alpha=2)
        room = min(rows, len(self._rows_SK) - self._kept)
        if room > 0:
            chosen = wide_MK[:: -(-len(wide_MK) // room)][:room]
            self._rows_SK[self._kept : self._kept + len(chosen)] = chosen
            self._kept += len(chosen)

    @property
    def largest_K(self) -> Tensor:
        """Largest magnitude of each channel (K,), zero where nothing was seen."""
        return torch.maximum(-self.low_K, self.high_K).clamp_min(0) if self.tokens else torch.zeros_like(self.low_K)

    @property
    def range(self) -> float:
        """Largest magnitude of all."""
        return self.largest_K.max().item()

    @property
    def mean_token_range(self) -> float:
        """Mean over tokens of a token's largest magnitude; far below `range` where few tokens are loud."""
        return self._token_ranges / max(self.tokens, 1)

    @property
    def mean_magnitude_K(self) -> Tensor:
        """Mean magnitude of each channel (K,) float32."""
        return (self._magnitudes_K / max(self.tokens, 1)).float()

    @property
    def hessian_KK(self) -> Tensor:
        """2 / tokens * sum of x x' (K, K) float32, the Hessian of |x W' - x V'|^2 in a row of V.

        Raises:
            ValueError: it was not asked for.
        """
        if self._products_KK is None:
            raise ValueError("no second moments were accumulated")
        return self._products_KK / max(self.tokens, 1)

    @property
    def sample_SK(self) -> Tensor:
        """Rows kept (S, K) float32, from all sequences alike."""
        return self._rows_SK[: self._kept]


class Observer:
    """Watches linear layers' inputs while the model runs inside its `with`.

    Args:
        linears: layers by path.
        sequences: how many will run, so that each gives its share of the sample.
        hessian: whether second moments are accumulated.
        sample: rows kept per layer.
        where: the plugin, for messages.

    Attributes:
        statistics: by path; those of layers that were not reached are there with no tokens.

    Example:
        >>> with Observer(linears, sequences=len(calibration), where="quantizer.mine") as seen:
        ...     run_model(model, calibration)
        >>> seen.statistics["model.layers.0.mlp.up_proj"].range
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        *,
        sequences: int,
        hessian: bool = False,
        sample: int = 0,
        where: str = "",
    ) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self._linears, self._hessian, self._sample, self._where = dict(linears), hessian, sample, where
        self._rows = -(-sample // max(sequences, 1))
        self._leader: dict[str, str] = {}  # per reached layer the first one that read the same tensor
        self._inputs: dict[int, tuple[weakref.ref[Tensor], str]] = {}  # by id, alive: who read it first
        self._handles: list[Any] = []

    def __enter__(self) -> Observer:
        for path, linear in self._linears.items():
            self._handles.append(linear.register_forward_pre_hook(self._hook(path), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._inputs.clear()
        for path in self.unreached:
            self.statistics[path] = self._empty(path)

    @property
    def unreached(self) -> tuple[str, ...]:
        """Layers that no token reached, such as experts that the router never chose."""
        return tuple(path for path in self._linears if path not in self._leader or not self.statistics[path].tokens)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Reached layers, those that read the same tensor together, in the order in which they ran."""
        return [
            tuple(path for path, first in self._leader.items() if first == leader)
            for leader in dict.fromkeys(self._leader.values())
        ]

    def _empty(self, path: str) -> InputStatistics:
        linear = self._linears[path]
        return InputStatistics(
            linear.in_features, hessian=self._hessian, sample=self._sample, device=linear.weight.device
        )

    def _hook(self, path: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            alive, first = self._inputs.get(id(x), (lambda: None, path))
            first = first if alive() is x else path
            if self._leader.setdefault(path, first) != first:
                raise FitError(
                    f"{path} shares its input with {self._leader[path]} in one call and not in another",
                    where=self._where,
                    fix="exclude it",
                )
            if first != path:
                self.statistics[path] = self.statistics[first]
                return
            self._inputs[id(x)] = (weakref.ref(x), path)
            if path not in self.statistics:
                self.statistics[path] = self._empty(path)
            try:
                self.statistics[path].add(x, self._rows)
            except ValueError as cause:
                raise FitError(
                    f"the inputs of {path} are not finite", where=self._where, fix="check the model and the data"
                ) from cause

        return see


def checked(calibration: Sequence[Tensor], model: Any, where: str) -> list[Tensor]:
    """Return the sequences on the model's device.

    Raises:
        FitError: there are none, or one is no row of token ids of the model's vocabulary.
    """
    if not len(calibration):
        raise FitError("needs calibration data", where=where, fix="give the quantize stage data")
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    for index, tokens in enumerate(calibration):
        if tokens.ndim != 1 or not len(tokens) or tokens.is_floating_point() or tokens.is_complex():
            raise FitError(
                f"calibration sequence {index} is {tokens.dtype} of shape {tuple(tokens.shape)}, not token ids (T,)",
                where=where,
            )
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise FitError(f"calibration sequence {index} has ids beyond the vocabulary of {vocabulary}", where=where)
    return [tokens.long().to(model.device) for tokens in calibration]


def random_tokens(vocabulary: int, sequences: int, length: int, seed: int) -> list[Tensor]:
    """Return sequences of uniformly drawn token ids (T,), for calibration without data."""
    draw = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, vocabulary, (sequences, length), generator=draw))


def run_model(model: Any, calibration: Iterable[Tensor], each: Callable[[], None] = lambda: None) -> None:
    """Run every sequence through the whole model, and call `each` after it."""
    with torch.no_grad():
        for tokens in calibration:
            model(tokens[None], use_cache=False)
            each()


def refuse_unreached(unreached: Sequence[str], where: str) -> None:
    """Refuse layers about which calibration says nothing.

    Raises:
        FitError: names the first, and how many there are.
    """
    if unreached:
        raise FitError(
            f"calibration never reached {unreached[0]}"
            + (f" and {len(unreached) - 1} other layers" if len(unreached) > 1 else ""),
            where=where,
            fix="give more or other data, exclude them, or set unreached: nearest where there is that option",
        )


def refuse_outside(linears: Iterable[str], blocks: Iterable[str], where: str) -> None:
    """Refuse layers that lie in none of the decoder's blocks, which are calibrated one after the other.

    Raises:
        FitError: names the first.
    """
    homes = tuple(f"{block}." for block in blocks)
    for path in linears:
        if not path.startswith(homes):
            raise FitError(f"{path} lies outside of the decoder's blocks", where=where, fix="exclude it")
