"""Each law of adapters, quantizers and trackers can fail: a component broken on purpose is caught by its law."""

import inspect
import json
import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from stackloom.core.cost import Cost
from stackloom.core.hooks import hookimpl
from stackloom.core.slots.quantizer import quiet
from stackloom.core.touch import Touch
from stackloom.plugins.adapter.lora.lora import LoRA
from stackloom.plugins.adapter.low_rank import LowRankLinear, wrapped
from stackloom.plugins.quantizer import layers
from stackloom.plugins.quantizer.fptq.fptq import FPTQ
from stackloom.plugins.quantizer.grid import quantize_groups
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.plugins.quantizer.rtn.rtn import RTN
from stackloom.plugins.tracker.jsonl.jsonl import Jsonl
from stackloom.testing import AdapterContract, QuantizerContract, TrackerContract

CAUGHT = (AssertionError, pytest.fail.Exception)


def catches(contract, law, tmp_path):
    """Assert that `law` of the class `contract` fails."""
    method = getattr(contract(), law)
    given = {"tmp_path": tmp_path, "dtype": "float32"}
    with pytest.raises(CAUGHT):
        method(**{name: given[name] for name in inspect.signature(method).parameters})


def built(contract, mutant, **config):
    """Return `contract` for a component of class `mutant`, some of its config's methods replaced."""
    real = contract.config

    def make(**changes):
        made = real(**changes)
        return type("MutantConfig", (type(made),), config)(**made.model_dump()) if config else made

    def component(*dependencies, **changes):
        return mutant(real(**changes), *dependencies)

    return type("Mutant", (contract,), {"config": staticmethod(make), "component": staticmethod(component)})


def manifest(contract, **can):
    """Return `contract` with a manifest that claims other abilities."""
    real = contract.record()
    changed = real.manifest.model_copy(update={"can": real.manifest.can.model_copy(update=can)})
    lying = type(real)(changed, real.distribution, real.version, real.package, real.folder)
    return type("Mutant", (contract,), {"record": staticmethod(lambda: lying)})


# --- adapter ----------------------------------------------------------------------------------------------------------


class OfLoRA(AdapterContract):
    plugin = "adapter.lora"
    options: ClassVar = {"rank": 4, "dropout": 0.1}


class StartsElsewhere(LoRA):
    def inject(self, model, *, seed):
        names = super().inject(model, seed=seed)
        next(iter(wrapped(model).values())).lora_B.weight.data.fill_(0.01)
        return names


class LeavesTheHeadTrainable(LoRA):
    def inject(self, model, *, seed):
        names = super().inject(model, seed=seed)
        model.lm_head.requires_grad_(True)
        return names


class NamesTooFew(LoRA):
    def inject(self, model, *, seed):
        return super().inject(model, seed=seed)[1:]


class SwitchesToTraining(LoRA):
    def inject(self, model, *, seed):
        names = super().inject(model, seed=seed)
        model.train()
        return names


class IgnoresTheSeed(LoRA):
    def inject(self, model, *, seed):
        return super().inject(model, seed=0)


class DrawsFromTheGlobalGenerator(LoRA):
    def inject(self, model, *, seed):
        names = super().inject(model, seed=seed)
        for layer in wrapped(model).values():
            nn.init.normal_(layer.lora_A.weight)
        return names


class InjectsTwice(LoRA):
    def inject(self, model, *, seed):
        for path, layer in wrapped(model).items():
            layers.put(model, path, layer.base_layer)
        return super().inject(model, seed=seed)


class MergesHalf(LoRA):
    def merge(self, model):
        for layer in wrapped(model).values():
            layer.scaling /= 2
        super().merge(model)


class ForgetsToUnwrap(LoRA):
    def merge(self, model):
        for layer in wrapped(model).values():
            layer.base_layer.weight.data.copy_(layer.folded())
            layer.lora_B.weight.data.zero_()


class MergesNothingQuietly(LoRA):
    def merge(self, model):
        if wrapped(model):
            super().merge(model)


class LeavesEverythingFrozen(LoRA):
    def merge(self, model):
        self._flags = []
        super().merge(model)


class RoundsTheFile(LoRA):
    def save(self, model, folder, base):
        for layer in wrapped(model).values():
            layer.lora_A.weight.data.copy_(layer.lora_A.weight.bfloat16())
        before = {layer: layer.lora_A.weight.data.clone() for layer in wrapped(model).values()}
        super().save(model, folder, base)
        for layer, value in before.items():
            layer.lora_A.weight.data.copy_(value * 1.001)


class LoadsWhatItCan(LoRA):
    def load(self, model, folder):
        try:
            super().load(model, folder)
        except Exception:  # noqa: BLE001 - the mutation
            wrapped(model)


class LoadsHalfOfADamagedFile(LoRA):
    def load(self, model, folder):
        wrapped(model) and next(iter(wrapped(model).values())).lora_A.weight.data.zero_()
        super().load(model, folder)


class FreezesB(LoRA):
    def _wrapper(self, linear):
        made = super()._wrapper(linear)
        made.register_forward_hook(lambda module, inputs, output: output.detach() + 0 * output)
        return made


class OwnMask(LowRankLinear):
    def between(self, inner):
        return inner * (1 + 0.1 * torch.rand((), generator=GENERATOR)) if self.training else inner


GENERATOR = torch.Generator().manual_seed(0)


class DropsOutByItsOwnGenerator(LoRA):
    def _wrapper(self, linear):
        made = super()._wrapper(linear)
        made.__class__ = OwnMask
        return made


class MeansOverTheBatch(LowRankLinear):
    def between(self, inner):
        return inner - inner.mean(0, keepdim=True) / 2


class MixesRows(LoRA):
    def _wrapper(self, linear):
        made = super()._wrapper(linear)
        made.__class__ = MeansOverTheBatch
        return made


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (StartsElsewhere, "test_outputs_start_bit_equal_to_the_base"),
        (LeavesTheHeadTrainable, "test_inject_names_what_is_trainable_and_freezes_the_rest"),
        (LeavesTheHeadTrainable, "test_trainable_parameters_and_bytes_are_what_cost_says"),
        (LeavesTheHeadTrainable, "test_training_moves_the_adapter_and_lowers_the_loss"),
        (NamesTooFew, "test_inject_names_what_is_trainable_and_freezes_the_rest"),
        (SwitchesToTraining, "test_inject_keeps_eval_mode"),
        (IgnoresTheSeed, "test_seed_decides_the_start_and_nothing_else_does"),
        (DrawsFromTheGlobalGenerator, "test_seed_decides_the_start_and_nothing_else_does"),
        (InjectsTwice, "test_second_adapter_on_top_is_refused"),
        (MergesHalf, "test_merge_keeps_the_outputs_and_leaves_the_plain_model"),
        (ForgetsToUnwrap, "test_merge_keeps_the_outputs_and_leaves_the_plain_model"),
        (LeavesEverythingFrozen, "test_merge_keeps_the_outputs_and_leaves_the_plain_model"),
        (MergesNothingQuietly, "test_merge_without_an_adapter_is_refused"),
        (RoundsTheFile, "test_saved_adapter_comes_back_bit_exactly"),
        (LoadsWhatItCan, "test_damaged_files_are_refused_and_change_nothing"),
        (LoadsWhatItCan, "test_files_without_an_adapter_in_the_model_are_refused"),
        (LoadsHalfOfADamagedFile, "test_damaged_files_are_refused_and_change_nothing"),
        (FreezesB, "test_training_moves_the_adapter_and_lowers_the_loss"),
        (DropsOutByItsOwnGenerator, "test_activation_checkpointing_keeps_the_gradients"),
        (MixesRows, "test_gradient_of_a_batch_is_the_sum_over_its_micro_batches"),
    ],
)
def test_broken_adapter(mutant, law, tmp_path):
    catches(built(OfLoRA, mutant), law, tmp_path)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (
            {"cost": lambda self, work: Cost(parameters=7, trainable=7, weight_bytes=28)},
            "trainable_parameters_and_bytes",
        ),
        ({"touches": lambda self, ctx: [Touch(nodes=("model.layers.0",), mode="wrap")]}, "touches_name_what"),
        ({"touches": lambda self, ctx: [Touch(nodes=("model", "lm_head"), mode="wrap")]}, "touches_name_what"),
        ({"touches": lambda self, ctx: [Touch(nodes=("model",), mode="read")]}, "touches_name_what"),
    ],
)
def test_adapter_that_plans_otherwise_than_it_does(method, law, tmp_path):
    (name,) = [name for name in dir(OfLoRA) if law in name]
    catches(built(OfLoRA, LoRA, **method), name, tmp_path)


# --- quantizer --------------------------------------------------------------------------------------------------------


class OfRTN(QuantizerContract):
    plugin = "quantizer.rtn"
    options: ClassVar = {"scheme": "w4a8", "group_size": 16}


class TakesTheHead(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = super().quantize(model, calibration, progress)
        model.lm_head.weight.data.mul_(1.01)
        return reports


class ReportsAnotherRatio(RTN):
    def quantize(self, model, calibration, progress=quiet):
        return [
            type(report)(**{**vars(report), "snr_db": report.snr_db + 1})
            for report in super().quantize(model, calibration, progress)
        ]


class ReportsFewerBytes(RTN):
    def quantize(self, model, calibration, progress=quiet):
        found = super().quantize(model, calibration, progress)
        return [type(report)(**{**vars(report), "bytes_after": report.bytes_after - 4}) for report in found]


class ForgetsALayer(RTN):
    def quantize(self, model, calibration, progress=quiet):
        return super().quantize(model, calibration, progress)[1:]


class HalvesTheScales(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = super().quantize(model, calibration, progress)
        for layer in layers.quantized(model).values():
            layer.scale.mul_(2)
        return reports


class QuantizesNothing(RTN):
    def quantize(self, model, calibration, progress=quiet):
        twin = {path: module for path, module in model.named_modules() if type(module) is nn.Linear}
        reports = super().quantize(model, calibration, progress)
        for report in reports:
            layers.put(model, report.name, twin[report.name])
        return reports


class KeepsScalesOutside(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = super().quantize(model, calibration, progress)
        for layer in layers.quantized(model).values():
            layer.__class__ = SecretlyScaled
        return reports


class SecretlyScaled(QuantizedLinear):
    def forward(self, x):
        return super().forward(x) * 1.01


class DequantizesTransposedNoise(RTN):
    def dequantize(self, model):
        super().dequantize(model)
        for module in model.modules():
            if type(module) is nn.Linear:
                module.weight.data.neg_()


class DequantizesIntoFloat64(RTN):
    def dequantize(self, model):
        super().dequantize(model)
        model.double()


class QuantizesAnything(RTN):
    def quantize(self, model, calibration, progress=quiet):
        try:
            return super().quantize(model, calibration, progress)
        except Exception:  # noqa: BLE001 - the mutation
            return []


class ChecksAsItGoes(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = []
        for path, linear in self.linears(model).items():
            layers.check_weights({path: linear}, "mutant")
            reports.append(self.exchange(model, path, linear, *quantize_groups(linear.weight, 4, 16)))
        return reports


class RoundsItsScales(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = super().quantize(model, calibration, progress)
        for layer in layers.quantized(model).values():
            layer._apply = lambda fn, recurse=True, layer=layer: nn.Module._apply(layer, fn, recurse)
        return reports


class RoundsByChance(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = super().quantize(model, calibration, progress)
        for layer in layers.quantized(model).values():
            layer.scale.mul_(1 + 0.01 * torch.rand(()))
        return reports


class SilentlyDequantizesNothing(RTN):
    def dequantize(self, model):
        if layers.quantized(model):
            super().dequantize(model)


class SaysNothingOfInputs(RTN):
    def quantize(self, model, calibration, progress=quiet):
        return [
            type(report)(**{**vars(report), "strategy": ""})
            for report in super().quantize(model, calibration, progress)
        ]


class StopsCounting(RTN):
    def quantize(self, model, calibration, progress=quiet):
        return super().quantize(model, calibration, lambda done, total: progress(done, total + 1))


class HidesAnEqualization(RTN):
    def equalize(self, model, calibration):
        """Do nothing, unasked."""


class ReadsCalibration(RTN):
    def quantize(self, model, calibration, progress=quiet):
        reports = super().quantize(model, calibration, progress)
        for layer in layers.quantized(model).values():
            layer.scale.mul_(1 + 0.01 * len(calibration))
        return reports


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (TakesTheHead, "test_everything_else_stays_as_it_was"),
        (ReportsAnotherRatio, "test_signal_to_noise_is_that_of_the_dequantized_weights"),
        (HalvesTheScales, "test_signal_to_noise_is_that_of_the_dequantized_weights"),
        (HalvesTheScales, "test_outputs_stay_near_the_float_models"),
        (ReportsFewerBytes, "test_reports_name_exchanged_layers_and_count_their_bytes"),
        (ReportsFewerBytes, "test_bytes_are_what_cost_says"),
        (ForgetsALayer, "test_reports_name_exchanged_layers_and_count_their_bytes"),
        (QuantizesNothing, "test_outputs_stay_near_the_float_models"),
        (QuantizesNothing, "test_reports_name_exchanged_layers_and_count_their_bytes"),
        (KeepsScalesOutside, "test_saved_state_comes_back_bit_exactly"),
        (DequantizesTransposedNoise, "test_dequantize_gives_plain_linear_layers"),
        (DequantizesIntoFloat64, "test_dequantize_gives_plain_linear_layers"),
        (QuantizesAnything, "test_quantizing_twice_is_refused"),
        (QuantizesAnything, "test_model_without_linear_layers_is_refused"),
        (QuantizesAnything, "test_weights_that_are_not_finite_are_refused_before_any_change"),
        (ChecksAsItGoes, "test_weights_that_are_not_finite_are_refused_before_any_change"),
        (RoundsItsScales, "test_casts_of_the_model_leave_its_grid_alone"),
        (RoundsByChance, "test_is_as_deterministic_as_claimed"),
        (SilentlyDequantizesNothing, "test_dequantizing_a_float_model_is_refused"),
        (ReadsCalibration, "test_calibration_feature_is_true"),
        (SaysNothingOfInputs, "test_reports_say_how_inputs_are_treated_and_how_far_outputs_are_off"),
        (StopsCounting, "test_progress_rises_to_its_total"),
        (HidesAnEqualization, "test_equalization_changes_weights_and_not_the_function"),
    ],
)
def test_broken_quantizer(mutant, law, tmp_path):
    catches(built(OfRTN, mutant), law, tmp_path)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        ({"cost": lambda self, work: Cost()}, "bytes_are_what_cost_says"),
        ({"touches": lambda self, ctx: []}, "touches_name_what"),
        (
            {
                "touches": lambda self, ctx: [
                    Touch(nodes=("model", "lm_head"), mode="replace", needs="float", leaves="int4")
                ]
            },
            "touches_name_what",
        ),
        ({"touches": lambda self, ctx: [Touch(nodes=("model",), mode="replace", needs="float")]}, "touches_name_what"),
    ],
)
def test_quantizer_that_plans_otherwise_than_it_does(method, law, tmp_path):
    (name,) = [name for name in dir(OfRTN) if law in name]
    catches(built(OfRTN, RTN, **method), name, tmp_path)


class OfFPTQ(QuantizerContract):
    plugin = "quantizer.fptq"
    options: ClassVar = {"static_up_to": 1.0, "dynamic_from": 1e6}


class FoldsAgain(FPTQ):
    def equalize(self, model, calibration):
        super().equalize(model, calibration)
        model.model.layers[0].input_layernorm.weight.mul_(1.001)


class EqualizesNothing(FPTQ):
    def equalize(self, model, calibration):
        """Leave everything as it is."""


class RewritesTheHead(FPTQ):
    def equalize(self, model, calibration):
        super().equalize(model, calibration)
        model.model.norm.weight.mul_(2)
        model.lm_head.weight.div_(2)


class TakesAnyInput(FPTQ):
    def quantize(self, model, calibration, progress=quiet):
        model.get_input_embeddings().weight.nan_to_num_()
        return super().quantize(model, calibration, progress)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (FoldsAgain, "test_equalization_changes_weights_and_not_the_function"),
        (RewritesTheHead, "test_equalization_changes_weights_and_not_the_function"),
        (EqualizesNothing, "test_signal_to_noise_is_that_of_the_dequantized_weights"),
        (EqualizesNothing, "test_everything_else_stays_as_it_was"),
        (TakesAnyInput, "test_inputs_that_are_not_finite_are_refused_before_a_layer_is_lost"),
    ],
)
def test_broken_equalization(mutant, law, tmp_path):
    with torch.no_grad():
        catches(built(OfFPTQ, mutant), law, tmp_path)


def test_calibration_that_is_claimed_and_not_needed(tmp_path):
    catches(manifest(OfRTN, features=("activations", "calibration")), "test_calibration_feature_is_true", tmp_path)


# --- tracker ----------------------------------------------------------------------------------------------------------


class OfJsonl(TrackerContract):
    plugin = "tracker.jsonl"

    @classmethod
    def rows(cls, folder):
        found = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        return [(row["stage"], row["step"], row["name"], float(row["value"])) for row in found]


class SkipsNaN(Jsonl):
    @hookimpl
    def on_metric(self, metric):
        if not math.isnan(metric.value):
            super().on_metric(metric)


class ForgetsTheStage(Jsonl):
    @hookimpl
    def on_metric(self, metric):
        super().on_metric(type(metric)(metric.run, 0, metric.step, metric.name, metric.value))


class Appends(Jsonl):
    def _drop_from(self, place):
        self.dropped = place


class StartsAnew(Jsonl):
    def _drop_from(self, place):
        super()._drop_from((-1, -1))


class KeepsItInMemory(Jsonl):
    def __init__(self, config, folder):
        super().__init__(config, folder)
        self.waiting = []

    @hookimpl
    def on_metric(self, metric):
        self.waiting.append(metric)

    def close(self):
        for metric in self.waiting:
            super().on_metric(metric)
        super().close()


class LosesItOnAnError(KeepsItInMemory):
    @hookimpl
    def on_error(self, failure):
        self.waiting.clear()


class WritesBeside(Jsonl):
    def __init__(self, config, folder):
        super().__init__(config, folder)
        (folder.parent / "metrics.csv").touch()


class LeavesAThread(Jsonl):
    def __init__(self, config, folder):
        import threading

        super().__init__(config, folder)
        self.ended = threading.Event()
        threading.Thread(target=self.ended.wait, args=(5,), daemon=True).start()


class Deaf:
    def __init__(self, config, folder):
        self.folder = folder

    def close(self):
        self.folder.mkdir()


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (SkipsNaN, "test_every_metric_is_recorded"),
        (ForgetsTheStage, "test_every_metric_is_recorded"),
        (Appends, "test_redone_steps_are_recorded_once"),
        (Appends, "test_two_resumes_record_each_step_once"),
        (StartsAnew, "test_redone_steps_are_recorded_once"),
        (KeepsItInMemory, "test_finished_stage_is_recorded_without_a_close"),
        (LosesItOnAnError, "test_error_loses_no_metric"),
        (WritesBeside, "test_writes_into_its_folder_alone"),
        (LeavesAThread, "test_close_ends_its_threads"),
        (Deaf, "test_hooks_are_known_and_features_are_true"),
        (Deaf, "test_folder_that_cannot_be_made_is_a_typed_error"),
    ],
)
def test_broken_tracker(mutant, law, tmp_path):
    catches(built(OfJsonl, mutant), law, tmp_path)


@pytest.mark.parametrize("features", [(), ("metrics",), ("events",)])
def test_tracker_features_that_are_untrue(features, tmp_path):
    catches(manifest(OfJsonl, features=features), "test_hooks_are_known_and_features_are_true", tmp_path)


LAWS = {contract: [name for name in dir(contract) if name.startswith("test_")] for contract in (OfLoRA, OfRTN, OfJsonl)}


@pytest.mark.parametrize(("contract", "law"), [(contract, law) for contract in LAWS for law in LAWS[contract]])
def test_the_unbroken_component_passes(contract, law, tmp_path):
    """So that a mutant fails for its mutation."""
    method = getattr(contract(), law)
    given = {"tmp_path": tmp_path, "dtype": "float32"}
    method(**{name: given[name] for name in inspect.signature(method).parameters})
