"""What every transform must hold.

Shape legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.core.shapes import ModelShape
from stackloom.core.touch import overlap
from stackloom.testing import lookup
from stackloom.testing.comparison import eps, relative_error
from stackloom.testing.contracts.plugin import PluginContract, torch_dtype
from stackloom.testing.llama import llama_shape, tiny_llama

LENGTH = 17


class Foreign(nn.Linear):
    """A linear layer of a class that no transform can know."""


class TransformContract(PluginContract):
    """The laws of slot `transform`, on a small Llama.

    Example:
        >>> class TestMyTransform(TransformContract):
        ...     plugin = "transform.my-transform"
        ...     options = {"factor": 2.0}
    """

    @classmethod
    def shape(cls) -> ModelShape:
        return llama_shape()

    @classmethod
    def model(cls, dtype: str = "float32") -> Any:
        """Return the model; equal for equal arguments."""
        return tiny_llama(cls.shape(), torch_dtype(dtype))

    @classmethod
    def tokens(cls) -> Tensor:
        """Return (2, T) token ids."""
        return torch.randint(0, cls.shape().vocab, (2, LENGTH), generator=torch.Generator().manual_seed(0))

    def applied(self, dtype: str = "float32") -> tuple[Any, list[Any]]:
        """Return (model, rewrites)."""
        model = self.model(dtype)
        return model, self.component().apply(model)

    def need(self, feature: str) -> None:
        """Skip the law where the manifest lacks the feature."""
        if feature not in self.record().manifest.can.features:
            pytest.skip(f"has no feature {feature!r}")

    def test_invariant_is_stated_with_a_bound(self, dtype: str) -> None:
        invariant = self.config().invariant(dtype, self.shape().layers)
        assert invariant.statement
        assert 0 <= invariant.bound < math.inf

    def test_outputs_stay_within_the_bound(self, dtype: str) -> None:
        before = _logits(self.model(dtype), self.tokens())
        model, _ = self.applied(dtype)
        change = (_logits(model, self.tokens()) - before).abs().max() / before.abs().max()
        assert float(change) <= self.config().invariant(dtype, self.shape().layers).bound

    def test_weights_change_where_touches_say_and_nowhere_else(self) -> None:
        before = self.model().state_dict()
        model, _ = self.applied()
        touches = [touch for touch in self.config().touches(self.context()) if touch.mode != "read"]
        nodes = [node for touch in touches for node in touch.nodes]
        after = model.state_dict()
        changed = [name for name in after if name not in before or not torch.equal(before[name], after[name])]
        assert changed
        assert [name for name in changed if not any(overlap(node, name) for node in nodes)] == []
        assert [node for node in nodes if not any(overlap(node, name) for name in changed)] == []

    def test_rewrites_name_what_was_done(self) -> None:
        model, rewrites = self.applied()
        paths = dict(model.named_modules())
        assert any(not rewrite.skipped for rewrite in rewrites)
        for rewrite in rewrites:
            assert bool(rewrite.what) != bool(rewrite.skipped), rewrite
            assert rewrite.name.split(" ")[0] in paths, rewrite
            assert all(math.isfinite(figure) for figure in (rewrite.before, rewrite.after) if figure is not None), (
                rewrite
            )

    def test_equal_models_are_rewritten_to_equal_bits(self, dtype: str) -> None:
        """Also by one component twice: it keeps nothing between calls."""
        component = self.component()
        models = [self.model(dtype), self.model(dtype)]
        said = [component.apply(model) for model in models]
        assert said[0] == said[1]
        one, two = (model.state_dict() for model in models)
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_weights_stay_finite_trainable_and_of_their_dtype(self, dtype: str) -> None:
        model, _ = self.applied(dtype)
        for name, parameter in model.named_parameters():
            assert parameter.dtype == torch_dtype(dtype), name
            assert torch.isfinite(parameter).all(), name
            assert parameter.requires_grad, name

    def test_version_counters_of_changed_weights_rise(self) -> None:
        """So that whoever holds keys and values from before can see that they are void."""
        model = self.model()
        before = {
            name: (parameter, parameter._version, parameter.clone()) for name, parameter in model.named_parameters()
        }
        self.component().apply(model)
        for name, parameter in model.named_parameters():
            if name in before and parameter is before[name][0] and not torch.equal(parameter, before[name][2]):
                assert parameter._version > before[name][1], name

    def test_random_state_and_mode_stay(self) -> None:
        model = self.model()
        state = torch.random.get_rng_state()
        self.component().apply(model)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not any(module.training for module in model.modules())

    def test_foreign_layers_are_refused_and_nothing_has_changed(self) -> None:
        model = self.model()
        model.get_decoder().layers[-1].apply(_make_foreign)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(FitError):
            self.component().apply(model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_rewritten_model_loads_as_any_other(self, tmp_path: Path, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        model, _ = self.applied(dtype)
        model.save_pretrained(tmp_path)
        ours = model.state_dict()
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch_dtype(dtype)).state_dict()
        assert again.keys() == ours.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())

    def test_due_depends_on_the_step_alone(self) -> None:
        one, two = self.component(), self.component()
        forward = [one.due(step) for step in range(600)]
        one.apply(self.model())
        assert forward == [two.due(step) for step in reversed(range(600))][::-1]
        assert forward == [one.due(step) for step in range(600)]

    def test_training_goes_on_with_what_the_optimizer_remembers(self) -> None:
        """The optimizer's own groups and parameters stay; its next step is finite and moves the weights."""
        self.need("state")
        model = self.model()
        optimizer = lookup.build("optimizer.adamw", model.named_parameters(), lr=1e-3)
        _step(model, optimizer, self.tokens())
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.component().apply(model, (optimizer,))
        now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in now} == {id(parameter) for parameter in model.parameters()}
        assert len(now) == len(held)
        before = [parameter.detach().clone() for parameter in now]
        _step(model, optimizer, self.tokens())
        assert all(torch.isfinite(parameter).all() for parameter in now)
        assert all(not torch.equal(one, two) for one, two in zip(before, now, strict=True))

    def test_optimizer_state_follows_the_weights(self) -> None:
        """Moments of one gradient, before the rewrite, become the moments of the gradient at the rewritten weights."""
        self.need("state")
        model = self.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.5, 0.5))  # keeps halves, moves nothing
        _step(model, optimizer, self.tokens())
        self.component().apply(model, (optimizer,))
        model.zero_grad()
        torch.autograd.backward(_loss(model, self.tokens()))
        tolerance = 1000 * eps(torch.float32)  # of a gradient through every layer, computed twice
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            state = optimizer.state[parameter]
            assert relative_error(2 * state["exp_avg"], parameter.grad) < tolerance, name
            assert relative_error(2 * state["exp_avg_sq"], parameter.grad.square()) < 2 * tolerance, name


def _make_foreign(module: nn.Module) -> None:
    if type(module) is nn.Linear:
        module.__class__ = Foreign


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    """Return (B, T, V), at least in float32."""
    found = model(tokens, use_cache=False).logits
    assert isinstance(found, Tensor)
    return found if found.dtype == torch.float64 else found.float()


def _loss(model: Any, tokens: Tensor) -> Tensor:
    logits = model(tokens, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def _step(model: Any, optimizer: Any, tokens: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(_loss(model, tokens))
    optimizer.step()
