"""What every algorithm must hold. B responses, T tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stackloom.core.errors import ConfigError
from stackloom.plugins.algorithm.batch import Batch
from stackloom.testing.contracts.plugin import PluginContract

LENGTHS = (5, 1, 3, 7, 2, 4, 6, 3)
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)
REWARDS = (1.0, 0.0, 0.25, 1.0, 0.0, 0.0, 1.0, 0.5)


class AlgorithmContract(PluginContract):
    """The laws of slot `algorithm`.

    Example:
        >>> class TestMyAlgorithm(AlgorithmContract):
        ...     plugin = "algorithm.my-algorithm"
    """

    def test_tokens_of_a_better_response_become_likelier(self) -> None:
        batch = _batch()
        gradient = self._gradient(batch.logp_old, batch)
        signs = self.component().advantages(batch).sign()[:, None].expand_as(gradient)
        assert set(signs.flatten().tolist()) == {-1.0, 1.0}
        assert torch.equal(-gradient[batch.mask].sign(), signs[batch.mask])

    def test_what_lies_outside_the_mask_changes_nothing(self) -> None:
        batch, logp = _batch(), _logp()
        gradient = self._gradient(logp, batch)
        poisoned: dict[str, Any] = {
            name: _poisoned(getattr(batch, name), batch.mask) for name in ("logp_old", "logp_infer")
        }
        again = self._gradient(_poisoned(logp, batch.mask), replace(batch, **poisoned))
        assert torch.equal(gradient, again)
        assert not gradient[~batch.mask].any()

    def test_micro_batches_add_up_to_the_step(self) -> None:
        batch, logp = _batch(), _logp()
        component = self.component()
        parts = [component.loss(logp[rows], _rows(batch, rows)) for rows in (slice(0, 4), slice(4, 8))]
        torch.testing.assert_close(sum(parts), component.loss(logp, batch), rtol=1e-12, atol=0)

    def test_reward_that_could_not_be_told_adds_nothing(self) -> None:
        batch = _batch()
        batch.valid[3] = False
        gradients = []
        for reward in (0.0, 1.0, 1e30, float("nan")):
            batch.rewards[3] = reward
            gradients.append(self._gradient(batch.logp_old, batch))  # ratio 1: no clip
        assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])
        assert not gradients[0][3].any()
        assert gradients[0][0].any()

    def test_reward_that_is_not_finite_is_not_trained_on(self) -> None:
        for reward in (float("nan"), float("inf")):
            batch = _batch()
            batch.rewards[6] = reward
            gradient = self._gradient(_logp(), batch)
            assert torch.isfinite(gradient).all()
            assert not gradient[6].any()

    def test_equal_rewards_teach_nothing(self) -> None:
        for reward in (0.0, 0.1, 1.0):
            batch = _batch()
            batch.rewards.fill_(reward)
            assert not self._gradient(_logp(), batch).any()

    def test_group_with_one_valid_member_teaches_nothing(self) -> None:
        batch = _batch()
        batch.valid[1:4] = False
        gradient = self._gradient(_logp(), batch)
        assert not gradient[:4].any()
        assert gradient[4:].any()

    def test_response_without_tokens_is_harmless(self) -> None:
        batch = _batch()
        batch.mask[0] = False
        gradient = self._gradient(_logp(), batch)
        assert torch.isfinite(gradient).all()
        assert not gradient[0].any()

    def test_huge_ratio_stays_finite(self) -> None:
        for shift in (-500.0, 500.0):
            batch = _batch()
            assert torch.isfinite(self._gradient(batch.logp_old + shift, batch)).all()

    def test_advantages_carry_no_gradient(self) -> None:
        advantages = self.component().advantages(_batch())
        assert advantages.shape == (len(GROUPS),)
        assert not advantages.requires_grad

    def test_is_a_function_of_its_arguments(self) -> None:
        component, batch, logp = self.component(), _batch(), _logp()
        first = component.loss(logp, batch)
        component.loss(logp + 1, batch)
        assert torch.equal(component.loss(logp, batch), first)

    def test_wrong_shape_and_nan_are_refused(self) -> None:
        batch, broken = _batch(), _logp()
        broken[0, 0] = float("nan")
        for logp in (_logp()[:, :-1], broken):
            with pytest.raises(ConfigError, match="logp"):
                self.component().loss(logp, batch)

    def _gradient(self, logp: Tensor, batch: Batch) -> Tensor:
        leaf = logp.clone().requires_grad_()
        loss = self.component().loss(leaf, batch)
        assert loss.ndim == 0
        torch.autograd.backward(loss)
        assert leaf.grad is not None
        return leaf.grad


def _logp(seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return -torch.rand(len(LENGTHS), max(LENGTHS), generator=draw, dtype=torch.float64)


def _batch() -> Batch:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return Batch(
        logp_old=_logp(2),
        logp_infer=_logp(3),
        mask=mask,
        rewards=torch.tensor(REWARDS, dtype=torch.float64),
        valid=torch.ones(len(LENGTHS), dtype=torch.bool),
        groups=torch.tensor(GROUPS),
        ages=torch.zeros(len(LENGTHS), dtype=torch.int64),
        responses=len(LENGTHS),
        tokens=sum(LENGTHS),
    )


def _rows(batch: Batch, rows: slice) -> Batch:
    names = ("logp_old", "logp_infer", "mask", "rewards", "valid", "groups", "ages")
    changes: dict[str, Any] = {name: getattr(batch, name)[rows] for name in names}
    return replace(batch, **changes)


def _poisoned(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, float("nan"))
