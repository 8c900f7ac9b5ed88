"""Weights laid out for a CPU's int8 instructions: the same results as from the weights as they are."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.plugins.quantizer import prepacked
from stackloom.plugins.quantizer.grid import quantize_groups, quantize_tensor, quantize_tokens
from stackloom.plugins.quantizer.prepacked import Fbgemm, PrepackedLinear, codes, split
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear, alike, prepack
from stackloom.plugins.quantizer.rtn.config import RTNConfig
from stackloom.testing import relative_error, tiny_llama

needs_fbgemm = pytest.mark.skipif(not prepacked.available(), reason="fbgemm is not built for this CPU")
EPS = torch.finfo(torch.float32).eps


def int8(rows, columns, seed, low=-128, high=128):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (rows, columns), generator=draw, dtype=torch.int8)


def normal(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(1, 9), columns=st.integers(1, 33), seed=st.integers(0, 999))
def test_split_adds_up_and_no_pair_can_leave_16_bits(rows, columns, seed):
    q = int8(rows, columns, seed)
    kept, rest = split(q)
    assert torch.equal(kept.int() + rest.int(), q.int())
    pairs = nn.functional.pad(kept, (0, columns % 2)).int().unflatten(1, (-1, 2))
    assert 255 * int(pairs.clamp_min(0).sum(-1).max()) <= 2**15 - 1
    assert 255 * int(pairs.clamp_max(0).sum(-1).min()) >= -(2**15)


def test_int4_weights_need_no_rest():
    assert not split(int8(40, 200, 0, -8, 8))[1].any()


@needs_fbgemm
@given(rows=st.integers(1, 20), outs=st.integers(1, 40), columns=st.integers(1, 90), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_packed_sums_are_exact_on_every_shape(rows, outs, columns, seed):
    x, q = int8(rows, columns, seed, -127), int8(outs, columns, seed + 1)
    exact = x.double() @ q.double().T
    assert torch.equal(Fbgemm(q)(x.float()).double(), exact)


@needs_fbgemm
@pytest.mark.parametrize("value", [127, -128])
def test_packed_sums_are_exact_where_every_pair_would_saturate(value):
    x, q = torch.full((3, 1000), 127.0), torch.full((5, 1000), value, dtype=torch.int8)
    x[1], x[2, ::2] = -127, -127
    exact = x.double() @ q.double().T
    assert torch.equal(Fbgemm(q)(x).double(), exact)


@needs_fbgemm
@pytest.mark.parametrize("large", [0, 12, 60])
def test_sums_are_exact_with_a_rest_that_is_empty_sparse_or_dense(large, monkeypatch):
    monkeypatch.setattr(prepacked, "saturates", lambda: True)
    x, q = int8(7, 300, 1, -127), int8(40, 300, 2, -30, 31)
    q[:, :large] = 127
    packed = Fbgemm(q)
    assert (packed._rest is not None, len(packed._products)) == {0: (False, 1), 12: (True, 1), 60: (False, 2)}[large]
    assert torch.equal(packed(x.float()).double(), x.double() @ q.double().T)


@pytest.mark.parametrize("scale", [None, torch.tensor([0.02])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_what_the_op_makes(scale, dtype):
    x = normal(7, 60, 3).to(dtype)
    x[1], x[2, 4], x[3, 5], x[4] = 0, torch.nan, torch.inf, 1e30
    found, steps = codes(x, scale)
    q, expected = quantize_tokens(x) if scale is None else quantize_tensor(x, scale)
    assert torch.equal(found.to(torch.int8), q)
    assert torch.equal(steps, expected) or torch.equal(steps.isnan(), expected.isnan())
    assert torch.equal(steps[~steps.isnan()], expected[~expected.isnan()])


@needs_fbgemm
@pytest.mark.parametrize(("bits", "group"), [(8, 576), (8, 64), (4, 576), (4, 64), (4, 96)])
@pytest.mark.parametrize("smallest", [0, 2**17])
@pytest.mark.parametrize("amplified", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_prepacked_layer_is_the_layer_as_it_is(monkeypatch, bits, group, smallest, amplified, static):
    monkeypatch.setattr(prepacked, "SMALLEST_GROUP", smallest)
    linear = nn.Linear(576, 300)
    made = QuantizedLinear.like(linear, bits=bits, group=group, int8_activations=True, static=static)
    made.put(*quantize_groups(linear.weight, bits, group), linear.bias)
    if static:
        made.put_input_scale(0.02)
    if amplified:
        made.amplify((made.scale * 2**16).round(), torch.full((300,), 2**16))
    x = normal(9, 576, 4)
    with torch.no_grad():
        plain, packed = made.from_stored(x), prepack([made])(x)
    assert relative_error(packed, plain) < 4 * EPS
    assert relative_error(made(x.bfloat16()), plain) < 0.02


@needs_fbgemm
def test_layers_side_by_side_are_the_layers_one_by_one():
    layers = []
    for rows, bias in ((64, True), (40, False)):
        linear = nn.Linear(96, rows, bias=bias)
        layers.append(QuantizedLinear.like(linear, bits=4, group=32, int8_activations=True))
        layers[-1].put(*quantize_groups(linear.weight, 4, 32), linear.bias)
    x = normal(5, 96, 6)
    with torch.no_grad():
        together = prepack(layers)(x)
        assert torch.equal(together, torch.cat([layer(x) for layer in layers], dim=1))
    assert alike(layers)
    layers[1].amplify(torch.ones_like(layers[1].scale), torch.ones(40))
    assert not alike(layers)


@needs_fbgemm
def test_layout_follows_every_change_of_the_weights():
    linear, x = nn.Linear(64, 32), normal(3, 64, 7)
    made = QuantizedLinear.like(linear, bits=8, group=64, int8_activations=True, static=True)
    q, scale = quantize_groups(linear.weight, 8, 64)
    saved = copy.deepcopy(made.state_dict())

    def agrees():
        with torch.no_grad():
            return relative_error(made(x), made.from_stored(x)) < 4 * EPS

    with torch.no_grad():
        assert torch.equal(made(x), torch.zeros(3, 32))  # laid out while the weights are zeros
    made.put(q, scale, linear.bias)
    assert agrees()
    made.put_input_scale(0.5)
    assert agrees()
    made.load_state_dict(saved)
    with torch.no_grad():
        assert torch.equal(made(x), torch.zeros(3, 32))
    made.put(q, scale, linear.bias)
    made.double()
    assert agrees()
    made.amplify((made.scale * 2**20).round(), torch.full((32,), 2**20))
    assert agrees()


@needs_fbgemm
def test_copy_of_a_model_that_has_run_computes_the_same():
    model = tiny_llama()
    RTNConfig(group_size=16).build().quantize(model, [])
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.equal(copy.deepcopy(model)(tokens).logits, expected)


@needs_fbgemm
def test_a_token_has_the_same_bits_in_every_batch():
    q, scale = quantize_groups(normal(576, 576, 8), 8, 576)
    layer, x = PrepackedLinear(q, scale), normal(70, 576, 9)
    together = layer(x)
    assert all(torch.equal(layer(x[row : row + 1])[0], together[row]) for row in (0, 5, 69))


def test_a_machine_without_fbgemm_computes_the_same(monkeypatch):
    linear, x = nn.Linear(64, 32), normal(3, 64, 10)
    made = QuantizedLinear.like(linear, bits=4, group=32, int8_activations=True)
    made.put(*quantize_groups(linear.weight, 4, 32), linear.bias)
    with torch.no_grad():
        expected = made(x)
        monkeypatch.setattr("stackloom.plugins.quantizer.quantized_linear.available", lambda: False)
        assert relative_error(made(x), expected) < 4 * EPS


def test_probe_sees_sums_that_saturate(monkeypatch):
    def saturating(q):
        return lambda x: (x @ q.float().t()).clamp(-(2**15), 2**15 - 1)

    monkeypatch.setattr(prepacked, "_packed_product", saturating)
    assert prepacked.saturates.__wrapped__()
    monkeypatch.setattr(prepacked, "saturates", lambda: False)
    assert not prepacked.available.__wrapped__()
