"""Calibration statistics against their definitions, shared inputs, layers never reached, and folds that are tried."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from stackloom.core.errors import FitError
from stackloom.plugins.quantizer.calibration import (
    InputStatistics,
    Observer,
    checked,
    random_tokens,
    refuse_unreached,
    run_model,
)
from stackloom.plugins.quantizer.equalization import Site, find_sites, fold, provable
from stackloom.plugins.quantizer.layers import find_linears
from stackloom.plugins.quantizer.selection import KEPT
from stackloom.testing import llama_shape, relative_error, tiny_llama
from stackloom.testing.lookup import build

NORMS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


CALIBRATED = [f"quantizer.{name}" for name in ("smoothquant", "awq", "gptq", "fptq", "odyssey")]
WIDE = llama_shape(hidden=64, head_dim=16, intermediate=128)


def text():
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 97, (40,), generator=draw) for _ in range(4)]


def drawn(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_those_of_all_rows_together():
    parts = [drawn(7, 5, seed=1), drawn(1, 5, seed=2) * 10, drawn(2, 3, 5, seed=3)]
    seen = InputStatistics(5, hessian=True, sample=100)
    for part in parts:
        seen.add(part, 100)
    x = torch.cat([part.reshape(-1, 5) for part in parts])
    assert seen.tokens == len(x)
    assert torch.equal(seen.low_K, x.amin(0))
    assert torch.equal(seen.high_K, x.amax(0))
    assert torch.equal(seen.largest_K, x.abs().amax(0))
    assert seen.range == x.abs().max().item()
    torch.testing.assert_close(seen.mean_magnitude_K, x.abs().mean(0))
    assert seen.mean_token_range == pytest.approx(x.abs().amax(1).mean().item())
    torch.testing.assert_close(seen.hessian_KK, 2 * x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(seen.sample_SK, x)


def test_sample_is_bounded_and_taken_from_every_sequence():
    seen = InputStatistics(2, sample=6)
    for part in range(5):
        seen.add(torch.full((100, 2), float(part)), 2)
    assert seen.sample_SK[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_nothing_seen_has_range_zero_and_no_hessian_where_none_was_asked_for():
    seen = InputStatistics(3)
    seen.add(torch.empty(0, 3), 1)
    assert (seen.tokens, seen.range, len(seen.sample_SK)) == (0, 0.0, 0)
    with pytest.raises(ValueError, match="no second moments"):
        _ = seen.hessian_KK


def test_layers_that_read_one_tensor_share_their_statistics():
    model = tiny_llama()
    linears = find_linears(model, ("*",), KEPT, "test")
    with Observer(linears, sequences=2, hessian=True) as seen:
        run_model(model, [torch.arange(9), torch.arange(20, 31)])
    assert [[path.rpartition(".")[2] for path in group] for group in seen.groups[:4]] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    first = "model.layers.0.self_attn."
    assert seen.statistics[f"{first}q_proj"] is seen.statistics[f"{first}v_proj"]
    assert {statistics.tokens for statistics in seen.statistics.values()} == {20}
    assert seen.unreached == ()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_expert_without_tokens_is_named():
    layers = nn.ModuleDict({"used": nn.Linear(4, 4), "expert": nn.Linear(4, 4)})
    with Observer(dict(layers.items()), sequences=1) as seen:
        layers["used"](torch.ones(2, 4))
        layers["expert"](torch.empty(0, 4))
    assert seen.unreached == ("expert",)
    assert seen.statistics["expert"].tokens == 0
    with pytest.raises(FitError, match="calibration never reached expert"):
        refuse_unreached(seen.unreached, "test")
    refuse_unreached((), "test")


@pytest.mark.parametrize("plugin", CALIBRATED)
def test_a_layer_that_no_token_reaches_is_refused_by_every_quantizer(plugin):
    """Here the last block's MLP passes its tokens by, as an expert does that its router never chooses."""
    model = tiny_llama(WIDE)
    model.model.layers[1].mlp.forward = lambda x: x
    with pytest.raises(FitError, match=r"calibration never reached model.layers.1.mlp.gate_proj and 2 other layers"):
        build(plugin).quantize(model, text())
    assert type(model.model.layers[1].mlp.gate_proj) is nn.Linear


@torch.no_grad()
@pytest.mark.parametrize("plugin", CALIBRATED)
def test_a_dead_channel_costs_no_quantizer_more_than_rounding(plugin):
    """A norm's zero weight leaves a channel of its readers without input: no scale may become zero or infinite."""
    losses = []
    for dead in (False, True):
        model = tiny_llama(WIDE)
        if dead:
            model.model.layers[0].input_layernorm.weight.data[5] = 0
        expected = model(text()[0][None]).logits
        build(plugin).quantize(model, text())
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
        losses.append(relative_error(model(text()[0][None]).logits, expected))
    assert losses[1] < 2 * losses[0]


def test_inputs_that_are_not_finite_name_the_layer():
    linear = nn.Linear(2, 2)
    for value in (math.nan, math.inf):
        with (
            pytest.raises(FitError, match="inputs of home are not finite"),
            Observer({"home": linear}, sequences=1),
        ):
            linear(torch.tensor([[1.0, value]]))
        assert not linear._forward_pre_hooks


def test_calibration_that_is_no_token_ids_is_refused():
    model = tiny_llama()
    for bad in ([], [torch.rand(4)], [torch.zeros(2, 2, dtype=torch.long)], [torch.tensor([97])], [torch.tensor([-1])]):
        with pytest.raises(FitError):
            checked(bad, model, "test")
    assert checked([torch.tensor([0, 96], dtype=torch.int32)], model, "test")[0].dtype == torch.int64


def test_random_tokens_repeat_and_cover_the_vocabulary():
    one, two = (random_tokens(50, 3, 200, seed) for seed in (1, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.cat(one).unique().tolist() == list(range(50))
    assert not torch.equal(one[0], random_tokens(50, 3, 200, 2)[0])


# --- folds ------------------------------------------------------------------------------------------------------------


def sites_of(model):
    return find_sites(model, find_linears(model, ("*",), KEPT, "test"))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_fold_of_a_llama_is_proved_without_a_trace(dtype):
    model = tiny_llama(llama_shape(attention_bias=True, mlp_bias=True), dtype)
    before, sites = state(model), sites_of(model)
    assert provable(model, sites, torch.arange(12)) == sites
    assert [site.kind for site in sites] == ["norm", "value", "norm", "up"] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_norm_that_adds_one_to_its_weight_absorbs_nothing():
    model = Gemma2ForCausalLM(Gemma2Config(**NORMS, intermediate_size=48, head_dim=8)).eval()
    assert [site.kind for site in provable(model, sites_of(model), torch.arange(12))] == ["", "value", "", "up"] * 2


def test_router_and_experts_read_the_norm_too():
    config = Qwen2MoeConfig(
        **NORMS, moe_intermediate_size=16, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    )
    model = Qwen2MoeForCausalLM(config).eval()
    sites = sites_of(model)
    assert provable(model, sites, torch.arange(12)) == sites
    (mlp,) = [site for site in sites if site.producer == "model.layers.0.post_attention_layernorm"]
    home = "model.layers.0.mlp."
    assert {f"{home}gate.weight", f"{home}experts.gate_up_proj"} < set(mlp.readers)
    forgets = Site(mlp.layers, mlp.kind, mlp.producer, tuple(name for name in mlp.readers if "mlp.gate." not in name))
    assert provable(model, [forgets], torch.arange(12)) == [Site(mlp.layers)]


def test_untied_scales_of_grouped_queries_are_no_fold():
    model = tiny_llama()
    (value,) = [site for site in sites_of(model) if site.layers == ("model.layers.0.self_attn.o_proj",)]
    assert (value.repeats, value.head_dim) == (2, 8)
    tied = value.tied(torch.arange(1.0, 33.0))
    assert torch.equal(tied.reshape(2, 2, 8)[:, 0], tied.reshape(2, 2, 8)[:, 1])
    expected = model(torch.arange(9)[None]).logits
    fold(model, value, tied)
    torch.testing.assert_close(model(torch.arange(9)[None]).logits, expected, rtol=1e-4, atol=1e-5)
    fold(model, value, torch.arange(1.0, 33.0))
    assert (model(torch.arange(9)[None]).logits - expected).abs().max() > 0.01


def test_model_of_conv1d_layers_says_what_is_not_supported():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=16))
    with pytest.raises(FitError, match=r"4 Conv1D layers such as transformer.h.0.attn.c_attn are not supported"):
        find_linears(model, ("*",), KEPT, "test")
