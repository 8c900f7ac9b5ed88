"""Int4 layers by the W4A8 kernels: what `QuantizedLinear` computes."""

import pytest
import torch
from torch import nn

from stackloom.plugins.quantizer.grid import quantize_groups
from stackloom.plugins.quantizer.kernel_linear import KernelLinear, suits
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.testing import relative_error


def layer(group, *, amplified=False, grid=0.0, bias=True):
    draw = torch.Generator().manual_seed(group)
    linear = nn.Linear(128, 40, bias=bias)
    linear.weight.data.normal_(generator=draw)
    made = QuantizedLinear.like(linear, bits=4, group=group, int8_activations=True, static=grid > 0)
    made.put(*quantize_groups(linear.weight, 4, group), linear.bias)
    if grid:
        made.put_input_scale(grid)
    if amplified:
        made.amplify((made.scale * 1024).round(), torch.full((40,), 1024))
    return made


def by_kernels(made, implementation):
    bias = None if made.bias is None else made.bias.detach().float()
    return KernelLinear(made.integers(), made.scale, made.amplifier, bias, made.input_grid, implementation)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("options", [{}, {"amplified": True}, {"grid": 0.02}, {"bias": False}])
@pytest.mark.parametrize("group", [32, 128])
def test_kernels_compute_what_the_layer_computes(group, options, implementation):
    made = layer(group, **options)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    x[3, 4] = torch.nan
    with torch.no_grad():
        found, expected = by_kernels(made, implementation)(x), made.from_stored(x)
    assert found[3].isnan().all()
    rows = [0, 1, 2, 4]
    assert relative_error(found[rows], expected[rows]) < 1e-6
    assert by_kernels(made, implementation)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bits", "group", "fits"), [(4, 576, True), (4, 64, True), (4, 96, True), (4, 48, False), (8, 576, False)]
)
def test_format_of_the_kernels_is_int4_in_whole_rows_or_multiples_of_32(bits, group, fits):
    assert suits(bits, group, 576) == fits
