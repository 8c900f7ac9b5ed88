"""The gated-delta mixers: the slot's laws, the layer's reductions, long decodes, rollbacks, bad input."""

from typing import ClassVar

import pytest
import torch

from stackloom.core.cache import SNAPSHOT_EVERY
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.attention import LayerShape
from stackloom.engine.cache import DenseView
from stackloom.plugins.attention.fg2_gdn.config import FG2GDNConfig
from stackloom.plugins.attention.gdn.config import GDNConfig
from stackloom.plugins.attention.kda.config import KDAConfig
from stackloom.testing import AttentionContract, relative_error, tiny_shape

EPS = torch.finfo(torch.float64).eps
LAYER = LayerShape(hidden=24, heads=4, kv_heads=2, head_dim=6)


class TestGDN(AttentionContract):
    plugin = "attention.gdn"
    rounding = 4096.0  # a state that all tokens pass through, inverted 64 at a time


class TestKDA(AttentionContract):
    plugin = "attention.kda"
    rounding = 4096.0


class TestFG2GDN(AttentionContract):
    plugin = "attention.fg2-gdn"
    rounding = 4096.0


class TestFG2GDNPlus(AttentionContract):
    plugin = "attention.fg2-gdn"
    options: ClassVar = {"variant": "plus", "expand_v": 1.5, "beta_rank": 4, "value_scale": "linear"}
    rounding = 4096.0


def mixer(config, **changes):
    torch.manual_seed(0)
    return config.build(LAYER.model_copy(update=changes)).double()


def view_of(module, batch=2):
    return DenseView(module.cache_spec, batch, dtype=torch.float64, capacity=1, poison=True)


@pytest.mark.parametrize("variant", ["shared", "plus"])
def test_converted_from_kda_it_is_that_kda_layer(variant):
    kda, ours = mixer(KDAConfig()), mixer(FG2GDNConfig(variant=variant))
    x_BTD = torch.randn(2, 70, 24, dtype=torch.float64)
    assert relative_error(ours(x_BTD), kda(x_BTD)) > 1e-3
    ours.convert(kda)
    assert relative_error(ours(x_BTD), kda(x_BTD)) < 64 * EPS


def test_init_kda_starts_with_equal_step_sizes_within_a_head():
    ours = mixer(FG2GDNConfig(variant="plus", init="kda"))
    kda = mixer(KDAConfig())
    kda.load_state_dict(
        {name: value for name, value in ours.state_dict().items() if "beta" not in name}
        | {"beta.weight": ours.beta.weight.unflatten(0, (4, 6))[:, 0]}
    )
    x_BTD = torch.randn(2, 20, 24, dtype=torch.float64)
    assert relative_error(ours(x_BTD), kda(x_BTD)) < 64 * EPS


def test_a_layer_that_differs_elsewhere_is_not_converted():
    with pytest.raises(ConfigError, match="they differ in"):
        mixer(FG2GDNConfig()).convert(mixer(GDNConfig()))
    with pytest.raises(ConfigError, match="no scalars"):
        mixer(FG2GDNConfig()).convert(mixer(FG2GDNConfig()))


def test_grouped_keys_and_values_are_repeated():
    grouped, full = mixer(KDAConfig()), mixer(KDAConfig(), kv_heads=4)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].view(2, 6, -1).repeat_interleave(2, dim=0).flatten(0, 1)
    q, k, v = state["conv_CW"].split([24, 12, 12])
    state["conv_CW"] = torch.cat((q, *(x.view(2, 6, -1).repeat_interleave(2, dim=0).flatten(0, 1) for x in (k, v))))
    full.load_state_dict(state)
    x_BTD = torch.randn(2, 17, 24, dtype=torch.float64)
    assert relative_error(grouped(x_BTD), full(x_BTD)) < 64 * EPS


def test_the_state_does_not_grow():
    module = mixer(FG2GDNConfig())
    view = view_of(module)
    with torch.no_grad():
        module.prefill(torch.randn(2, 5, 24, dtype=torch.float64), view)
        before = view.used_bytes
        module.prefill(torch.randn(2, 500, 24, dtype=torch.float64), view)
    assert view.used_bytes == before


@pytest.mark.parametrize("config", [GDNConfig(), FG2GDNConfig(variant="plus")], ids=["gdn", "fg2-gdn-plus"])
def test_rollback_of_any_n_up_to_64_restores_the_state_bit_by_bit(config):
    """Snapshots every 16 steps and replay, as the engine does it."""
    module, start, ahead = mixer(config), 10, 64
    x_BTD = torch.randn(2, start + ahead, 24, dtype=torch.float64)
    view, states = view_of(module), {}
    with torch.no_grad():
        module.prefill(x_BTD[:, :start], view)
        view.snapshot()
        states[start] = view.state("recurrent").clone(), view.state("tail").clone()
        for place in range(start, start + ahead):
            module.step(x_BTD[:, place], view)
            states[place + 1] = view.state("recurrent").clone(), view.state("tail").clone()
            if (place + 1 - start) % SNAPSHOT_EVERY == 0:
                view.snapshot()
        for n in range(ahead + 1):
            back, kept = view.copy(), start + ahead - n
            for place in range(kept - back.rollback(n), kept):
                module.step(x_BTD[:, place], back)
            assert torch.equal(back.state("recurrent"), states[kept][0]), n
            assert torch.equal(back.state("tail"), states[kept][1]), n


@pytest.mark.slow
@pytest.mark.parametrize("config", [GDNConfig(), KDAConfig(), FG2GDNConfig(variant="plus")])
def test_2000_decoded_tokens_after_a_prefill_of_500_are_one_prefill_of_2500(config):
    module = mixer(config).float()
    x_BTD = torch.randn(1, 2500, 24)
    view, whole = (DenseView(module.cache_spec, 1, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        expected = module.prefill(x_BTD, whole)
        parts = [module.prefill(x_BTD[:, :500], view)]
        parts += [module.step(x_BTD[:, place], view)[:, None] for place in range(500, 2500)]
    assert relative_error(torch.cat(parts, 1), expected) < 64 * torch.finfo(torch.float32).eps
    assert relative_error(view.state("recurrent"), whole.state("recurrent")) < 64 * torch.finfo(torch.float32).eps


def test_a_shared_vector_with_other_value_widths_is_refused_in_plan_and_build():
    config = FG2GDNConfig(expand_v=2.0)
    context = TestFG2GDN.context().model_copy(update={"model": tiny_shape()})
    assert [fit.ok for fit in config.fit(context)] == [False]
    with pytest.raises(FitError, match="equal widths, got 6 and 12"):
        mixer(config)
    assert mixer(FG2GDNConfig(expand_v=2.0, variant="plus"))(torch.zeros(1, 3, 24, dtype=torch.float64)).shape[1] == 3


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (KDAConfig(), {"kv_heads": 3}, "no multiple of kv_heads 3"),
        (KDAConfig(), {"head_dim": 300}, "at most 256 channels"),
        (GDNConfig(expand_v=1.1), {}, "no whole number of channels"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(config, changes, says):
    with pytest.raises(FitError, match=says):
        mixer(config, **changes)


@pytest.mark.parametrize(
    "options", [{"value_scale": "linear"}, {"init": "kda", "beta_rank": 4}, {"lower_bound": -9.0}, {"conv_size": 1}]
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValueError, match=r"value_scale|init|lower_bound|conv_size"):
        FG2GDNConfig(**options)


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="without empty dimensions"):
        mixer(KDAConfig())(torch.zeros(1, 0, 24, dtype=torch.float64))


@pytest.mark.parametrize("config", [GDNConfig(), FG2GDNConfig(variant="plus", conv_size=3)])
def test_sequences_packed_into_a_row_are_each_alone(config):
    module, lengths = mixer(config), (5, 1, 70, 2)
    x_1TD = torch.randn(1, sum(lengths), 24, dtype=torch.float64)
    alone = torch.cat([module(part) for part in x_1TD.split(lengths, dim=1)], dim=1)
    assert relative_error(module.packed(x_1TD, torch.tensor([0, 5, 6, 76])), alone) < 64 * EPS


def test_gradients_are_the_slope_to_second_order_with_step_sizes_up_to_two():
    """A central difference errs by the square of its step: a third of the step, a ninth of the error."""
    module = mixer(FG2GDNConfig(variant="plus", expand_v=1.5, beta_rank=3, allow_neg_eigval=True))
    x_BTD, weights = torch.randn(2, 2, 20, 24, dtype=torch.float64)
    leaves = list(module.parameters())
    directions = [torch.randn_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad((module(x_BTD) * weights).sum(), leaves)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))

    def error(step):
        values = []
        for along in (step, -2 * step, step):
            with torch.no_grad():
                for leaf, direction in zip(leaves, directions, strict=True):
                    leaf += along * direction
                values.append((module(x_BTD) * weights).sum())
        return ((values[0] - values[1]) / (2 * step) - slope).item()

    assert error(3e-5) / error(1e-5) == pytest.approx(9, rel=0.05)
