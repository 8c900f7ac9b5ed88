"""`optimizer.muon`: the slot's laws, the routing, and what Newton-Schulz does to an update."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.plugins.optimizer.adamw.config import AdamWConfig
from stackloom.plugins.optimizer.muon.config import MuonConfig
from stackloom.testing import OptimizerContract, tiny_parameters, tiny_shape


class TestMuon(OptimizerContract):
    plugin = "optimizer.muon"
    options: ClassVar = {"lr": 0.01}


def first_update(gradient, **options):
    """Return the change of a zero weight after one step at learning rate 1."""
    weight = nn.Parameter(torch.zeros_like(gradient))
    optimizer = MuonConfig(lr=1.0, **options).build([("layer.weight", weight)])
    weight.grad = gradient
    optimizer.step()
    return -weight.detach()


def test_matrices_go_to_muon_and_embeddings_head_and_vectors_to_adamw():
    routes = dict(MuonConfig().build(tiny_parameters(tiny_shape())).routes())
    muon = {name for name, rule in routes.items() if rule.startswith("muon")}
    assert muon == {
        f"model.layers.{layer}.{name}.weight" for layer in range(2) for name, _, _ in tiny_shape().linears()
    }
    assert routes["model.embed_tokens.weight"] == routes["lm_head.weight"] == "adamw, decay 0.1"
    assert routes["model.norm.weight"] == routes["model.layers.0.self_attn.q_proj.bias"] == "adamw, no decay"


def test_stacks_of_experts_are_matrices_and_other_three_dimensional_weights_are_not():
    weights = [
        ("mlp.experts.gate_up_proj", nn.Parameter(torch.zeros(4, 6, 8))),
        ("mlp.gate.weight", nn.Parameter(torch.zeros(4, 8))),
        ("conv.weight", nn.Parameter(torch.zeros(4, 6, 8))),
    ]
    assert MuonConfig().build(weights).routes() == [
        ("mlp.experts.gate_up_proj", "muon, decay 0.1"),
        ("mlp.gate.weight", "muon, decay 0.1"),
        ("conv.weight", "adamw, decay 0.1"),
    ]


def test_table_shows_every_route_and_the_totals():
    lines = MuonConfig().build(tiny_parameters(tiny_shape())).table().splitlines()
    assert len(lines) == len(tiny_parameters(tiny_shape())) + 3
    assert lines[0].split() == ["model.embed_tokens.weight", "97x24", "adamw,", "decay", "0.1"]
    totals = {rule: int(count) for count, rule in (line.split(" elements: ") for line in lines[-3:])}
    assert sum(totals.values()) == tiny_shape().parameters


def test_each_matrix_of_a_fused_weight_is_orthogonalised_alone():
    gradients = [torch.randn(rows, 12, generator=torch.Generator().manual_seed(rows)) for rows in (8, 4, 4)]
    alone = torch.cat([first_update(gradient, weight_decay=0.0) for gradient in gradients])
    fused = first_update(torch.cat(gradients), weight_decay=0.0, row_parts={"*layer*": (8, 4, 4)})
    torch.testing.assert_close(fused, alone, rtol=2**-7, atol=0)  # the scale is applied in bfloat16 here
    with pytest.raises(ConfigError, match="has 16 rows, its parts"):
        first_update(torch.cat(gradients), row_parts={"*layer*": (8, 4)})


@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_update_has_singular_values_near_one(rows, columns, seed):
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    scale = max(1, rows / columns) ** 0.5
    values = torch.linalg.svdvals(first_update(gradient, adjust_lr_fn="original")) / scale
    # Five steps bring a relative singular value s from 0.005 or so into [0.5, 1.3]; a smaller one grows by 3.4 a step.
    smallest = torch.linalg.svdvals(gradient) / gradient.norm()
    assert (values < 1.3).all()
    assert (values[smallest > 0.01] > 0.5).all()


@given(factor=st.sampled_from([1e-3, 0.1, 7.0, 1e4]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_update_does_not_depend_on_the_gradients_scale(factor, seed):
    gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(seed))
    one, two = first_update(gradient), first_update(gradient * factor)
    assert (one - two).norm() <= 0.05 * one.norm()  # bfloat16 rounds the normalised matrix to 8 bits


def test_match_rms_adamw_gives_updates_of_adamws_size():
    gradient = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    assert first_update(gradient, adjust_lr_fn="match_rms_adamw").square().mean().sqrt().item() == pytest.approx(
        0.2, rel=0.2
    )


def test_rest_is_adamw_bit_by_bit():
    results = []
    for config in (MuonConfig(lr=0.3, adamw_lr=0.01), AdamWConfig(lr=0.01)):
        named = [(name, parameter) for name, parameter in tiny_parameters(tiny_shape()) if parameter.ndim == 1]
        optimizer = config.build(named)
        for step in range(5):
            for _, parameter in named:
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        results.append([parameter.detach() for _, parameter in named])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_torchs_muon_within_its_bfloat16_noise_over_50_steps(adjust_lr_fn, nesterov):
    """The noise of torch's is its distance from the same run with exact products; ours is as close, to it and to it."""

    def gradient(step):
        return torch.randn(48, 64, generator=torch.Generator().manual_seed(step))

    def run(optimizer, weight):
        for step in range(50):
            weight.grad = gradient(step)
            optimizer.step()
        return weight.detach()

    theirs, ours, exact = (nn.Parameter(gradient(99)) for _ in range(3))
    run(torch.optim.Muon([theirs], lr=0.1, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn), theirs)
    options = {"lr": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    run(MuonConfig(**options).build([("layer.weight", ours)]), ours)
    run(MuonConfig(**options, ns_dtype="float32").build([("layer.weight", exact)]), exact)
    noise = (theirs - exact).norm()
    assert noise < 0.05 * (exact - gradient(99)).norm()
    assert (ours - exact).norm() <= 1.25 * noise
    assert (ours - theirs).norm() <= 2 * noise


def test_polar_express_comes_nearer_to_orthogonal_with_more_steps():
    gradient = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))

    def spread(steps):
        update = first_update(gradient, ns_coefficients="polar-express", ns_steps=steps, adjust_lr_fn="none")
        return (torch.linalg.svdvals(update) - 1).abs().max()

    assert spread(5) < 0.2
    assert spread(9) < 0.02  # four bfloat16 roundings


def test_own_coefficients_are_used():
    """One linear polynomial: the update is the normalised gradient, doubled."""
    gradient = torch.eye(4)
    update = first_update(gradient, ns_coefficients=(2.0, 0.0, 0.0), ns_steps=1, adjust_lr_fn="none")
    torch.testing.assert_close(update, gradient)


def test_forms_agree():
    gradient = torch.randn(12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direct, gram = (first_update(gradient, ns_form=form) for form in ("direct", "gram"))
    torch.testing.assert_close(direct, gram, rtol=1e-12, atol=1e-12)


def test_resume_is_exact_with_a_bfloat16_momentum():
    config = MuonConfig(lr=0.1, momentum_dtype="bfloat16")

    def run(first, last, weight, saved=None):
        optimizer = config.build([("layer.weight", weight)])
        if saved:
            optimizer.load_state_dict(saved)
        for step in range(first, last):
            weight.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return optimizer.state_dict()

    whole, halves = nn.Parameter(torch.ones(6, 10)), nn.Parameter(torch.ones(6, 10))
    run(0, 6, whole)
    saved = run(0, 3, halves)
    assert run(3, 6, halves, saved)["state"][0]["momentum_buffer"].dtype == torch.bfloat16
    assert torch.equal(whole, halves)


def test_state_of_other_rules_is_refused():
    saved = MuonConfig().build(tiny_parameters(tiny_shape())).state_dict()
    with pytest.raises(ArtifactError, match="belongs to other parameters"):
        MuonConfig(adamw_names=("*proj*", "*embed*", "*lm_head*")).build(tiny_parameters(tiny_shape())).load_state_dict(
            saved
        )


def test_plain_momentum_in_bfloat16_stays_the_gradients_average():
    """torch 2.13 normalises the buffer in place there."""
    weight = nn.Parameter(torch.zeros(4, 6, dtype=torch.bfloat16))
    optimizer = MuonConfig(momentum=0.0, nesterov=False).build([("layer.weight", weight)])
    weight.grad = torch.full((4, 6), 3.0, dtype=torch.bfloat16)
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], weight.grad)


def test_sharded_matrices_fit_and_the_plan_says_how():
    context = TestMuon.context()
    sharded = context.model_copy(update={"shard": "fsdp"})
    assert MuonConfig().fit(context).ok
    assert "sent to one worker and back" in MuonConfig().fit(sharded).reason
    assert "gathered on every worker" in MuonConfig(sharded="gather").fit(sharded).reason


def test_state_is_half_of_adamws_for_the_matrices():
    work = TestMuon.work("bfloat16")
    matrices = sum(rows * columns for _, rows, columns in tiny_shape().linears()) * tiny_shape().layers
    saved = AdamWConfig().cost(work).optimizer_bytes - MuonConfig().cost(work).optimizer_bytes
    assert saved == 2 * matrices


def test_experts_are_counted_as_matrices():
    shape = tiny_shape(experts=4, experts_per_token=2)
    work = TestMuon.work("float32", model=shape)
    matrices = sum(rows * cols * (4 if name.startswith("mlp.") else 1) for name, rows, cols in shape.linears())
    matrices = shape.layers * (matrices + 4 * shape.hidden)
    assert MuonConfig().cost(work).optimizer_bytes == 8 * shape.parameters - 4 * matrices


def test_an_adapters_parameters_count_as_matrices():
    assert MuonConfig().cost(TestMuon.work("float32", trainable=1000)).optimizer_bytes == 4000
