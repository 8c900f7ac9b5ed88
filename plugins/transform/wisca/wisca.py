"""WISCA: the balanced split of each pair's free scale (arXiv 2508.16676)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stackloom.core.errors import FitError
from stackloom.core.slots.transform import Rewrite
from stackloom.plugins.transform.wisca import memory
from stackloom.plugins.transform.wisca.balance import factor_of, factors, multiply, norms
from stackloom.plugins.transform.wisca.config import WiscaConfig
from stackloom.plugins.transform.wisca.pairs import ID, Pair, find_pairs

LOG = logging.getLogger("stackloom.transform")


class Wisca:
    """Multiplies one side of each pair by s = sqrt(|other| / |one|) and divides the other by it.

    Args:
        config: the plugin's options.

    Example:
        >>> for rewrite in Wisca(WiscaConfig()).apply(model):
        ...     print(rewrite.name, rewrite.what)
        model.layers.0.self_attn q/k q x 0.707, k x 1.41
    """

    def __init__(self, config: WiscaConfig) -> None:
        self.config = config

    def due(self, step: int) -> bool:
        """Whether training applies it before a step, from 0."""
        return self.config.due(step)

    @torch.no_grad()
    def apply(self, model: Any, optimizers: Sequence[Any] = ()) -> list[Rewrite]:
        """Balance every pair, and what the optimizers remember of it. All checks come before the first change.

        Args:
            model: a `transformers.PreTrainedModel` of a known architecture; rewritten in place, perhaps sharded.
            optimizers: `torch.optim.Optimizer`s of its parameters.

        Raises:
            FitError: an unknown architecture, normalised queries, quantized, shared or frozen weights, an unknown
                buffer of an optimizer; or with `strict` a norm that is zero or not finite.
        """
        config = self.config
        pairs = find_pairs(model, config)
        if config.state == "rescale" and config.control == "off":
            members = [member for pair in pairs for member in pair.members]
            memory.refuse_unknown(members, optimizers, config.state_degrees)
        measured = norms(pairs, config.norm)
        scales = [self._scale(pair, *both) for pair, both in zip(pairs, measured, strict=True)]
        for pair, scale in zip(pairs, scales, strict=True):
            if isinstance(scale, Tensor):
                self._rewrite(pair, scale, optimizers)
        after = measured if config.control != "off" else norms(pairs, config.norm)
        found = [
            Rewrite(pair.name, skipped=scale)
            if isinstance(scale, str)
            else Rewrite(pair.name, self._said(pair, scale), imbalance(*before), imbalance(*now))
            for pair, scale, before, now in zip(pairs, scales, measured, after, strict=True)
        ]
        for rewrite in found:
            LOG.info("%s %s: %s", ID, rewrite.name, rewrite.what or rewrite.skipped)
        return found

    def _scale(self, pair: Pair, up_U: Tensor, down_U: Tensor) -> Tensor | str:
        """Return the pair's factors (U,), or why it is left alone."""
        for side, norm_U in zip(pair.sides, (up_U, down_U), strict=True):
            if not torch.isfinite(norm_U).all():
                return self._refused(pair, f"{side} has a norm that is not finite")
            if not (norm_U > 0).all():
                if side == "B":
                    return "B is still zero"  # as every LoRA begins
                return self._refused(pair, f"{side} has a norm of zero")
        powers = self.config.pow2 == "always" or (self.config.pow2 == "auto" and torch.finfo(pair.dtype).bits < 32)
        scale_U = factors(up_U, down_U, limit=self.config.max_factor, power_of_two=powers)
        if float(scale_U.log().abs().max()) < self.config.min_change:
            return "balanced already"
        return scale_U

    def _refused(self, pair: Pair, reason: str) -> str:
        if self.config.strict:
            raise FitError(f"{pair.name}: {reason}", where=ID, fix="set strict: false to leave such pairs alone")
        return reason

    def _rewrite(self, pair: Pair, scale_U: Tensor, optimizers: Sequence[Any]) -> None:
        config = self.config
        for member in pair.members:
            if config.control != "off":
                scale = float(scale_U[0]) if member.up else 1 / float(scale_U[0])
                memory.match_rates(member, scale, optimizers, 2 if config.control == "sgd" else 1)
                continue
            factor_N = factor_of(member, scale_U)
            multiply(member.parameter, member, factor_N)
            if config.state == "rescale":
                memory.rescale(member, factor_N, optimizers, config.state_degrees)
            elif config.state == "reset":
                memory.reset(member.parameter, optimizers)

    def _said(self, pair: Pair, scale_U: Tensor) -> str:
        one, two = pair.sides
        verb = "lr of " if self.config.control != "off" else ""
        ways = ((one, 1 / scale_U), (two, scale_U)) if verb else ((one, scale_U), (two, 1 / scale_U))
        return ", ".join(f"{verb}{side} x {_span(values)}" for side, values in ways)


def imbalance(up_U: Tensor, down_U: Tensor) -> float:
    """Return the largest ratio of two norms of one unit, at least 1."""
    return float((up_U / down_U).log().abs().max().exp())


def _span(values_U: Tensor) -> str:
    low, high = f"{float(values_U.min()):.3g}", f"{float(values_U.max()):.3g}"
    return low if low == high else f"{low} to {high}"
