"""`optimizer.muon`: the slot's laws, the routing, and what Newton-Schulz does to an update."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stackloom.core.errors import ArtifactError, FitError
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


def test_three_dimensional_experts_go_to_adamw():
    experts = [
        ("mlp.experts.gate_up_proj", nn.Parameter(torch.zeros(4, 6, 8))),
        ("mlp.gate.weight", nn.Parameter(torch.zeros(4, 8))),
    ]
    assert MuonConfig().build(experts).routes() == [
        ("mlp.experts.gate_up_proj", "adamw, decay 0.1"),
        ("mlp.gate.weight", "muon, decay 0.1"),
    ]


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


def test_matrices_are_torchs_muon_bit_by_bit_after_a_resume():
    def gradient(step):
        return torch.randn(6, 10, generator=torch.Generator().manual_seed(step))

    ours, theirs = nn.Parameter(gradient(9)), nn.Parameter(gradient(9))
    config, plain = MuonConfig(lr=0.1, adjust_lr_fn="original"), torch.optim.Muon([theirs], lr=0.1)
    optimizer = config.build([("layer.weight", ours)])
    for step in range(6):
        if step == 3:
            saved, optimizer = optimizer.state_dict(), config.build([("layer.weight", ours)])
            optimizer.load_state_dict(saved)
        ours.grad, theirs.grad = gradient(step), gradient(step)
        optimizer.step()
        plain.step()
    assert torch.equal(ours, theirs)


def test_state_of_other_rules_is_refused():
    saved = MuonConfig().build(tiny_parameters(tiny_shape())).state_dict()
    with pytest.raises(ArtifactError, match="belongs to other parameters"):
        MuonConfig(adamw_names=("*proj*",)).build(tiny_parameters(tiny_shape())).load_state_dict(saved)


def test_plain_momentum_in_bfloat16_is_refused_in_plan_and_build():
    config = MuonConfig(nesterov=False)
    assert not config.fit(TestMuon.context("bfloat16")).ok
    assert config.fit(TestMuon.context("float32")).ok
    with pytest.raises(FitError, match="corrupts the momentum"):
        config.build(tiny_parameters(tiny_shape(), torch.bfloat16))


def test_sharded_matrices_are_refused():
    context = TestMuon.context()
    assert MuonConfig().fit(context).ok
    answer = MuonConfig().fit(context.model_copy(update={"shard": "fsdp"}))
    assert not answer.ok
    assert "whole matrices" in answer.reason


def test_torch_still_corrupts_plain_momentum_in_bfloat16():
    """When this fails, torch is mended and the refusal can go."""
    weight = nn.Parameter(torch.zeros(4, 6, dtype=torch.bfloat16))
    weight.grad = torch.full((4, 6), 3.0, dtype=torch.bfloat16)
    plain = torch.optim.Muon([weight], momentum=0.0, nesterov=False)
    plain.step()
    assert not torch.equal(plain.state[weight]["momentum_buffer"], weight.grad)


def test_state_is_half_of_adamws_for_the_matrices():
    work = TestMuon.work("bfloat16")
    matrices = sum(rows * columns for _, rows, columns in tiny_shape().linears()) * tiny_shape().layers
    saved = AdamWConfig().cost(work).optimizer_bytes - MuonConfig().cost(work).optimizer_bytes
    assert saved == 2 * matrices


def test_an_adapters_parameters_count_as_matrices():
    assert MuonConfig().cost(TestMuon.work("float32", trainable=1000)).optimizer_bytes == 4000
