"""What every attention plugin must hold.

Shape legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stackloom.core.cache import SNAPSHOT_EVERY
from stackloom.core.errors import StackloomError
from stackloom.core.slots.attention import LayerShape
from stackloom.engine.cache import DenseView
from stackloom.testing.comparison import eps, relative_error
from stackloom.testing.contracts.plugin import PluginContract, torch_dtype
from stackloom.testing.tiny import tiny_shape

ODD_LENGTHS = (1, 63, 1000)


class AttentionContract(PluginContract):
    """The laws of slot `attention`. Every cache is filled with NaN past its sequences' lengths.

    Attributes:
        rounding: largest relative error between two ways to compute the same, in steps of the dtype. A recurrence that
            accumulates over all tokens needs more than the default; say why.

    Example:
        >>> class TestMyMixer(AttentionContract):
        ...     plugin = "attention.my-mixer"
    """

    rounding: ClassVar[float] = 64.0

    @classmethod
    def layer(cls) -> LayerShape:
        """Return the layer that the mixer is built for: layer 0 of `shape`."""
        shape = cls.shape()
        return LayerShape(
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_positions=shape.max_positions,
            bias=shape.attention_bias,
        )

    @classmethod
    def mixer(cls, dtype: torch.dtype, seed: int = 0) -> Any:
        """Build the component with weights drawn from `seed`."""
        torch.manual_seed(seed)
        return cls.component(cls.layer()).to(dtype)

    @classmethod
    def inputs(cls, tokens: int, dtype: torch.dtype, batch: int = 2, seed: int = 1) -> Tensor:
        """Return (B, T, D) standard normal inputs."""
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(batch, tokens, cls.shape().hidden, generator=draw, dtype=torch.float64).to(dtype)

    @classmethod
    def view(cls, mixer: Any, x_BTD: Tensor) -> DenseView:
        """Return an empty poisoned cache for the batch of `x_BTD`."""
        return DenseView(mixer.cache_spec, x_BTD.shape[0], dtype=x_BTD.dtype, capacity=1, poison=True)

    def close(self, actual: Tensor, expected: Tensor) -> bool:
        """Whether two results of one computation agree within `rounding`."""
        return relative_error(actual, expected) <= self.rounding * eps(expected.dtype)

    def test_parameters_are_what_cost_says(self) -> None:
        for shape in (self.shape(), tiny_shape(attention_bias=False, kv_heads=4)):
            layer = self.layer().model_copy(update={"kv_heads": shape.kv_heads, "bias": shape.attention_bias})
            cost = self.config().cost(self.work(model=shape))
            held = sum(parameter.numel() for parameter in self.component(layer).parameters())
            assert cost.parameters == shape.layers * held
            assert cost.weight_bytes == 4 * cost.parameters

    def test_cache_bytes_are_what_cost_says(self, dtype: str) -> None:
        mixer, work = self.mixer(torch_dtype(dtype)), self.work(dtype)
        x_BTD = self.inputs(work.sequence_length, torch_dtype(dtype), batch=work.sequences)
        view = self.view(mixer, x_BTD)
        with torch.no_grad():
            mixer.prefill(x_BTD, view)
        assert view.lengths_B.tolist() == [work.sequence_length] * work.sequences
        assert work.model.layers * view.used_bytes == self.config().cost(work).cache_bytes

    def test_cache_features_are_true(self) -> None:
        spec, features = self.mixer(self.widest()).cache_spec, self.record().manifest.can.features
        assert bool(spec.pages) == ("pages" in features)
        assert bool(spec.state) == ("state" in features)

    def test_grouped_queries_feature_is_true(self) -> None:
        if "gqa" not in self.record().manifest.can.features:
            pytest.skip("does not claim grouped queries")
        assert self.layer().kv_heads < self.layer().heads
        assert self.mixer(self.widest())(self.inputs(5, self.widest())).shape == (2, 5, self.shape().hidden)

    def test_computes_in_the_inputs_dtype(self, dtype: str) -> None:
        """Shape and dtype go through, and a narrow dtype stays near the widest one on the same weights."""
        narrow, wide = torch_dtype(dtype), self.widest()
        mixer, x_BTD = self.mixer(narrow), self.inputs(63, narrow)
        reference = self.mixer(wide)
        reference.load_state_dict({name: value.to(wide) for name, value in mixer.state_dict().items()})
        with torch.no_grad():
            expected = reference(x_BTD.to(wide))
            for y_BTD in (mixer(x_BTD), mixer.prefill(x_BTD, self.view(mixer, x_BTD))):
                assert y_BTD.shape == x_BTD.shape
                assert y_BTD.dtype == narrow
                assert relative_error(y_BTD, expected) <= 8 * eps(narrow) + self.rounding * eps(wide)

    @pytest.mark.parametrize("tokens", ODD_LENGTHS)
    def test_prefill_of_any_split_is_forward(self, tokens: int) -> None:
        mixer, x_BTD = self.mixer(self.widest()), self.inputs(tokens, self.widest())
        with torch.no_grad():
            expected = mixer(x_BTD)
            for pieces in _splits(tokens):
                view = self.view(mixer, x_BTD)
                got = torch.cat(
                    [mixer.prefill(piece, view) for piece in torch.split(x_BTD, list(pieces), dim=1)], dim=1
                )
                assert self.close(got, expected), pieces
                assert view.lengths_B.tolist() == [tokens, tokens]

    def test_steps_are_forward(self) -> None:
        mixer, x_BTD = self.mixer(self.widest()), self.inputs(40, self.widest())
        view = self.view(mixer, x_BTD)
        with torch.no_grad():
            got = torch.stack([mixer.step(x_BD, view) for x_BD in x_BTD.unbind(1)], dim=1)
            assert got.shape == x_BTD.shape
            assert self.close(got, mixer(x_BTD))

    def test_steps_after_a_prefill_are_forward(self) -> None:
        mixer, x_BTD = self.mixer(self.widest()), self.inputs(40, self.widest())
        view = self.view(mixer, x_BTD)
        with torch.no_grad():
            parts = [
                mixer.prefill(x_BTD[:, :23], view),
                *(mixer.step(x_BD, view)[:, None] for x_BD in x_BTD[:, 23:].unbind(1)),
            ]
            assert self.close(torch.cat(parts, dim=1), mixer(x_BTD))

    @pytest.mark.parametrize("tokens", [2, 63])
    def test_output_depends_on_the_past_and_the_present_alone(self, tokens: int) -> None:
        mixer, x_BTD = self.mixer(self.widest()), self.inputs(tokens, self.widest())
        cut = tokens // 2
        other = torch.cat((x_BTD[:, :cut], 3 - x_BTD[:, cut:]), dim=1)
        with torch.no_grad():
            one, two = mixer(x_BTD), mixer(other)
        assert self.close(two[:, :cut], one[:, :cut])
        assert relative_error(two[:, cut], one[:, cut]) > 1e-3  # the present token counts
        x_BTD.requires_grad_(True)
        (gradient,) = torch.autograd.grad(mixer(x_BTD)[:, :cut].square().sum(), x_BTD)
        assert gradient[:, cut:].abs().max() == 0
        assert gradient[:, 0].abs().max() > 0

    def test_rollback_of_any_n_leaves_no_trace(self) -> None:
        """Prefill, steps with snapshots on time, rollback, replay, other tokens: as if the first had never been."""
        start, ahead = 20, 2 * SNAPSHOT_EVERY + 3
        mixer, x_BTD = self.mixer(self.widest()), self.inputs(start + ahead, self.widest())
        other = self.inputs(3, self.widest(), seed=2)
        view = self.view(mixer, x_BTD)
        with torch.no_grad():
            mixer.prefill(x_BTD[:, :start], view)
            view.snapshot()
            for step in range(ahead):
                mixer.step(x_BTD[:, start + step], view)
                if (step + 1) % SNAPSHOT_EVERY == 0:
                    view.snapshot()
            for n in range(ahead + 1):
                back, kept = view.copy(), start + ahead - n
                replay = back.rollback(n)
                assert replay == 0 if not mixer.cache_spec.state else 0 <= replay < SNAPSHOT_EVERY
                for place in range(kept - replay, kept):
                    mixer.step(x_BTD[:, place], back)
                assert back.lengths_B.tolist() == [kept, kept]
                got = torch.stack([mixer.step(x_BD, back) for x_BD in other.unbind(1)], dim=1)
                assert self.close(got, mixer(torch.cat((x_BTD[:, :kept], other), dim=1))[:, kept:]), f"rollback of {n}"

    def test_sequences_of_different_lengths_in_one_view_are_each_alone(self) -> None:
        mixer, lengths, dtype = self.mixer(self.widest()), (5, 1, 37), self.widest()
        alone = [self.inputs(length, dtype, batch=1, seed=length) for length in lengths]
        more = self.inputs(4, dtype, batch=len(lengths), seed=9)
        views = [self.view(mixer, x_1TD) for x_1TD in alone]
        with torch.no_grad():
            for x_1TD, view in zip(alone, views, strict=True):
                mixer.prefill(x_1TD, view)
            together = DenseView.merge(views)
            got = torch.cat((mixer.prefill(more[:, :3], together), mixer.step(more[:, 3], together)[:, None]), dim=1)
            assert together.lengths_B.tolist() == [length + 4 for length in lengths]
            for row, x_1TD in enumerate(alone):
                expected = mixer(torch.cat((x_1TD, more[row : row + 1]), dim=1))[:, -4:]
                assert self.close(got[row : row + 1], expected), f"sequence of {lengths[row]} tokens"

    def test_sequences_of_a_batch_do_not_mix(self) -> None:
        mixer, x_BTD = self.mixer(self.widest()), self.inputs(20, self.widest(), batch=3)
        with torch.no_grad():
            whole = mixer(x_BTD)
            for row in range(3):
                assert self.close(whole[row : row + 1], mixer(x_BTD[row : row + 1]))

    def test_gradients_are_the_slope(self) -> None:
        """Along a random direction of all parameters and the input together, against a central difference."""
        dtype = self.widest()
        step, bound = (1e-5, 1e-6) if dtype == torch.float64 else (2e-2, 2e-2)
        mixer, x_BTD = self.mixer(dtype), self.inputs(20, dtype)
        leaves = [x_BTD.requires_grad_(True), *mixer.parameters()]
        draw = torch.Generator().manual_seed(3)
        directions = [torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(dtype) for leaf in leaves]
        weights = torch.randn(x_BTD.shape, generator=draw, dtype=torch.float64).to(dtype)

        def value(along: float) -> float:
            with torch.no_grad():
                for leaf, direction in zip(leaves, directions, strict=True):
                    leaf += along * direction
                result = (mixer(x_BTD) * weights).sum().item()
                for leaf, direction in zip(leaves, directions, strict=True):
                    leaf -= along * direction
            return float(result)

        gradients = torch.autograd.grad((mixer(x_BTD) * weights).sum(), leaves)
        for gradient in gradients:
            assert torch.isfinite(gradient).all()
        slope = sum(
            (gradient * direction).sum().item() for gradient, direction in zip(gradients, directions, strict=True)
        )
        measured = (value(step) - value(-step)) / (2 * step)
        assert measured == pytest.approx(slope, rel=bound)

    def test_saved_weights_come_back_bit_exactly(self, tmp_path: Path) -> None:
        one, two, x_BTD = (
            self.mixer(self.widest(), seed=0),
            self.mixer(self.widest(), seed=5),
            self.inputs(20, self.widest()),
        )
        save_file(
            {name: value.contiguous() for name, value in one.state_dict().items()}, tmp_path / "mixer.safetensors"
        )
        two.load_state_dict(load_file(tmp_path / "mixer.safetensors"), strict=True)
        with torch.no_grad():
            assert torch.equal(one(x_BTD), two(x_BTD))

    def test_is_as_deterministic_as_claimed(self) -> None:
        if self.record().manifest.determinism == "statistical":
            pytest.skip("claims statistical determinism only")
        runs = []
        for seed in (1, 2):
            mixer, x_BTD = self.mixer(self.widest()), self.inputs(63, self.widest()).requires_grad_(True)
            torch.manual_seed(seed)
            y_BTD = mixer(x_BTD)
            runs.append([y_BTD.detach(), *torch.autograd.grad(y_BTD.square().sum(), [x_BTD, *mixer.parameters()])])
        assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))

    def test_input_of_another_width_is_refused(self) -> None:
        mixer = self.mixer(self.widest())
        with pytest.raises((StackloomError, RuntimeError, ValueError)):
            mixer(torch.zeros(1, 3, self.shape().hidden + 1, dtype=self.widest()))


def _splits(tokens: int) -> list[Sequence[int]]:
    """Return ways to cut `tokens` into pieces: whole, halves, a single token at either end, and pieces of seven."""
    pieces = [[tokens]]
    if tokens > 1:
        pieces += [[tokens // 2, tokens - tokens // 2], [1, tokens - 1], [tokens - 1, 1]]
    if tokens == 63:
        pieces.append([7] * 9)
    return list(pieces)
