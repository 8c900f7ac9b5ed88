"""The export stage: what transformers makes of the folder, without stackloom."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import stackloom as sl
from stackloom.core.errors import ConfigError, FitError
from stackloom.run import runner
from stackloom.run.context import StageContext
from stackloom.testing import relative_error

INTEGER = {"use": "quantizer.integer-scale", "base": {"use": "quantizer.rtn", "scheme": "w4a8", "group_size": 16}}
RTN = {"use": "quantizer.rtn", "scheme": "w4a16", "group_size": 16}


@pytest.fixture
def exported(planned, registry, tmp_path):
    """`exported(quantizer, **options)` returns (export artifact, our logits) of one run."""

    def make(quantizer, **options):
        stages = ([sl.quantize(quantizer=quantizer)] if quantizer else []) + [sl.export(**options)]
        plan = planned(*stages)
        made = runner.run(plan, registry, folder=tmp_path / plan.digest[:8])
        stage = plan.stages[-1]
        before = tuple(made.stages[:-1])
        ctx = StageContext("", plan, stage, "", tmp_path, tmp_path, before, registry)
        return made.stages[-1], logits(ctx.load_model()[0])

    return make


def logits(model):
    with torch.no_grad():
        return model(torch.arange(20)[None], use_cache=False).logits


def loaded(artifact, dtype=torch.float32):
    model, report = AutoModelForCausalLM.from_pretrained(artifact.folder, dtype=dtype, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_folder_has_the_dequantized_weights(exported, dtype) -> None:
    artifact, ours = exported(RTN, dtype=dtype)
    found = loaded(artifact)
    assert relative_error(logits(found), ours) <= (1e-6 if dtype == "float32" else 0.02)
    assert {tensor.dtype for tensor in load_file(artifact.folder / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    assert AutoTokenizer.from_pretrained(artifact.folder)("a")["input_ids"]
    assert "quantization_config" not in json.loads((artifact.folder / "config.json").read_text())


def test_weight_only_folder_gives_our_logits_bit_by_bit(exported) -> None:
    pytest.importorskip("compressed_tensors")
    artifact, ours = exported(RTN, format="compressed-tensors", dtype="float32")
    assert torch.equal(logits(loaded(artifact)), ours)
    assert AutoTokenizer.from_pretrained(artifact.folder)("a")["input_ids"]
    state = load_file(artifact.folder / "model.safetensors")
    assert state["model.layers.0.mlp.up_proj.weight_packed"].dtype == torch.int32
    assert artifact.card.details == {"format": "compressed-tensors", "notes": []}


def test_integer_scales_are_exported_as_floats_and_said_so(exported) -> None:
    pytest.importorskip("compressed_tensors")
    artifact, ours = exported(INTEGER, format="compressed-tensors", dtype="float32")
    assert "integer scales are written as the float scales" in artifact.card.details["notes"][0]
    state = load_file(artifact.folder / "model.safetensors")
    scale = state["model.layers.0.mlp.up_proj.weight_scale"]
    assert torch.equal(scale * 1024, (scale * 1024).round())
    assert relative_error(logits(loaded(artifact)), ours) < 0.05
    smaller, _ = exported(INTEGER, format="compressed-tensors", dtype="float32", weights_only=True)
    assert "left out on request" in " ".join(smaller.card.details["notes"])
    sizes = [(each.folder / "model.safetensors").stat().st_size for each in (artifact, smaller)]
    assert sizes[1] < sizes[0]


def test_float_model_is_refused_in_the_format_and_written_without_it(exported) -> None:
    with pytest.raises(FitError, match="the model is not quantized"):
        exported(None, format="compressed-tensors")
    artifact, ours = exported(None, dtype="float32")
    assert torch.equal(logits(loaded(artifact)), ours)


def test_weights_only_says_nothing_of_a_plain_folder(planned) -> None:
    with pytest.raises(ConfigError, match="weights_only says nothing"):
        planned(sl.export(weights_only=True))
