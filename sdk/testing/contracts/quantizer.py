"""What every quantizer must hold.

Shape legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.core.fit import FitContext
from stackloom.core.shapes import ModelShape
from stackloom.core.touch import overlap
from stackloom.testing.comparison import relative_error
from stackloom.testing.contracts.plugin import PluginContract, torch_dtype
from stackloom.testing.llama import llama_shape, tiny_llama

LENGTH = 17


class QuantizerContract(PluginContract):
    """The laws of slot `quantizer`, on a small Llama with random weights.

    Attributes:
        logits_error: largest relative error of the quantized model's logits, in the Frobenius norm.
        lowest_snr_db: least signal-to-noise ratio of a layer's weights.
        data_free: whether `options` make a plugin with feature "calibration" calibrate without data.

    Example:
        >>> class TestMyQuantizer(QuantizerContract):
        ...     plugin = "quantizer.my-int8"
        ...     logits_error, lowest_snr_db = 0.1, 30.0
    """

    logits_error: ClassVar[float] = 0.5
    lowest_snr_db: ClassVar[float] = 10.0
    data_free: ClassVar[bool] = False

    @classmethod
    def shape(cls) -> ModelShape:
        return llama_shape(hidden=64, head_dim=16, intermediate=128)

    @classmethod
    def model(cls, dtype: str = "float32", seed: int = 0) -> Any:
        """Return the float model; equal for equal arguments."""
        return tiny_llama(cls.shape(), torch_dtype(dtype), seed)

    @classmethod
    def tokens(cls, seed: int = 0) -> Tensor:
        """Return (2, T) token ids."""
        return torch.randint(0, cls.shape().vocab, (2, LENGTH), generator=torch.Generator().manual_seed(seed))

    @classmethod
    def context(cls, dtype: str = "float32") -> FitContext:
        """Return a quantize stage, which names data where the plugin reads it."""
        found = super().context(dtype)
        data = ("data.pydoc",) if cls.reads_data() else ()
        return found.model_copy(update={"neighbours": (*found.neighbours, *data)})

    @classmethod
    def has(cls, feature: str) -> bool:
        """Whether the manifest lists a feature."""
        return feature in cls.record().manifest.can.features

    @classmethod
    def reads_data(cls) -> bool:
        """Whether the plugin calibrates on data with these options."""
        return cls.has("calibration") and not cls.data_free

    @classmethod
    def calibration(cls) -> list[Tensor]:
        """Return sequences of token ids (T,) where the plugin reads them, else none."""
        if not cls.reads_data():
            return []
        return [row for seed in range(100, 104) for row in cls.tokens(seed)]

    def quantized(self, dtype: str = "float32", seed: int = 0) -> tuple[Any, Any, list[Any]]:
        """Return (quantizer, quantized model, reports)."""
        model, quantizer = self.model(dtype, seed), self.component()
        return quantizer, model, quantizer.quantize(model, self.calibration())

    def equalized(self, dtype: str = "float32", seed: int = 0) -> Any:
        """Return the float model whose weights are rounded: the model itself, or the equalized one."""
        model = self.model(dtype, seed)
        if self.has("equalizes"):
            self.component().equalize(model, self.calibration())
        return model

    def test_outputs_stay_near_the_float_models(self, dtype: str) -> None:
        base = _logits(self.model(dtype), self.tokens())
        _, model, _ = self.quantized(dtype)
        found = _logits(model, self.tokens())
        assert found.dtype == base.dtype == torch_dtype(dtype)
        assert 0 < relative_error(found, base) < self.logits_error

    def test_reports_name_exchanged_layers_and_count_their_bytes(self, dtype: str) -> None:
        _, model, reports = self.quantized(dtype)
        before, after = dict(self.model(dtype).named_modules()), dict(model.named_modules())
        assert reports
        assert [report.name for report in reports] == [
            name for name, module in before.items() if type(after.get(name)) is not type(module)
        ]
        for report in reports:
            assert report.bytes_before == _bytes(before[report.name]), report.name
            assert report.bytes_after == _bytes(after[report.name]), report.name
            assert report.bytes_after < report.bytes_before, report.name
            assert report.scheme

    def test_everything_else_stays_as_it_was(self) -> None:
        _, model, reports = self.quantized()
        exchanged = tuple(f"{report.name}." for report in reports)
        before, after = self.equalized().state_dict(), model.state_dict()
        kept = [name for name in before if not name.startswith(exchanged)]
        assert kept
        assert [name for name in kept if not torch.equal(before[name], after[name])] == []

    def test_signal_to_noise_is_that_of_the_dequantized_weights(self) -> None:
        quantizer, model, reports = self.quantized()
        quantizer.dequantize(model)
        before, after = self.equalized().state_dict(), model.state_dict()
        for report in reports:
            weight, found = (state[f"{report.name}.weight"].double() for state in (before, after))
            noise = (weight - found).square().sum().item()
            measured = 10 * math.log10(weight.square().sum().item() / noise)
            assert report.snr_db == pytest.approx(measured, abs=0.01), report.name
            assert report.snr_db > self.lowest_snr_db, report.name

    def test_equalization_changes_weights_and_not_the_function(self) -> None:
        """In float64; only what touches name is rewritten, and every weight stays finite."""
        if not self.has("equalizes"):
            assert not hasattr(self.component(), "equalize")
            return
        before, model = self.model("float64"), self.model("float64")
        self.component().equalize(model, self.calibration())
        assert relative_error(_logits(model, self.tokens()), _logits(before, self.tokens())) < 1e-12
        nodes = [node for touch in self.config().touches(self.context()) for node in touch.nodes]
        old, new = before.state_dict(), model.state_dict()
        changed = [name.rpartition(".")[0] for name in old if not torch.equal(old[name], new[name])]
        assert [name for name in changed if not any(overlap(node, name) for node in nodes)] == []
        assert all(torch.isfinite(tensor).all() for tensor in new.values())

    def test_reports_say_how_inputs_are_treated_and_how_far_outputs_are_off(self) -> None:
        _, _, reports = self.quantized()
        assert all(report.strategy for report in reports)
        for report in reports:
            assert (report.activation_range is None) == (report.output_error is None), report.name
            if self.has("calibration"):
                assert report.activation_range is not None
                assert report.activation_range > 0, report.name
                assert report.output_error is not None
                assert 0 < report.output_error < self.logits_error, report.name

    def test_progress_rises_to_its_total(self) -> None:
        calls: list[tuple[int, int]] = []
        reports = self.component().quantize(self.model(), self.calibration(), lambda *call: calls.append(call))
        assert len(calls) >= len(reports)
        assert len({total for _, total in calls}) == 1
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] == calls[-1][1]

    def test_inputs_that_are_not_finite_are_refused_before_a_layer_is_lost(self) -> None:
        """A calibrated quantizer meets them in the model's first norm, whose layers must still be there."""
        if not self.has("calibration"):
            return
        _, _, reports = self.quantized()
        model = self.model()
        model.get_input_embeddings().weight.data[:] = math.nan
        with pytest.raises(FitError, match="not finite"):
            self.component().quantize(model, self.calibration())
        assert all(type(model.get_submodule(report.name)) is nn.Linear for report in reports)

    def test_bytes_are_what_cost_says(self, dtype: str) -> None:
        """The stage holds the float model, which the plan counts already, and this beside it."""
        _, _, reports = self.quantized(dtype)
        config, work = self.config(), self.work(dtype)
        costs = [config.cost(work), *(part.cost(work) for _, _, part in config.nested())]
        assert sum(cost.weight_bytes for cost in costs) == sum(report.bytes_after for report in reports)

    def test_touches_name_what_is_replaced(self) -> None:
        _, _, reports = self.quantized()
        touches = self.config().touches(self.context())
        rewritten = [touch for touch in touches if touch.mode == "rewrite"]
        touches = [touch for touch in touches if touch.mode != "rewrite"]
        assert self.has("equalizes") or not rewritten
        nodes = [node for touch in touches for node in touch.nodes]
        assert {(touch.mode, touch.needs) for touch in touches} == {("replace", "float")}
        assert all(touch.leaves not in ("", "float") for touch in touches)
        assert all(touch.needs == "float" for touch in rewritten)
        assert [layer.name for layer in reports if not any(overlap(node, layer.name) for node in nodes)] == []
        assert [node for node in nodes if not any(overlap(node, layer.name) for layer in reports)] == []

    def test_saved_state_comes_back_bit_exactly(self, tmp_path: Path, dtype: str) -> None:
        """Through safetensors, into a rebuilt model of other weights."""
        _, model, _ = self.quantized(dtype)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, tmp_path / "model.safetensors")
        twin = self.model(dtype, seed=1)
        self.component().rebuild(twin)
        twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(_logits(twin, self.tokens()), _logits(model, self.tokens()))

    def test_dequantize_gives_plain_linear_layers(self, dtype: str) -> None:
        """On a quantizer of its own, as after a load."""
        _, model, _ = self.quantized(dtype)
        self.component().dequantize(model)
        plain = self.model(dtype)
        kinds = {name: type(module) for name, module in plain.named_modules()}
        assert {name: type(module) for name, module in model.named_modules()} == kinds
        assert {name: (t.shape, t.dtype) for name, t in model.state_dict().items()} == {
            name: (t.shape, t.dtype) for name, t in plain.state_dict().items()
        }
        assert relative_error(_logits(model, self.tokens()), _logits(plain, self.tokens())) < self.logits_error

    def test_quantizing_twice_is_refused(self) -> None:
        quantizer, model, _ = self.quantized()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        attempts: list[Callable[[], object]] = [
            lambda: quantizer.quantize(model, self.calibration()),
            lambda: self.component().rebuild(model),
        ]
        for attempt in attempts:
            with pytest.raises(FitError):
                attempt()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def test_weights_that_are_not_finite_are_refused_before_any_change(self) -> None:
        _, _, reports = self.quantized()
        for value in (math.nan, math.inf):
            model = self.model()
            model.get_submodule(reports[-1].name).weight.data[0, 0] = value
            with pytest.raises(FitError, match=reports[-1].name):
                self.component().quantize(model, self.calibration())
            assert all(type(model.get_submodule(report.name)) is nn.Linear for report in reports)

    def test_model_without_linear_layers_is_refused(self) -> None:
        with pytest.raises(FitError):
            self.component().quantize(nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4)), self.calibration())

    def test_dequantizing_a_float_model_is_refused(self) -> None:
        with pytest.raises(FitError):
            self.component().dequantize(self.model())

    def test_casts_of_the_model_leave_its_grid_alone(self) -> None:
        """`model.to(bfloat16)` changes what is computed in, not which weights were stored."""
        quantizer, model, reports = self.quantized()
        twin = self.quantized()[1].to(torch.bfloat16).to(torch.float32)
        quantizer.dequantize(model)
        quantizer.dequantize(twin)
        for report in reports:
            ours, theirs = (m.get_submodule(report.name).weight for m in (model, twin))
            assert torch.equal(ours, theirs), report.name

    def test_is_as_deterministic_as_claimed(self) -> None:
        if self.record().manifest.determinism == "statistical":
            pytest.skip("claims statistical determinism only")
        states = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            states.append(self.quantized()[1].state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())

    def test_calibration_feature_is_true(self) -> None:
        if self.data_free:
            assert self.has("data-free")
        if self.reads_data():
            with pytest.raises(FitError):
                self.component().quantize(self.model(), [])
        else:
            tokens = list(self.tokens(3))
            model = self.model()
            self.component().quantize(model, tokens)
            assert torch.equal(_logits(model, self.tokens()), _logits(self.quantized()[1], self.tokens()))


@torch.no_grad()
def _logits(model: Any, tokens: Tensor) -> Tensor:
    """Return (B, T, V)."""
    found = model(tokens, use_cache=False).logits
    assert isinstance(found, Tensor)
    return found


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])
