"""Projections of the engine: what quantized layers compute, laid out side by side."""

import pytest
import torch
from torch import nn

from stackloom.engine.decoder import Decoder
from stackloom.engine.linear import Dequantized, Integer, Rounded, project
from stackloom.plugins.quantizer import prepacked
from stackloom.plugins.quantizer.grid import quantize_groups
from stackloom.plugins.quantizer.quantized_linear import QuantizedLinear
from stackloom.plugins.quantizer.rtn.config import RTNConfig
from stackloom.testing import relative_error, tiny_llama

from .tiny_models import fed, filled

EPS = torch.finfo(torch.float32).eps
COLUMNS = 64
needs_fbgemm = pytest.mark.skipif(not prepacked.available(), reason="fbgemm is not built for this CPU")


def layer(rows, seed, *, bits=8, group=COLUMNS, activations=True, bias=False, grid=0.0, alpha=0):
    draw = torch.Generator().manual_seed(seed)
    linear = nn.Linear(COLUMNS, rows, bias=bias)
    linear.weight.data.normal_(generator=draw)
    made = QuantizedLinear.like(linear, bits=bits, group=group, int8_activations=activations, static=grid > 0)
    made.put(*quantize_groups(linear.weight, bits, group), linear.bias)
    if grid:
        made.put_input_scale(grid)
    if alpha:
        made.amplify((made.scale * alpha).round(), torch.full((rows,), alpha))
    return made


@needs_fbgemm
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, Integer),
        ({"bits": 4}, Integer),
        ({"grid": 0.02}, Integer),
        ({"bits": 4, "group": 16}, Rounded),
        ({"bits": 4, "group": 16, "grid": 0.02, "alpha": 2**14}, Rounded),
        ({"bits": 4, "group": 16, "activations": False}, Dequantized),
        ({"bias": True}, Integer),
        ({"bits": 4, "group": 16, "bias": True}, Rounded),
    ],
)
def test_quantized_layers_of_one_input_become_one(options, kind, tokens):
    layers = [layer(40, 0, **options), layer(24, 1, **options)]
    projection = project(layers)
    assert type(projection) is kind
    x = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert relative_error(projection(x), torch.cat([each(x) for each in layers], dim=1)) < 8 * EPS
        assert project(layers)(x.bfloat16()).dtype == torch.bfloat16


@needs_fbgemm
@pytest.mark.parametrize("other", [{"bits": 4, "group": 16}, {"grid": 0.02}, {"activations": False}, {"alpha": 2**14}])
def test_layers_that_differ_are_called_one_by_one(other):
    layers = [layer(40, 0), layer(24, 1, **other)]
    x = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(project(layers)(x), torch.cat([each(x) for each in layers], dim=1))


@pytest.mark.parametrize(
    "options", [{}, {"scheme": "w4a8", "group_size": "channel"}, {"scheme": "w4a8"}, {"scheme": "w4a16"}]
)
def test_engine_computes_what_the_quantized_model_computes(options):
    model = tiny_llama().eval()
    RTNConfig(**{"group_size": 16, **options}).build().quantize(model, [])
    decoder = Decoder(model, max_batch=2, deterministic=False)
    prompts = [[1, 2, 3, 4, 5], [9, 8, 7]]
    with torch.inference_mode():
        found = torch.cat([filled(decoder, prompts), fed(decoder, [6, 6])])
        rows = [*prompts, *([*prompt, 6] for prompt in prompts)]
        expected = torch.stack([model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])
    assert relative_error(found, expected) < 1e-5
