"""`transform.wisca`: the slot's laws, and each identity and reject of the technique in float64."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DynamicCache,
    Gemma2Config,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from stackloom.core.devices import find_device
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.fit import FitContext
from stackloom.core.slots.transform import rounding_bound
from stackloom.plugins.adapter.low_rank import LowRankLinear, wrapped
from stackloom.plugins.transform.wisca.balance import norms
from stackloom.plugins.transform.wisca.claims import TOKENS, float64_llama, llama
from stackloom.plugins.transform.wisca.config import WiscaConfig
from stackloom.plugins.transform.wisca.pairs import find_pairs, homogeneous, rotating_together
from stackloom.testing import TransformContract, build, llama_shape

EXACT = 1e-14  # of float64 logits, behind four layers
SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 97}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


class TestWisca(TransformContract):
    plugin = "transform.wisca"


class TestWiscaByChannelWithUpAndDown(TransformContract):
    plugin = "transform.wisca"
    options: ClassVar = {"qk": "channel", "vo": "channel", "up_down": "channel", "norm": 2, "min_change": 0.0}


class TestWiscaByHeadInPowersOfTwo(TransformContract):
    plugin = "transform.wisca"
    options: ClassVar = {"qk": "head", "vo": "head", "pow2": "always", "max_factor": 1e6}


def wisca(**options: Any) -> Any:
    return build("transform.wisca", **{"min_change": 0.0} | options)


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(tokens, use_cache=False).logits


def change(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


def unbalanced(model: Any, seed: int = 1) -> Any:
    """Spread the scales of every projection's rows, so that there is something to balance in every unit."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                factor = torch.exp(torch.randn(len(parameter), generator=draw, dtype=torch.float64))
                parameter.mul_(factor.reshape(-1, *[1] * (parameter.ndim - 1)).to(parameter.dtype))
    return model


def attentions(model: Any) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if path.endswith("self_attn")}


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["tensor", "head", "channel"])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_float64_outputs_stay_for_mha_gqa_and_mqa(kv_heads: int, unit: str) -> None:
    model = unbalanced(float64_llama(kv_heads=kv_heads, attention_bias=True))
    before = logits(model)
    found = wisca(qk=unit, vo=unit, up_down="channel").apply(model)
    assert all(rewrite.what for rewrite in found)
    assert change(before, logits(model)) <= EXACT


FAMILIES = {
    "mistral, sliding window": MistralConfig(**SIZES, **ENDS, num_key_value_heads=2, sliding_window=8),
    "qwen2, biases": Qwen2Config(**SIZES, **ENDS, num_key_value_heads=2),
    "gemma2, soft caps and sliding windows": Gemma2Config(
        **SIZES, **ENDS, num_key_value_heads=2, head_dim=8, sliding_window=8, attn_logit_softcapping=5.0
    ),
    "cohere, interleaved rotation": CohereConfig(**SIZES, **ENDS, num_key_value_heads=2, logit_scale=1.0),
    "stablelm, partial rotation": StableLmConfig(**SIZES, **ENDS, num_key_value_heads=2, rope_parameters=HALF),
    "phi3, one projection for three": Phi3Config(**SIZES, **ENDS, num_key_value_heads=2),
    "opt, no rotation": OPTConfig(
        hidden_size=48,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        vocab_size=97,
        word_embed_proj_dim=48,
        **ENDS,
    ),
}


@pytest.mark.parametrize("unit", ["tensor", "head", "channel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_stays_in_float64_for_every_layout(family: str, unit: str) -> None:
    """Layer by layer on recorded inputs, so that norms which round to float32 hide nothing."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).double().eval()
    if model.config.model_type != "gemma2":  # soft caps need the plain attention
        model.set_attn_implementation("sdpa")
    rounds = model.config.model_type in ("gemma2", "cohere")  # softmax or rotation in float32: exact factors then
    unbalanced(model)
    calls: dict[str, tuple[Any, Any, torch.Tensor]] = {}

    def record(path: str) -> Any:
        def hook(module: Any, arguments: Any, named: Any, output: Any) -> None:
            calls[path] = (arguments, named, output[0].clone())

        return hook

    handles = [m.register_forward_hook(record(path), with_kwargs=True) for path, m in attentions(model).items()]
    logits(model)
    for handle in handles:
        handle.remove()
    found = wisca(qk=unit, vo=unit, pow2="always" if rounds else "never").apply(model)
    assert all(rewrite.what for rewrite in found)
    assert len(found) == 2 * len(calls) == 4
    bound = 0 if rounds else EXACT
    for path, (arguments, named, before) in calls.items():
        with torch.no_grad():
            after = attentions(model)[path](*arguments, **named)[0]
        assert change(before, after) <= bound, path


@pytest.mark.parametrize("unit", ["tensor", "channel"])
def test_float32_outputs_stay_within_rounding(unit: str) -> None:
    model = llama()
    before = logits(model)
    wisca(qk=unit, vo=unit).apply(model)
    assert 0 < change(before, logits(model)) <= rounding_bound("float32", 4)


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_keeps_every_bit_and_other_factors_do_not(tied: bool) -> None:
    changes = []
    for pow2 in ("auto", "never"):
        model = unbalanced(llama(tie_word_embeddings=tied)).bfloat16()
        before = logits(model)
        wisca(qk="channel", vo="channel", up_down="channel", pow2=pow2).apply(model)
        changes.append(change(before, logits(model)))
    assert changes[0] == 0 < changes[1]


def test_tied_embeddings_stay_tied_and_untouched() -> None:
    model = llama(tie_word_embeddings=True)
    before = model.model.embed_tokens.weight.clone()
    wisca(up_down="tensor").apply(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before)


def test_a_factor_per_rotated_channel_would_break_the_outputs() -> None:
    """The error that no option can cause: channels that rotate into each other with factors of their own."""
    model = float64_llama(kv_heads=1)
    before = logits(model)
    layer = model.model.layers[0].self_attn
    factor = torch.exp(torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    with torch.no_grad():
        layer.q_proj.weight.mul_(factor.repeat(6)[:, None])
        layer.k_proj.weight.div_(factor[:, None])
    assert change(before, logits(model)) > 1e6 * EXACT


@pytest.mark.parametrize(
    ("rope", "rotary", "expected"),
    [
        ("half", 8, [0, 1, 2, 3, 0, 1, 2, 3]),
        ("half", 4, [0, 1, 0, 1, 4, 5, 6, 7]),
        ("interleaved", 8, [0, 0, 2, 2, 4, 4, 6, 6]),
        ("none", 8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_channels_that_rotate_together_share_a_number(rope: str, rotary: int, expected: list[int]) -> None:
    assert rotating_together(8, rotary, rope).tolist() == expected


def test_a_cache_from_before_the_rewrite_is_void() -> None:
    """Cached keys and values have the old scale: going on with them is wrong, and the version counters say so."""
    model = unbalanced(float64_llama(kv_heads=2))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(TOKENS[:, :-1], past_key_values=cache)
        weights = [model.model.layers[0].self_attn.k_proj.weight, model.model.layers[0].self_attn.v_proj.weight]
        versions = [weight._version for weight in weights]
        expected = logits(model)[:, -1]
        wisca().apply(model)
        stale = model(TOKENS[:, -1:], past_key_values=cache).logits[:, -1]
    assert change(expected, logits(model)[:, -1]) <= EXACT
    assert change(expected, stale) > 1e-3
    assert all(weight._version > before for weight, before in zip(weights, versions, strict=True))


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("unit", ["tensor", "head", "channel"])
def test_norms_are_equal_afterwards_and_their_product_stays(unit: str, norm: int) -> None:
    model = unbalanced(float64_llama(kv_heads=2))
    config = WiscaConfig(qk=unit, vo=unit, up_down="channel", norm=norm, min_change=0)
    before = norms(find_pairs(model, config), norm)
    config.build().apply(model)
    for (up, down), (one, two) in zip(norms(find_pairs(model, config), norm), before, strict=True):
        assert float((up / down - 1).abs().max()) < 1e-6
        assert torch.allclose(up * down, one * two, rtol=1e-12, atol=0)


@pytest.mark.parametrize("pow2", ["never", "always"])
def test_a_second_call_changes_nothing(pow2: str) -> None:
    model = unbalanced(float64_llama(kv_heads=2))
    component = wisca(qk="channel", vo="head", pow2=pow2, min_change=1e-7)
    component.apply(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert {rewrite.skipped for rewrite in component.apply(model)} == {"balanced already"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_powers_of_two_leave_norms_within_a_factor_of_two() -> None:
    model = unbalanced(llama(kv_heads=2))
    found = wisca(qk="channel", vo="channel", pow2="always").apply(model)
    assert max(rewrite.before for rewrite in found) > 4
    assert max(rewrite.after for rewrite in found) <= 2 * (1 + 1e-6)


def test_factors_are_cut_at_the_limit() -> None:
    model = float64_llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1e-9)
    found = wisca(vo="off", max_factor=100.0).apply(model)
    assert found[0].what == "q x 100, k x 0.01"


def test_small_imbalances_are_left_alone() -> None:
    model = float64_llama()
    wisca().apply(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.0001)
    assert wisca(min_change=1e-3).apply(model)[0].skipped == "balanced already"
    assert wisca(min_change=1e-6).apply(model)[0].what


@pytest.mark.parametrize("counted", [False, True])
def test_biases_follow_and_count_in_norms_on_request(counted: bool) -> None:
    model = float64_llama(attention_bias=True)
    layer = model.model.layers[0].self_attn
    with torch.no_grad():
        layer.q_proj.bias.fill_(3.0)
    weight, bias = layer.q_proj.weight.clone(), layer.q_proj.bias.clone()
    config = WiscaConfig(norm_with_bias=counted)
    up, down = norms(find_pairs(model, config), 1)[0]
    assert (float(up) > float(weight.detach().abs().sum()) + 1) == counted
    config.build().apply(model)
    s = (down / up).sqrt()
    assert torch.allclose(layer.q_proj.weight, s * weight, rtol=1e-12)
    assert torch.allclose(layer.q_proj.bias, s * bias, rtol=1e-12)


# --- optimizers -------------------------------------------------------------------------------------------------------


def gradients(model: Any) -> None:
    model.zero_grad()
    output = model(TOKENS, use_cache=False).logits
    nn.functional.cross_entropy(output[0, :-1], TOKENS[0, 1:]).backward()


def test_gradients_are_divided_by_the_factor() -> None:
    model = float64_llama()
    weight = model.model.layers[0].self_attn.q_proj.weight
    gradients(model)
    gradient, before = weight.grad.clone(), weight.detach().clone()
    wisca().apply(model)
    s = weight.detach()[0, 0] / before[0, 0]
    gradients(model)
    assert torch.allclose(weight.grad, gradient / s, rtol=1e-9, atol=1e-12 * float(gradient.abs().max()))


@pytest.mark.parametrize("plugin", ["optimizer.adamw", "optimizer.muon", "optimizer.mona"])
def test_a_rewrite_halfway_is_a_change_of_learning_rates(plugin: str) -> None:
    """Train, rewrite with state: rescale, train on: equal in function to matched learning rates from there."""
    eps = {"eps": 1e-30} if plugin == "optimizer.adamw" else {"adamw_eps": 1e-30}
    seen = []
    for mode in ("off", "scale-invariant"):
        model = float64_llama(kv_heads=2)
        optimizer = build(plugin, model.named_parameters(), lr=1e-3, **eps)
        for step in range(12):
            if step == 4:
                wisca(every_n_steps=None, control=mode).apply(model, (optimizer,))
            gradients(model)
            optimizer.step()
        seen.append(logits(model))
    untouched = float64_llama(kv_heads=2)
    assert change(logits(untouched), seen[0]) > 1e-3  # it trained
    assert change(*seen) < 1e-12


def test_sgd_takes_the_square_of_the_factor() -> None:
    seen = []
    for mode in ("off", "sgd"):
        model = float64_llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        wisca(every_n_steps=None, control=mode).apply(model, (optimizer,))
        for _ in range(10):
            gradients(model)
            optimizer.step()
        seen.append(logits(model))
    assert change(*seen) < 1e-12


def test_kept_state_is_stale_and_reset_state_is_zero_with_its_counter() -> None:
    states = {}
    for mode in ("keep", "rescale", "reset"):
        model = float64_llama()
        optimizer = build("optimizer.adamw", model.named_parameters(), lr=1e-3)
        gradients(model)
        optimizer.step()
        weight = model.model.layers[0].self_attn.q_proj.weight
        before = {name: value.clone() for name, value in optimizer.state[weight].items()}
        old = weight.detach().clone()
        wisca(state=mode).apply(model, (optimizer,))
        s = float(weight[0, 0] / old[0, 0])
        states[mode] = {
            name: float((value / before[name]).flatten()[0]) for name, value in optimizer.state[weight].items()
        }
    assert states["keep"] == {"step": 1, "exp_avg": 1, "exp_avg_sq": 1}
    assert states["rescale"] == pytest.approx({"step": 1, "exp_avg": 1 / s, "exp_avg_sq": 1 / s**2})
    assert states["reset"] == {"step": 0, "exp_avg": 0, "exp_avg_sq": 0}


def test_an_unknown_buffer_is_refused_before_any_change_and_its_degree_can_be_given() -> None:
    model = float64_llama()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=1e-3)
    gradients(model)
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FitError, match="optimizer's sum follows"):
        wisca().apply(model, (optimizer,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    wisca(state_degrees={"sum": 2}).apply(model, (optimizer,))


def test_the_control_rewrites_nothing_and_keeps_learning_rate_times_decay() -> None:
    model = float64_llama(kv_heads=1)
    optimizer = build("optimizer.muon", model.named_parameters(), lr=1e-3, weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = wisca(every_n_steps=None, control="scale-invariant").apply(model, (optimizer,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found[0].what.startswith("lr of q x 2.4")
    rates = {
        name: (group["lr"], group["lr"] * group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert rates["model.layers.0.self_attn.q_proj.weight"][0] == pytest.approx(1e-3 * 6**0.5, rel=0.02)
    assert rates["model.layers.0.mlp.up_proj.weight"][0] == 1e-3
    assert all(decay == pytest.approx(1e-4) for name, (_, decay) in rates.items() if "proj" in name)


def test_small_steps_conserve_the_imbalance() -> None:
    model = float64_llama(kv_heads=2)
    layer = model.model.layers[0].self_attn

    def squares() -> torch.Tensor:
        return torch.stack([layer.q_proj.weight.square().sum(), layer.k_proj.weight.square().sum()]).detach()

    before, optimizer = squares(), torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(30):
        gradients(model)
        optimizer.step()
    moved = squares() - before
    assert abs(float(moved[0] - moved[1])) < 1e-3 * abs(float(moved[0]))


def test_the_balanced_split_has_the_smallest_curvature() -> None:
    for q, k in ((1.0, 2.0), (4.0, 0.5)):
        s = (k / q) ** 0.5
        tops = []
        for point in ((q, k), (s * q, k / s)):
            hessian = torch.autograd.functional.hessian(
                lambda x, target=q * k: (x[0] * x[1] - target) ** 2, torch.tensor(point, dtype=torch.float64)
            )
            tops.append(float(torch.linalg.eigvalsh(hessian).max()))
        assert tops == pytest.approx([2 * (q**2 + k**2), 4 * q * k])


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(model: Any, seed: int = 0) -> Any:
    build("adapter.lora", rank=4).inject(model, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in wrapped(model).values():
            layer.lora_B.weight.copy_(torch.randn(layer.lora_B.weight.shape, generator=draw))
    return model


OF_LORA = {"qk": "off", "vo": "off"}


@pytest.mark.parametrize("unit", ["tensor", "rank"])
def test_an_adapters_matrices_are_balanced_and_outputs_stay(unit: str) -> None:
    model = adapted(float64_llama())
    before = logits(model)
    found = wisca(**OF_LORA, lora=unit).apply(model)
    assert len(found) == 28
    assert all(rewrite.after == pytest.approx(1) for rewrite in found)
    # A and B are float64 and weigh more than the base; the order of summation decides (1.01e-13 on one CPU).
    assert change(before, logits(model)) <= 20 * EXACT


def test_an_adapter_in_float32_beside_bfloat16_weights_keeps_every_bit() -> None:
    """The matrices are held wider than they compute in: factors are powers of two all the same."""
    model = adapted(llama().bfloat16())
    assert next(iter(wrapped(model).values())).lora_A.weight.dtype == torch.float32
    before = logits(model)
    assert all(rewrite.what for rewrite in wisca(**OF_LORA, lora="tensor").apply(model))
    assert torch.equal(before, logits(model))


def test_a_fresh_adapter_is_left_alone_with_the_reason() -> None:
    model = float64_llama()
    build("adapter.lora", rank=4).inject(model, seed=0)
    found = wisca(**OF_LORA, lora="tensor", strict=True).apply(model)
    assert {rewrite.skipped for rewrite in found} == {"B is still zero"}


class Silu(LowRankLinear):
    def between(self, inner: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(inner)


def test_a_branch_that_is_not_homogeneous_is_refused() -> None:
    assert homogeneous(torch.relu, 4)
    assert homogeneous(lambda x: 0.7 * torch.relu(x) + 0.3 * x, 4)
    assert not homogeneous(torch.tanh, 4)
    model = adapted(float64_llama())
    next(iter(wrapped(model).values())).__class__ = Silu
    with pytest.raises(FitError, match="not homogeneous"):
        wisca(**OF_LORA, lora="tensor").apply(model)


# --- refusals ---------------------------------------------------------------------------------------------------------


def quantized(model: Any) -> Any:
    build("quantizer.rtn", scheme="w8a8").quantize(model, [])
    return model


def shared(model: Any) -> Any:
    model.model.layers[1].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
    return model


def frozen(model: Any) -> Any:
    model.model.layers[1].self_attn.k_proj.requires_grad_(False)
    return model


class OtherAttention(nn.Module):
    pass


def unknown(model: Any) -> Any:
    model.model.layers[1].self_attn.__class__ = OtherAttention
    return model


def normalised(model: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8)).eval()


def without_layers(model: Any) -> Any:
    return nn.Sequential(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (quantized, "not a float linear layer"),
        (shared, "is also model.layers"),
        (frozen, "k_proj.weight is frozen"),
        (unknown, "OtherAttention, whose free scales are not known"),
        (normalised, "q_norm normalises queries or keys"),
        (adapted, "under an adapter"),
        (without_layers, "has no pair to balance"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_and_unchanged(spoil: Any, said: str) -> None:
    model = spoil(llama(kv_heads=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FitError, match=said):
        wisca().apply(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_frozen_weights_are_rewritten_where_that_is_meant() -> None:
    model = frozen(float64_llama(kv_heads=2))
    before = logits(model)
    wisca(allow_frozen=True).apply(model)
    assert change(before, logits(model)) <= EXACT


def test_values_and_outputs_of_normalised_queries_can_be_balanced() -> None:
    model = normalised(None).double()
    before = logits(model)
    assert len(wisca(qk="off").apply(model)) == 2
    assert change(before, logits(model)) < 1e-6  # its norms round to float32


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_pair_without_a_norm_is_left_alone_and_raises_in_strict_mode(value: float) -> None:
    model = float64_llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.fill_(value)
    found = wisca().apply(copy.deepcopy(model))
    assert found[0].skipped.startswith("k has a norm")
    assert all(rewrite.what for rewrite in found[1:])
    with pytest.raises(FitError, match=r"layers.0.self_attn q/k: k has a norm"):
        wisca(strict=True).apply(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": 3}, "norm"),
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"max_factor": 1.0}, "max_factor"),
        ({"qk": "off", "vo": "off"}, "nothing to balance"),
        ({"at_init": False, "every_n_steps": None}, "never applied"),
        ({"control": "sgd"}, "every_n_steps: null"),
        ({"control": "sgd", "every_n_steps": None, "qk": "channel"}, "whole tensors"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wisca(**options)


def context(stage: str = "train", **changes: Any) -> FitContext:
    place = {"model": llama_shape(), "device": find_device("cpu"), "dtype": "float32", "stage": stage}
    return FitContext(**place | changes)


@pytest.mark.parametrize(
    ("options", "where", "said"),
    [
        ({}, {"model": llama_shape(qk_norm=True)}, "set qk: off"),
        ({"up_down": "tensor"}, {"model": llama_shape(experts=4, experts_per_token=2)}, "dense gated MLPs"),
        ({}, {"neighbours": ("adapter.lora",)}, "only the adapter is saved"),
        ({"lora": "rank"}, {}, "set lora: off"),
        ({"state": "keep"}, {"stage": "transform"}, "state say nothing in a transform stage"),
    ],
)
def test_a_plan_says_what_does_not_go_together(options: Any, where: Any, said: str) -> None:
    answers = WiscaConfig(**options).fit(context(**where))
    assert any(not answer.ok and said in answer.reason for answer in answers)


def test_a_plan_says_what_is_kept_and_warns_of_repeated_rounding() -> None:
    assert WiscaConfig().fit(context())[0].reason == "keeps the logits, up to rounding"
    assert WiscaConfig().fit(context(dtype="bfloat16"))[0].reason == "keeps the logits, bit for bit"
    assert WiscaConfig(pow2="never").fit(context(dtype="bfloat16"))[-1].severity == "warning"


def test_due_follows_the_schedule() -> None:
    config = WiscaConfig(every_n_steps=3, until_step=7)
    assert [step for step in range(20) if config.due(step)] == [0, 3, 6]
    assert [step for step in range(20) if WiscaConfig(every_n_steps=None).due(step)] == [0]
    assert [step for step in range(10) if WiscaConfig(at_init=False, every_n_steps=4).due(step)] == [4, 8]


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_rewrite_as_one(tmp_path: Path) -> None:
    """fully_shard, tensor-parallel layouts and uneven rows; optimizer state; a fused projection refused under tp."""
    worker = Path(__file__).with_name("sharded_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = [rank.communicate(timeout=600) for rank in ranks]
    assert [out.strip() for out, _ in answers] == ["equal", "equal"], answers


def test_float64_llama_is_the_llama_it_stands_for() -> None:
    one, two = llama(), float64_llama()
    assert change(logits(one).double(), logits(two)) < rounding_bound("float32", 4)
