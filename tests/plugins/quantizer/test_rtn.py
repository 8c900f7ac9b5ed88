"""`quantizer.rtn`: the slot's laws, the bounds of the grids, exact integer products, and what a plan sees."""

import math
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.core.devices import DTYPE_BYTES
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.planning import plan
from stackloom.core.shapes import ModelShape
from stackloom.core.stack import StackSpec
from stackloom.kernels.w4a8_gemm import integer_product
from stackloom.plugins.quantizer import integer_matmul
from stackloom.plugins.quantizer.grid import (
    SMALLEST_SCALE,
    dequantize_groups,
    largest,
    quantize_groups,
    quantize_tokens,
    snr_db,
)
from stackloom.plugins.quantizer.integer_matmul import int8_matmul
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.plugins.quantizer.rtn.config import RTNConfig
from stackloom.plugins.quantizer.selection import legal_groups
from stackloom.testing import QuantizerContract, llama_shape, record, relative_error, tiny_llama

SMOLLM2 = ModelShape(
    name="smollm2-135m", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152
)
EPS = torch.finfo(torch.float32).eps
SCHEMES = ("w8a8", "w4a16", "w4a8")


class TestW8A8(QuantizerContract):
    plugin = "quantizer.rtn"
    logits_error, lowest_snr_db = 0.05, 40.0


class TestW4A16(QuantizerContract):
    plugin = "quantizer.rtn"
    options: ClassVar = {"scheme": "w4a16"}
    lowest_snr_db = 17.0


class TestW4A8OfTheMLPsInGroupsOf16(QuantizerContract):
    plugin = "quantizer.rtn"
    options: ClassVar = {"scheme": "w4a8", "group_size": 16, "include": ["*.mlp.*"]}
    lowest_snr_db = 20.0


class TestW8A8WithBiasesPerGroup(QuantizerContract):
    plugin = "quantizer.rtn"
    options: ClassVar = {"group_size": 32, "exclude": ["*o_proj", "*layers.0.*"]}
    logits_error, lowest_snr_db = 0.05, 40.0

    @classmethod
    def shape(cls):
        return llama_shape(hidden=64, head_dim=16, intermediate=128, attention_bias=True, mlp_bias=True)


def drawn(rows, columns, seed, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int8(rows, columns, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, columns), generator=draw, dtype=torch.int8)


# --- grids ------------------------------------------------------------------------------------------------------------

weights = st.lists(
    st.one_of(
        st.floats(-(2.0**126), 2.0**126, width=32),
        st.floats(-2, 2, width=32),
        st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 3.4028235e38, 3.5, -0.5]),
    ),
    min_size=24,
    max_size=24,
)


@given(values=weights, bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([1, 2, 4, 6, 12]))
def test_every_weight_is_within_half_a_scale_of_its_grid_point(values, bits, group):
    weight = torch.tensor(values).reshape(2, 12)
    q, scale = quantize_groups(weight, bits, group)
    assert q.abs().max() <= largest(bits)
    assert scale.shape == (2, 12 // group)
    assert (scale >= SMALLEST_SCALE).all()
    point = q.double().reshape(2, -1, group) * scale.double()[..., None]
    distance = (weight.double().reshape(2, -1, group) - point).abs()
    assert (distance <= scale.double()[..., None] / 2 * (1 + 2**-40)).all()  # w / s rounds once, in float64


@given(seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_signal_to_noise_grows_with_bits_and_with_smaller_groups(seed, dtype):
    weight = drawn(16, 64, seed, dtype)

    def quality(bits, group):
        return snr_db(weight, dequantize_groups(*quantize_groups(weight, bits, group), torch.float64))

    by_bits = [quality(bits, 32) for bits in (2, 3, 4, 5, 6, 8)]
    assert by_bits == sorted(by_bits)
    assert by_bits[0] + 20 < by_bits[-1]
    assert quality(4, 64) < quality(4, 8)


def test_largest_magnitude_is_kept_exactly_and_zeros_stay_zero():
    weight = torch.tensor([[7.0, -3.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    q, scale = quantize_groups(weight, 4, 4)
    assert q.tolist() == [[7, -3, 0, 1], [0, 0, 0, 0]]
    assert scale[0].item() == 1.0
    assert torch.equal(dequantize_groups(q, scale, torch.float32), weight)


def test_group_that_does_not_divide_and_weights_beyond_float32_are_value_errors():
    with pytest.raises(ValueError, match="does not divide"):
        quantize_groups(torch.ones(2, 10), 4, 4)
    with pytest.raises(ValueError, match="exceed float32"):
        quantize_groups(torch.full((1, 4), 1e300, dtype=torch.float64), 8, 4)


@given(seed=st.integers(0, 999), power=st.integers(-30, 30), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_every_feature_is_within_half_a_scale_and_tokens_do_not_meet(seed, power, dtype):
    x = (drawn(5, 11, seed) * 2.0**power).to(dtype)
    q, scale = quantize_tokens(x)
    assert ((x.double() - q.double() * scale.double()).abs() <= scale.double() / 2 * (1 + 127 * EPS)).all()
    alone = quantize_tokens(x[2:3])
    assert torch.equal(alone[0][0], q[2])
    assert torch.equal(alone[1][0], scale[2])


def test_signal_to_noise_of_an_exact_copy_is_capped():
    assert snr_db(torch.ones(3), torch.ones(3)) == snr_db(torch.zeros(3), torch.zeros(3)) == 320.0
    assert snr_db(torch.ones(3), torch.zeros(3)) == 0.0
    assert snr_db(torch.zeros(3), torch.ones(3)) == -320.0


# --- products ---------------------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 40), outs=st.integers(0, 40), columns=st.integers(0, 70), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_product_is_exact_on_every_shape(rows, outs, columns, seed):
    x, w = int8(rows, columns, seed), int8(outs, columns, seed + 1)
    found = int8_matmul(x, w)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), x.long() @ w.long().T)


@pytest.mark.parametrize("columns", [1, 2, 3, 8])
def test_product_is_exact_for_every_small_shape(columns):
    for rows in range(1, 19):
        for outs in range(1, 19):
            x, w = int8(rows, columns, rows), int8(outs, columns, outs)
            assert torch.equal(int8_matmul(x, w).long(), x.long() @ w.long().T), (rows, outs)


@pytest.mark.parametrize("columns", [1024, 1025, 8192, integer_matmul.LONGEST_SUM])
def test_product_is_exact_at_the_ends_of_the_range(columns):
    x, w = torch.full((18, columns), -128, dtype=torch.int8), torch.full((3, columns), -128, dtype=torch.int8)
    w[1] = 127
    assert torch.equal(int8_matmul(x, w).long(), x.long() @ w.long().T)


@pytest.mark.parametrize("vnni", [True, False])
def test_product_is_exact_with_int8_instructions_and_without(monkeypatch, vnni):
    x, w = int8(20, 1500, 0), int8(600, 1500, 1)
    monkeypatch.setattr(integer_product, "has_int8_instructions", lambda: vnni)
    assert torch.equal(integer_product.integer_product(x, w).long(), x.long() @ w.long().T)


def test_integer_instructions_that_saturate_are_not_used(monkeypatch):
    """The probe refuses a product that saturates at 16 bits, as vpmaddubsw does."""
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.long() @ b.long()).clamp(-32768, 32767).int())
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    integer_product._is_exact.cache_clear()
    assert not integer_product.has_int8_instructions()
    integer_product._is_exact.cache_clear()


def test_operands_that_do_not_go_together_are_refused():
    with pytest.raises(TypeError, match="must be int8"):
        int8_matmul(torch.ones(2, 3), int8(2, 3, 0))
    with pytest.raises(ValueError, match="do not go together"):
        int8_matmul(int8(2, 3, 0), int8(2, 4, 0))
    with pytest.raises(ValueError, match="can exceed int32"):
        int8_matmul(int8(1, 131_072, 0), int8(1, 131_072, 0))


def layer(bits, group, activations, columns=48, rows=20, bias=True, dtype=torch.float32):
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    linear.weight.data.copy_(drawn(rows, columns, 3))
    if bias:
        linear.bias.data.copy_(drawn(1, rows, 4)[0])
    made = QuantizedLinear.like(linear, bits=bits, group=group, int8_activations=activations)
    made.put(*quantize_groups(linear.weight, bits, group), linear.bias)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group"), [(8, 48), (8, 16), (4, 48), (4, 12), (4, 3)])
@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_integer_layer_is_the_int64_reference_scaled(bits, group, tokens, dtype):
    made, x = layer(bits, group, True, dtype=dtype), drawn(tokens, 48, 5, dtype)
    q, token_scale = quantize_tokens(x)
    expected = made.bias.double().expand(tokens, -1).clone()
    size = torch.zeros_like(expected)
    for place in range(48 // group):
        part = slice(place * group, (place + 1) * group)
        dots = q[:, part].long() @ made.integers()[:, part].long().T
        expected += dots * made.scale[:, place].double() * token_scale.double()
        size += (dots * made.scale[:, place].double() * token_scale.double()).abs()
    with torch.no_grad():
        found = made.from_stored(x).to(dtype).double()
        assert relative_error(made(x), found) < 1e-6 + (dtype != torch.float32) * torch.finfo(dtype).eps
    roundings = 48 // group + 4
    bound = roundings * EPS * (size + expected.abs()) + torch.finfo(dtype).eps / 2 * expected.abs() * (1 + EPS)
    assert ((found - expected).abs() <= bound).all()


def test_weight_only_layer_is_a_linear_layer_with_the_dequantized_weight():
    made, x = layer(4, 16, False), drawn(7, 48, 6)
    assert torch.equal(made(x), nn.functional.linear(x, made.dequantized(torch.float32), made.bias))


@given(columns=st.integers(1, 33), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_packed_integers_come_back(columns, seed):
    made = QuantizedLinear(columns, 5, bits=4, group=columns, int8_activations=False, bias=False)
    q, scale = quantize_groups(drawn(5, columns, seed), 4, columns)
    made.put(q, scale, None)
    assert made.qweight.dtype == torch.uint8
    assert made.qweight.shape == (5, (columns + 1) // 2)
    assert torch.equal(made.integers(), q)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_token_that_is_not_finite_stays_so_and_harms_no_other(scheme, value):
    config = RTNConfig(scheme=scheme, group_size=16)
    made, x = layer(config.bits, 16, config.int8_activations), drawn(6, 48, 7)
    poisoned = x.clone()
    poisoned[2, 5] = value
    with torch.no_grad():
        clean, found = made(x), made(poisoned)
    assert not torch.isfinite(found[2]).any()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], clean[others])


def test_zero_tokens_give_the_bias():
    made = layer(8, 16, True)
    with torch.no_grad():
        assert torch.equal(made(torch.zeros(3, 48)), made.bias.expand(3, -1))
        assert made(torch.zeros(0, 48)).shape == (0, 20)
        assert made(torch.zeros(2, 3, 48)).shape == (2, 3, 20)


def test_gradient_through_integers_is_refused_and_through_float_is_right():
    x = drawn(3, 48, 8).requires_grad_()
    with pytest.raises(FitError, match="no gradient"):
        layer(8, 48, True)(x)
    made = layer(4, 16, False)
    torch.autograd.backward(made(x).sum())
    assert relative_error(x.grad, made.dequantized(torch.float64).sum(0).expand(3, -1)) < 20 * EPS


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_model_gives_the_eager_outputs(scheme):
    model = tiny_llama()
    RTNConfig(scheme=scheme, group_size=16).build().quantize(model, [])
    tokens = torch.arange(9)[None]
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(tokens, use_cache=False).logits
        expected = model(tokens, use_cache=False).logits
    torch._dynamo.reset()
    assert torch.equal(found, expected)


# --- models -----------------------------------------------------------------------------------------------------------


def test_head_and_embeddings_are_kept_and_a_head_can_be_asked_for():
    model = tiny_llama()
    names = {report.name for report in RTNConfig(group_size=16).build().quantize(model, [])}
    assert len(names) == 14
    assert not any("lm_head" in name or "embed" in name for name in names)
    model = tiny_llama()
    assert [report.name for report in RTNConfig(include=("lm_head",), exclude=()).build().quantize(model, [])] == [
        "lm_head"
    ]
    with torch.no_grad():
        assert model(torch.arange(3)[None]).logits.isfinite().all()


def test_tied_head_is_refused_with_the_name_it_shares():
    with pytest.raises(FitError, match=r"lm_head shares its weight with model\.embed_tokens\.weight"):
        RTNConfig(exclude=()).build().quantize(tiny_llama(llama_shape(tied=True)), [])


def test_group_size_that_does_not_divide_names_the_layer_and_what_would():
    model = tiny_llama()
    with pytest.raises(FitError, match=r"group_size 32 does not divide the 48 in features of .*down_proj") as caught:
        RTNConfig(scheme="w4a16", group_size=32).build().quantize(model, [])
    assert caught.value.fix == "sizes that divide every selected layer: 8, 16"
    assert all(type(layer.mlp.up_proj) is nn.Linear for layer in model.model.layers)


@pytest.mark.parametrize(("size", "ok"), [(64, True), (96, True), (192, True), (128, False), (576, False)])
def test_plan_knows_the_legal_groups_of_smollm2(size, ok):
    context = TestW8A8.context().model_copy(update={"model": SMOLLM2})
    (answer,) = RTNConfig(scheme="w4a16", group_size=size).fit(context)
    assert answer.ok == ok
    if not ok:
        assert "sizes that divide every selected layer: 8, 12, 16, 24, 32, 48, 64, 96, 192" in answer.reason


def test_fewer_layers_have_more_legal_groups():
    assert legal_groups([576]) == [size for size in range(8, 577) if 576 % size == 0]
    context = TestW8A8.context().model_copy(update={"model": SMOLLM2})
    assert RTNConfig(group_size=576, exclude=("*down_proj", "*lm_head*")).fit(context)[0].ok


def test_empty_selection_is_a_misfit():
    assert not RTNConfig(include=("*nothing*",)).fit(TestW8A8.context())[0].ok
    with pytest.raises(FitError, match="no linear layer is selected of the model's 15"):
        RTNConfig(include=("*nothing*",)).build().quantize(tiny_llama(), [])


def test_scheme_and_group_size_are_checked():
    for options in ({"scheme": "w3a16"}, {"group_size": 0}, {"group_size": "row"}, {"include": []}):
        with pytest.raises(ConfigError):
            TestW8A8.config(**options)
    assert [RTNConfig(scheme=scheme).group_of(576) for scheme in SCHEMES] == [576, 64, 64]
    assert RTNConfig(scheme="w4a8", group_size="channel").group_of(576) == 576


def test_reports_say_the_scheme():
    schemes = {}
    for scheme in SCHEMES:
        config = RTNConfig(scheme=scheme, group_size="auto" if scheme == "w8a8" else 16)
        schemes[scheme] = config.build().quantize(tiny_llama(), [])[0].scheme
    assert schemes == {
        "w8a8": "W8 per channel, A8 per token",
        "w4a16": "W4 g16, float activations",
        "w4a8": "W4 g16, A8 per token",
    }


def test_bytes_of_smollm2_before_and_after():
    """30 layers of 3,538,944 weights: 203 MB in bfloat16, 57 MB in int4 with a float32 scale per 64."""
    before, after = RTNConfig(scheme="w4a16").layer_bytes(SMOLLM2, 2)
    weights_ = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
    assert before == 2 * weights_
    assert after == weights_ / 2 + 4 * weights_ / 64


# --- planning ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path):
    """Return a function that plans stages on a small Llama's folder."""
    tiny_llama().config.save_pretrained(tmp_path)
    catalogue = SimpleNamespace(
        get=record, ids=lambda: ["model.hf", "quantizer.rtn", "adapter.lora", "optimizer.adamw"]
    )

    def make(*stages):
        data = {"name": "t", "model": {"use": "model.hf", "checkpoint": str(tmp_path)}, "stages": list(stages)}
        return plan(StackSpec.from_data(data), catalogue, device="cpu")

    return make


def rtn(**options):
    return {"quantize": {"quantizer": {"use": "quantizer.rtn", "group_size": 16, **options}}}


def test_quantizing_twice_is_a_planned_conflict(planned):
    assert planned(rtn()).ok
    made = planned(rtn(), rtn(scheme="w4a16"))
    (clash,) = made.clashes[:1]
    assert not made.ok
    assert (clash.kind, clash.where, clash.plugins) == (
        "state",
        "stages[1].quantize",
        ("quantizer.rtn", "quantizer.rtn"),
    )
    assert "in state 'float', quantizer.rtn left it 'int8'" in clash.reason


def test_two_stages_on_different_layers_go_together(planned):
    assert planned(rtn(include=["*.mlp.*"]), rtn(include=["*.self_attn.*"], scheme="w4a16")).ok


def test_adapter_after_a_quantizer_is_a_planned_conflict_and_before_it_is_none(planned):
    train = {
        "train": {
            "adapter": "adapter.lora",
            "optimizer": "optimizer.adamw",
            "data": {"use": "data.pydoc"},
            "steps": 2,
            "sequence_length": 64,
        }
    }
    assert planned(train, rtn()).ok
    clash = planned(rtn(), train).clashes[0]
    assert (clash.kind, clash.plugins) == ("state", ("adapter.lora", "quantizer.rtn"))


def test_plan_counts_the_quantized_copy_beside_the_float_model(planned):
    made = planned(rtn(scheme="w4a8"))
    element = DTYPE_BYTES[made.resources.dtype]
    copy = RTNConfig(scheme="w4a8", group_size=16).layer_bytes(made.shape, element)[1]
    assert made.stages[0].cost.weight_bytes == made.shape.parameters * element + copy
