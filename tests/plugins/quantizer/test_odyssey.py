"""`quantizer.odyssey`: the slot's laws, the sixteenfold path bit by bit, its recipe, and its refusals.

Shape legend: M tokens, N out features, K in features.
"""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.core.errors import FitError
from stackloom.kernels.int4_pack import pack_int4
from stackloom.plugins.quantizer.grid import quantize_groups, quantize_tokens
from stackloom.plugins.quantizer.hessian import output_error
from stackloom.plugins.quantizer.integer_matmul import LONGEST_SUM
from stackloom.plugins.quantizer.layers import quantized
from stackloom.plugins.quantizer.odyssey.config import OdysseyConfig
from stackloom.plugins.quantizer.odyssey.sixteenfold import SixteenfoldLinear, widened
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.testing import QuantizerContract, llama_shape, tiny_llama

QUICK = {"epochs": 1, "block_columns": 32}


class TestTheRecipe(QuantizerContract):
    plugin = "quantizer.odyssey"
    options: ClassVar = QUICK
    lowest_snr_db = 12.0


class TestSearchedClippingInGroups(QuantizerContract):
    plugin = "quantizer.odyssey"
    options: ClassVar = {"clipping": "search", "group_size": 16, "act_order": True, "observe": "block"}
    lowest_snr_db = 14.0


class TestClippingAloneWithBiases(QuantizerContract):
    plugin = "quantizer.odyssey"
    options: ClassVar = {**QUICK, "compensate": False, "auxiliary_loss": True, "exclude": ["*o_proj", "*lm_head*"]}
    lowest_snr_db = 12.0

    @classmethod
    def shape(cls):
        return llama_shape(hidden=64, head_dim=16, intermediate=128, attention_bias=True, mlp_bias=True)


class TestIntegerScalesOnOdyssey(QuantizerContract):
    plugin = "quantizer.integer-scale"
    options: ClassVar = {"base": {"use": "quantizer.odyssey", "clipping": "search", "group_size": 16}}
    lowest_snr_db = 12.0

    @classmethod
    def calibration(cls):
        return [row for seed in range(100, 104) for row in cls.tokens(seed)]

    def test_calibration_feature_is_true(self) -> None:
        """The base asks for the data."""
        with pytest.raises(FitError, match="needs calibration data"):
            self.component().quantize(self.model(), [])


def drawn(rows, columns, seed, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layers(columns, rows=10, seed=0, bias=True, dtype=torch.float32):
    """Return the same per-channel W4A8 layer twice: unpacking, and sixteenfold."""
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    linear.weight.data.copy_(drawn(rows, columns, seed))
    made = []
    for kind in (QuantizedLinear, SixteenfoldLinear):
        made.append(kind.like(linear, bits=4, group=columns, int8_activations=True))
        made[-1].put(*quantize_groups(linear.weight, 4, columns), linear.bias)
    return made


# --- sixteenfold ------------------------------------------------------------------------------------------------------


def test_a_nibble_in_the_high_half_is_sixteen_times_its_value_for_all_pairs():
    values = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(values, values)
    even, odd = widened(pack_int4(pairs))
    assert torch.equal(even[:, 0].int(), 16 * pairs[:, 0].int())
    assert torch.equal(odd[:, 0].int(), 16 * pairs[:, 1].int())


@given(half=st.integers(1, 40), tokens=st.integers(0, 20), seed=st.integers(0, 99), bias=st.booleans())
@settings(max_examples=40)
def test_sixteenfold_layer_is_the_unpacking_layer_bit_by_bit(half, tokens, seed, bias):
    plain, sixteenfold = layers(2 * half, seed=seed, bias=bias)
    x = 3 * drawn(tokens, 2 * half, seed + 1)
    with torch.no_grad():
        assert torch.equal(plain.from_stored(x), sixteenfold.from_stored(x))
        assert torch.equal(sixteenfold(x), sixteenfold.from_stored(x))
        assert torch.equal(plain(x.bfloat16()), sixteenfold(x.bfloat16()))


def test_sums_are_sixteen_times_the_int64_oracle():
    _, made = layers(512)
    q, _ = quantize_tokens(drawn(9, 512, 5))
    even, odd = widened(made.qweight)
    sums = q[:, 0::2].long() @ even.long().T + q[:, 1::2].long() @ odd.long().T
    assert torch.equal(sums, 16 * (q.long() @ made.integers().long().T))


def test_longest_row_fits_int32_and_one_more_does_not():
    assert 128 * 128 * LONGEST_SUM < 2**31 == 128 * 128 * (LONGEST_SUM + 1)


def test_extreme_inputs_of_a_long_row_are_exact():
    columns = 65_536
    _, made = layers(columns, rows=2, bias=False)
    made.put(torch.full((2, columns), -8, dtype=torch.int8), torch.ones(2, 1), None)
    with torch.no_grad():
        found = made(torch.full((1, columns), -127.0))
    assert found.tolist() == [[127.0 * 8 * columns] * 2]


def test_tokens_do_not_meet_and_zero_tokens_give_the_bias():
    _, made = layers(64)
    x = drawn(7, 64, 1)
    x[3] = 0
    with torch.no_grad():
        found = made(x)
        assert torch.equal(found[4:5], made(x[4:5]))
        assert torch.equal(found[3], made.bias)
        x[2, 5] = float("nan")
        poisoned = made(x)
    assert not torch.isfinite(poisoned[2]).any()
    assert torch.equal(poisoned[[0, 1, 3, 4, 5, 6]], found[[0, 1, 3, 4, 5, 6]])


def test_integer_scales_take_the_unpacking_path():
    """Sixteenfold sums would leave a sixteenth of int32 to them."""
    plain, made = layers(64)
    for layer in (plain, made):
        layer.amplify((layer.scale * 1024).round(), torch.full((10,), 1024))
    x = drawn(5, 64, 2)
    with torch.no_grad():
        assert torch.equal(plain(x), made(x))


def test_channel_layers_are_sixteenfold_and_grouped_ones_are_not():
    for group, kind in (("channel", SixteenfoldLinear), (16, QuantizedLinear)):
        model = tiny_llama()
        OdysseyConfig(clipping="none", compensate=False, group_size=group).build().quantize(model, tokens())
        assert {type(layer) for layer in quantized(model).values()} == {kind}


def test_compiled_model_gives_the_eager_outputs():
    model = tiny_llama()
    OdysseyConfig(clipping="none", compensate=False).build().quantize(model, tokens())
    ids = torch.arange(9)[None]
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(ids, use_cache=False).logits
        expected = model(ids, use_cache=False).logits
    torch._dynamo.reset()
    assert torch.equal(found, expected)


# --- the recipe -------------------------------------------------------------------------------------------------------


def tokens(count=6, length=24):
    draw = torch.Generator().manual_seed(1)
    return list(torch.randint(0, 97, (count, length), generator=draw))


def logits(model):
    with torch.no_grad():
        return model(torch.stack(tokens()), use_cache=False).logits.double()


def error(**options):
    """Return the squared error of the logits on the calibration sequences."""
    model = tiny_llama()
    expected = logits(model)
    OdysseyConfig(**options).build().quantize(model, tokens())
    return (logits(model) - expected).square().mean().item()


def test_clipping_and_compensation_each_lower_the_error_of_the_logits():
    plain = error(clipping="none", compensate=False)
    for clipping in ("learned", "search"):
        clipped = error(clipping=clipping, compensate=False, epochs=15)
        assert clipped < plain
        assert error(clipping=clipping, epochs=15) < clipped


def test_without_clipping_and_compensation_it_is_round_to_nearest():
    model = tiny_llama()
    weights = {path: module.weight.clone() for path, module in model.named_modules() if type(module) is nn.Linear}
    OdysseyConfig(clipping="none", compensate=False).build().quantize(model, tokens())
    for path, layer in quantized(model).items():
        q, scale = quantize_groups(weights[path], 4, layer.in_features)
        assert torch.equal(layer.integers(), q)
        assert torch.equal(layer.scale, scale)


def test_compensation_keeps_the_clipped_grid_and_lowers_the_output_error():
    """The first layer of the model: its inputs do not depend on what is quantized."""
    found = {}
    for compensate in (False, True):
        model = tiny_llama()
        query = model.model.layers[0].self_attn.q_proj
        with torch.no_grad():
            inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.stack(tokens())))
        OdysseyConfig(clipping="search", compensate=compensate).build().quantize(model, tokens())
        found[compensate] = quantized(model)["model.layers.0.self_attn.q_proj"]
    rows = inputs.double().reshape(-1, 32)
    errors = [output_error(query.weight, layer.dequantized(torch.float64), rows.T @ rows) for layer in found.values()]
    assert torch.equal(found[False].scale, found[True].scale)
    assert errors[1] < errors[0]


def test_report_order_is_the_models():
    model = tiny_llama()
    names = [path for path, module in model.named_modules() if type(module) is nn.Linear and path != "lm_head"]
    reports = OdysseyConfig(clipping="search").build().quantize(model, tokens())
    assert [report.name for report in reports] == names


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_head_outside_of_the_blocks_is_refused_before_any_change():
    model = tiny_llama()
    with pytest.raises(FitError, match="lm_head lies outside of the decoder's blocks"):
        OdysseyConfig(exclude=()).build().quantize(model, tokens())
    assert not quantized(model)
    assert any("lm_head" in fit.reason for fit in OdysseyConfig(exclude=()).fit(TestTheRecipe.context()) if not fit.ok)


def test_odd_and_endless_rows_are_misfits():
    context = TestTheRecipe.context()
    for changes in ({"hidden": 63}, {"intermediate": 131_074}):
        shape = context.model.model_copy(update=changes)
        answers = OdysseyConfig().fit(context.model_copy(update={"model": shape}))
        assert "needs an even number up to 131071" in next(fit.reason for fit in answers if not fit.ok)


def test_odd_row_is_refused():
    model = tiny_llama(llama_shape(intermediate=47))
    with pytest.raises(FitError, match=r"down_proj has 47 in features"):
        OdysseyConfig().build().quantize(model, tokens())


def test_plan_warns_of_less_calibration_than_in_features():
    context = TestTheRecipe.context()
    for sequences, few in ((2, True), (8, False)):
        options = {"calibration_sequences": sequences, "sequence_length": 16}
        answers = OdysseyConfig().fit(context.model_copy(update={"stage_options": options}))
        assert any("calibration tokens are few for 128 in features" in fit.reason for fit in answers) == few


def test_plan_warns_of_too_few_steps_to_clip():
    context = TestTheRecipe.context().model_copy(
        update={"stage_options": {"calibration_sequences": 8, "sequence_length": 512}}
    )
    for options, few in (({"epochs": 3}, True), ({"epochs": 3, "learning_rate": 0.1}, False), ({"epochs": 30}, False)):
        answers = OdysseyConfig(**options).fit(context)
        assert any("hardly clips" in fit.reason for fit in answers) == few, options
    assert not any("hardly clips" in fit.reason for fit in OdysseyConfig(clipping="search", epochs=1).fit(context))


def test_plan_without_calibration_data_is_a_misfit():
    context = TestTheRecipe.context()
    without = context.model_copy(update={"neighbours": ("quantizer.odyssey",)})
    assert all(fit.ok for fit in OdysseyConfig().fit(context))
    assert any("names none" in fit.reason for fit in OdysseyConfig().fit(without) if not fit.ok)


def test_group_that_does_not_divide_is_refused_with_sizes_that_do():
    (answer, *_) = OdysseyConfig(group_size=48).fit(TestTheRecipe.context())
    assert not answer.ok
    assert "sizes that divide every selected layer: 8, 16, 32, 64" in answer.reason
    with pytest.raises(FitError, match="group_size 48 does not divide"):
        OdysseyConfig(group_size=48).build().quantize(tiny_llama(TestTheRecipe.shape()), tokens())


def test_block_whose_output_overflows_is_refused_by_name():
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj.weight.data.fill_(3e38)
    with pytest.raises(FitError, match=r"clipping loss of model\.layers\.0 is not finite"):
        OdysseyConfig(epochs=1).build().quantize(model, tokens())
