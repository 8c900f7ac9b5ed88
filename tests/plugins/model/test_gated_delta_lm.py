"""`model.gated-delta-lm`: the slot's laws, the hybrid's layers, saving without code, retrofit by distillation."""

from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stackloom.core.errors import ConfigError
from stackloom.core.shapes import ModelShape
from stackloom.plugins.attention.distillation import distil, pass_the_present_token, record
from stackloom.plugins.attention.fg2_gdn.config import FG2GDNConfig
from stackloom.plugins.attention.full.config import FullAttentionConfig
from stackloom.plugins.attention.kda.config import KDAConfig
from stackloom.plugins.model.gated_delta_lm.config import GatedDeltaLMConfig
from stackloom.plugins.model.hf.retrofit import retrofit
from stackloom.testing import ModelContract, relative_error

SIZES = {"layers": 3, "hidden": 32, "heads": 2, "intermediate": 48, "max_positions": 128}


class TestHybrid(ModelContract):
    plugin = "model.gated-delta-lm"


class TestPlusWithoutFullAttention(ModelContract):
    plugin = "model.gated-delta-lm"
    options: ClassVar = {"attention": {"use": "attention.fg2-gdn", "variant": "plus"}, "full_every": 0, "tied": False}


def load(attention=None, **changes):
    options = SIZES | {"full_every": 3} | changes
    return GatedDeltaLMConfig(attention=attention or KDAConfig(), **options).build().load(device="cpu", dtype="float32")


@pytest.mark.parametrize(("every", "full"), [(0, []), (2, [1, 3]), (4, [3])])
def test_the_last_layer_of_every_group_has_full_attention(every, full):
    model = load(layers=4, full_every=every)
    kinds = [not hasattr(layer.self_attn, "mixer") for layer in model.model.layers]
    assert [index for index, is_full in enumerate(kinds) if is_full] == full


def test_a_saved_folder_names_its_mixer_and_holds_no_code(tmp_path):
    load(FG2GDNConfig(variant="plus", beta_rank=5)).save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.mixer["beta_rank"] == 5
    assert "auto_map" not in again.config.to_dict()


def test_another_mixer_is_refused_in_plan_and_build():
    config = GatedDeltaLMConfig(attention=FullAttentionConfig(), **SIZES)
    answer = config.fit(TestHybrid.context())
    assert (answer.ok, answer.reason[:26]) == (False, "takes gated-delta mixers, ")
    with pytest.raises(ConfigError, match="resolved gated-delta mixer"):
        config.build()


@pytest.mark.parametrize("changes", [{"hidden": 33}, {"full_every": 1}])
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=r"multiple of twice|leaves no gated-delta layer"):
        GatedDeltaLMConfig(attention=KDAConfig(), **SIZES | changes)


def test_packed_sequences_are_each_alone():
    model, lengths = load(full_every=0), (6, 1, 9)
    tokens = torch.randint(0, 250, (1, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = model(tokens, position_ids=positions, use_cache=False).logits
        alone = torch.cat([model(part).logits for part in tokens.split(lengths, dim=1)], dim=1)
    assert relative_error(packed, alone) < 64 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("positions", [[[0, 1, 3, 4]], [[1, 2, 3, 4]], [[0, 1, 0, 1], [0, 1, 2, 3]]])
def test_other_positions_are_refused(positions):
    positions = torch.tensor(positions)
    with pytest.raises(ConfigError, match="counts positions itself"):
        load()(torch.ones_like(positions), position_ids=positions, use_cache=False)


def test_padding_is_refused():
    model = load()
    with pytest.raises(ConfigError, match="no padding"):
        model(torch.ones(1, 4, dtype=torch.long), attention_mask=torch.tensor([[0, 1, 1, 1]]))


def test_a_layer_taught_by_the_attention_it_replaced_comes_closer_to_it():
    torch.manual_seed(0)
    sizes = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=8,
    )  # fmt: skip
    teacher = LlamaForCausalLM(sizes).eval()
    student = LlamaForCausalLM(sizes).eval()
    student.load_state_dict(teacher.state_dict())
    shape = ModelShape.from_hf_config("tiny", sizes.to_dict())
    retrofit(student, FG2GDNConfig(variant="plus"), (1,), shape, seed=0)
    assert set(student.model.layers[1].self_attn.copied) == {f"{name}_proj.weight" for name in "qkvo"}
    draw = torch.Generator().manual_seed(1)
    batches = (torch.randint(8, (4, 24), generator=draw) for _ in iter(int, 1))
    pass_the_present_token(student.model.layers[1].self_attn.mixer)
    losses = distil(teacher, student, (1,), batches, steps=60, lr=1e-2)
    assert losses[-1] < 0.5  # a layer that gives nothing scores 1
    seen = record(teacher, (1,), torch.ones(1, 5, dtype=torch.long))
    assert [x.shape for x in seen[1]] == [(1, 5, 32), (1, 5, 32)]
