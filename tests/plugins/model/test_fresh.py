"""`model.hf` with `fresh`: a checkpoint's architecture and tokenizer in other sizes, with random weights."""

from __future__ import annotations

import pytest
import torch

from stackloom.core.errors import ConfigError
from stackloom.core.shapes import ModelShape
from stackloom.plugins.model.hf.config import HFConfig
from stackloom.plugins.model.hf.sample import sample
from stackloom.testing.lookup import make_config, record

SIZES = {"layers": 3, "hidden": 48, "heads": 6, "kv_heads": 2, "intermediate": 40}


@pytest.fixture
def folder(tmp_path):
    return sample(tmp_path)["checkpoint"]


def test_plan_and_model_have_the_sizes(folder) -> None:
    config = HFConfig(checkpoint=folder, fresh=SIZES)
    shape = config.shape()
    model = config.build().load(device="cpu", dtype="bfloat16")
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    found = ModelShape.from_hf_config(shape.name, model.config.to_dict())
    assert found == shape
    assert {name: getattr(shape, name) for name in SIZES} == SIZES
    assert shape.vocab == HFConfig(checkpoint=folder).shape().vocab
    assert config.build().tokenizer().encode("a") == HFConfig(checkpoint=folder).build().tokenizer().encode("a")


def test_weights_follow_from_the_seed_alone(folder) -> None:
    states = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        config = HFConfig(checkpoint=folder, fresh={**SIZES, "seed": seed})
        states.append(config.build().load(device="cpu", dtype="float32").state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    first, same, other = states
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_embedded_checkpoint_plans_a_small_model_without_its_weights() -> None:
    sizes = {"layers": 6, "hidden": 256, "heads": 4, "kv_heads": 2, "intermediate": 768}
    assert HFConfig(checkpoint="smollm2-135m-instruct", fresh=sizes).shape().parameters == 17_304_832


@pytest.mark.parametrize("changes", [{"heads": 5}, {"kv_heads": 4}, {"layers": 0}, {"depth": 3}])
def test_sizes_that_do_not_go_together_are_refused(folder, changes) -> None:
    with pytest.raises(ConfigError):
        make_config(record("model.hf"), {"checkpoint": folder, "fresh": {**SIZES, **changes}})
