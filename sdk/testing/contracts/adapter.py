"""What every adapter must hold.

Shape legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from stackloom.core.errors import ArtifactError, FitError
from stackloom.core.shapes import ModelShape
from stackloom.core.touch import overlap
from stackloom.testing.comparison import eps, relative_error
from stackloom.testing.contracts.plugin import PluginContract, torch_dtype
from stackloom.testing.llama import llama_shape, tiny_llama

LENGTH = 17


class AdapterContract(PluginContract):
    """The laws of slot `adapter`, on a small Llama.

    Example:
        >>> class TestMyAdapter(AdapterContract):
        ...     plugin = "adapter.my-adapter"
        ...     options = {"rank": 4}
    """

    @classmethod
    def shape(cls) -> ModelShape:
        return llama_shape()

    @classmethod
    def model(cls, dtype: str = "float32") -> Any:
        """Return the base model; equal for equal arguments."""
        return tiny_llama(cls.shape(), torch_dtype(dtype))

    @classmethod
    def tokens(cls, seed: int = 0) -> Tensor:
        """Return (2, T) token ids."""
        return torch.randint(0, cls.shape().vocab, (2, LENGTH), generator=torch.Generator().manual_seed(seed))

    def injected(self, dtype: str = "float32", seed: int = 0) -> tuple[Any, Any, list[str]]:
        """Return (adapter, model with it, names of the trainable parameters)."""
        model, adapter = self.model(dtype), self.component()
        return adapter, model, adapter.inject(model, seed=seed)

    def trained(self, dtype: str = "float32", steps: int = 3) -> tuple[Any, Any, list[str]]:
        """Return the same after a few steps, the last of which ends a schedule, in eval mode."""
        adapter, model, names = self.injected(dtype)
        _train(adapter, model, self.tokens(), steps)
        return adapter, model.eval(), names

    def need(self, feature: str) -> None:
        """Skip the law where the manifest lacks the feature."""
        if feature not in self.record().manifest.can.features:
            pytest.skip(f"has no feature {feature!r}")

    def test_inject_names_what_is_trainable_and_freezes_the_rest(self) -> None:
        _, model, names = self.injected()
        base = {name for name, _ in self.model().named_parameters()}
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert names
        assert sorted(names) == sorted(trainable)
        assert not base & set(trainable)

    def test_outputs_start_bit_equal_to_the_base(self, dtype: str) -> None:
        base = _logits(self.model(dtype), self.tokens())
        _, model, _ = self.injected(dtype)
        assert torch.equal(_logits(model, self.tokens()), base)

    def test_inject_keeps_eval_mode(self) -> None:
        _, model, _ = self.injected()
        assert not any(module.training for module in model.modules())

    def test_trainable_parameters_and_bytes_are_what_cost_says(self, dtype: str) -> None:
        _, model, _ = self.injected(dtype)
        held = [parameter for parameter in model.parameters() if parameter.requires_grad]
        cost = self.config().cost(self.work(dtype))
        assert cost.trainable == cost.parameters == sum(parameter.numel() for parameter in held)
        assert cost.weight_bytes == sum(parameter.numel() * parameter.element_size() for parameter in held)

    def test_touches_name_what_is_wrapped(self) -> None:
        _, _, names = self.injected()
        touches = self.config().touches(self.context())
        assert all(touch.mode == "wrap" for touch in touches)
        nodes = [node for touch in touches for node in touch.nodes]
        assert [name for name in names if not any(overlap(node, name) for node in nodes)] == []
        assert [node for node in nodes if not any(overlap(node, name) for name in names)] == []

    def test_training_moves_the_adapter_and_lowers_the_loss(self, dtype: str) -> None:
        adapter, model, names = self.injected(dtype)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        start = _loss(model, self.tokens()).item()
        _train(adapter, model, self.tokens(), 8)
        assert _loss(model.eval(), self.tokens()).item() < start
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (name not in names), name

    def test_gradient_of_a_batch_is_the_sum_over_its_micro_batches(self) -> None:
        _, model, names = self.trained("float32")
        parameters, tokens = dict(model.named_parameters()), self.tokens(1)
        whole = _gradients(model, names, tokens)
        for parameter in parameters.values():
            parameter.grad = None
        for row in tokens:
            torch.autograd.backward(_loss(model, row[None]) / len(tokens))
        for name in names:
            gradient = parameters[name].grad
            assert gradient is not None
            assert relative_error(gradient, whole[name]) < 100 * eps(torch.float32), name

    def test_activation_checkpointing_keeps_the_gradients(self) -> None:
        """Bit for bit, a dropout's mask included: both passes start from one random state."""
        _, model, names = self.trained()
        model.train()
        torch.manual_seed(5)
        plain = _gradients(model, names, self.tokens(1))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(5)
        saved = _gradients(model, names, self.tokens(1))
        assert all(torch.equal(plain[name], saved[name]) for name in names)

    def test_seed_decides_the_start_and_nothing_else_does(self) -> None:
        before = torch.random.get_rng_state()
        starts = []
        for noise, seed in ((1, 0), (2, 0), (3, 1)):
            torch.manual_seed(noise)
            state = torch.random.get_rng_state()
            _, model, names = self.injected(seed=seed)
            assert torch.equal(torch.random.get_rng_state(), state)
            starts.append([dict(model.named_parameters())[name].detach() for name in names])
        torch.random.set_rng_state(before)
        assert all(torch.equal(one, two) for one, two in zip(starts[0], starts[1], strict=True))
        assert any(not torch.equal(one, two) for one, two in zip(starts[0], starts[2], strict=True))

    def test_second_adapter_on_top_is_refused(self) -> None:
        adapter, model, _ = self.injected()
        names = [name for name, _ in model.named_parameters()]
        for again in (adapter, self.component()):
            with pytest.raises(FitError):
                again.inject(model, seed=0)
        assert [name for name, _ in model.named_parameters()] == names

    def test_merge_keeps_the_outputs_and_leaves_the_plain_model(self, dtype: str) -> None:
        """Within the rounding of the merged weights, which every layer passes on; Llama's norms compute in float32."""
        self.need("merge")
        adapter, model, _ = self.trained(dtype)
        kinds = {name: type(module) for name, module in self.model(dtype).named_modules()}
        before = _logits(model, self.tokens(2))
        adapter.merge(model)
        assert {name: type(module) for name, module in model.named_modules()} == kinds
        assert {parameter.dtype for parameter in model.parameters()} == {torch_dtype(dtype)}
        assert all(parameter.requires_grad for parameter in model.parameters())
        roundings = 8 * self.shape().layers  # linear layers and norms one after the other
        unit = max(eps(torch_dtype(dtype)), eps(torch.float32))
        assert relative_error(_logits(model, self.tokens(2)), before) < 2 * roundings * unit
        assert relative_error(before, _logits(self.model(dtype), self.tokens(2))) > 0

    def test_merge_without_an_adapter_is_refused(self) -> None:
        self.need("merge")
        with pytest.raises(FitError):
            self.component().merge(self.model())
        adapter, model, _ = self.injected()
        adapter.merge(model)
        with pytest.raises(FitError):
            adapter.merge(model)

    def test_saved_adapter_comes_back_bit_exactly(self, tmp_path: Path, dtype: str) -> None:
        """Into a fresh model that another seed started."""
        self.need("peft")
        adapter, model, names = self.trained(dtype)
        adapter.save(model, tmp_path / "adapter", "base")
        loaded, twin, _ = self.injected(dtype, seed=9)
        loaded.load(twin, tmp_path / "adapter")
        ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
        assert all(torch.equal(ours[name], theirs[name]) for name in names)

    def test_damaged_files_are_refused_and_change_nothing(self, tmp_path: Path) -> None:
        self.need("peft")
        adapter, model, _ = self.trained()
        good = tmp_path / "good"
        adapter.save(model, good, "base")
        loaded, twin, _ = self.injected(seed=9)
        before = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
        for index, damage in enumerate(_DAMAGES):
            bad = tmp_path / str(index)
            shutil.copytree(good, bad)
            damage(bad / "adapter_config.json", bad / "adapter_model.safetensors")
            with pytest.raises(ArtifactError):
                loaded.load(twin, bad)
        for name, parameter in twin.named_parameters():
            assert torch.equal(parameter, before[name]), name

    def test_files_without_an_adapter_in_the_model_are_refused(self, tmp_path: Path) -> None:
        self.need("peft")
        adapter, model, _ = self.trained()
        adapter.save(model, tmp_path, "base")
        attempts: list[Callable[[], object]] = [
            lambda: self.component().load(self.model(), tmp_path),
            lambda: self.component().save(self.model(), tmp_path / "nothing", "base"),
        ]
        for attempt in attempts:
            with pytest.raises(FitError):
                attempt()


def _truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


_DAMAGES: list[Callable[[Path, Path], object]] = [
    lambda config, weights: config.unlink(),
    lambda config, weights: weights.unlink(),
    lambda config, weights: config.write_text("{"),
    lambda config, weights: config.write_text("[]"),
    lambda config, weights: config.write_text('{"peft_type": "PREFIX_TUNING"}'),
    lambda config, weights: weights.write_bytes(b""),
    lambda config, weights: weights.write_bytes(b"\xff" * 64),
    lambda config, weights: _truncate(weights, 0.2),
    lambda config, weights: _truncate(weights, 0.9),
]


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    """Return (B, T, V) in float32."""
    found = model(tokens, use_cache=False).logits.float()
    assert isinstance(found, Tensor)
    return found


def _loss(model: Any, tokens: Tensor) -> Tensor:
    logits = model(tokens, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def _gradients(model: Any, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = None
    torch.autograd.backward(_loss(model, tokens))
    found = {name: parameters[name].grad for name in names}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def _train(adapter: Any, model: Any, tokens: Tensor, steps: int) -> None:
    """Take Adam steps that move every entry by about 0.01; a schedule ends with the last of them."""
    model.train()
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01)
    for step in range(steps):
        adapter.on_step(step, steps)
        optimizer.zero_grad()
        torch.autograd.backward(_loss(model, tokens))
        optimizer.step()
