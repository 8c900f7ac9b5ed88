"""`attention.full`: the slot's laws, and what makes it full attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.attention.full.config import FullAttentionConfig
from stackloom.testing import AttentionContract, relative_error, tiny_shape

EPS = torch.finfo(torch.float64).eps


class TestFullAttention(AttentionContract):
    plugin = "attention.full"


def mixer(**changes):
    torch.manual_seed(0)
    return (
        FullAttentionConfig()
        .build(LayerShape(**{"hidden": 24, "heads": 4, "kv_heads": 2, "head_dim": 6} | changes))
        .double()
    )


@given(
    heads=st.sampled_from([1, 2, 4, 6]),
    groups=st.sampled_from([1, 2, 3]),
    half=st.integers(1, 5),
    tokens=st.integers(1, 40),
    theta=st.sampled_from([10.0, 10_000.0, 500_000.0]),
)
@settings(max_examples=30, deadline=None)
def test_is_the_formula_of_its_readme(heads, groups, half, tokens, theta):
    heads, width = heads * groups, 2 * half
    module = mixer(heads=heads, kv_heads=groups, head_dim=width, rope_theta=theta)
    x_TD = torch.randn(tokens, 24, dtype=torch.float64)
    queries, keys, values = (
        weight(x_TD).view(tokens, -1, width) for weight in (module.q_proj, module.k_proj, module.v_proj)
    )

    def rotate(x_THK):
        angles = torch.arange(tokens).double()[:, None] * theta ** (-2 * torch.arange(half).double() / width)
        turned = (
            torch.complex(x_THK[..., :half], x_THK[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
        )
        return torch.cat((turned.real, turned.imag), dim=-1)

    queries, keys = rotate(queries), rotate(keys)
    rows = []
    for t in range(tokens):
        mixed = []
        for head in range(heads):
            group = head // (heads // groups)
            scores = keys[: t + 1, group] @ queries[t, head] / math.sqrt(width)
            mixed.append(scores.softmax(0) @ values[: t + 1, group])
        rows.append(module.o_proj(torch.cat(mixed)))
    assert relative_error(module(x_TD[None])[0], torch.stack(rows)) < 64 * EPS


def test_is_the_attention_of_transformers_llama():
    config = LlamaConfig(
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="eager",
    )
    theirs, ours = LlamaAttention(config, 0), mixer(rope_theta=500.0).float()
    ours.load_state_dict(theirs.state_dict())
    x_BTD = torch.randn(2, 30, 24)
    mask = torch.full((30, 30), float("-inf")).triu(1)[None, None]
    expected, _ = theirs(x_BTD, LlamaRotaryEmbedding(config)(x_BTD, torch.arange(30)[None]), mask)
    assert relative_error(ours(x_BTD), expected) < 16 * torch.finfo(torch.float32).eps


def test_grouped_queries_are_full_heads_with_repeated_keys_and_values():
    grouped, full = mixer(), mixer(kv_heads=4)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].view(2, 6, 24).repeat_interleave(2, dim=0).reshape(24, 24)
    full.load_state_dict(state)
    x_BTD = torch.randn(2, 17, 24, dtype=torch.float64)
    assert relative_error(grouped(x_BTD), full(x_BTD)) < 16 * EPS


def test_first_token_passes_through_value_and_output_alone():
    module = mixer(kv_heads=4)
    x_BTD = torch.randn(2, 5, 24, dtype=torch.float64)
    assert relative_error(module(x_BTD)[:, 0], module.o_proj(module.v_proj(x_BTD[:, 0]))) < 16 * EPS


def test_too_many_tokens_for_the_positions_are_refused():
    module = mixer(max_positions=8)
    x_BTD = torch.zeros(1, 9, 24, dtype=torch.float64)
    with pytest.raises(ConfigError, match="9 tokens, but the layer has 8 positions"):
        module(x_BTD)
    view = TestFullAttention.view(module, x_BTD)
    module.prefill(x_BTD[:, :8], view)
    with pytest.raises(ConfigError, match="9 tokens"):
        module.step(x_BTD[:, 8], view)


@pytest.mark.parametrize("changes", [{"kv_heads": 3}, {"head_dim": 5}])
def test_a_shape_without_groups_or_pairs_is_refused_in_plan_and_build(changes):
    context = TestFullAttention.context().model_copy(update={"model": tiny_shape(**changes)})
    assert [fit.ok for fit in FullAttentionConfig().fit(context)] == [False]
    with pytest.raises(FitError, match="heads must be a multiple"):
        mixer(**changes)


def test_a_sequence_beyond_the_positions_does_not_fit():
    context = TestFullAttention.context().model_copy(update={"stage_options": {"sequence_length": 1025}})
    (fit,) = FullAttentionConfig().fit(context)
    assert (fit.ok, fit.reason) == (False, "sequence_length 1025 exceeds the model's 1024 positions")
