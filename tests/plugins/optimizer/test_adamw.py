"""`optimizer.adamw`: the slot's laws, and who decays."""

from typing import ClassVar

import pytest
import torch

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.plugins.optimizer.adamw.config import AdamWConfig
from stackloom.testing import OptimizerContract, tiny_parameters, tiny_shape


class TestAdamW(OptimizerContract):
    plugin = "optimizer.adamw"
    options: ClassVar = {"lr": 0.01}


def decaying(config):
    return {name for name, rule in config.build(tiny_parameters(tiny_shape())).routes() if rule == "adamw, decay 0.1"}


def two_dimensional():
    return {name for name, parameter in tiny_parameters(tiny_shape()) if parameter.ndim == 2}


def test_biases_and_norms_do_not_decay():
    assert decaying(AdamWConfig()) == two_dimensional()


def test_embeddings_can_be_left_out_of_the_decay():
    assert decaying(AdamWConfig(decay_embeddings=False)) == two_dimensional() - {"model.embed_tokens.weight"}


def test_everything_can_decay():
    assert decaying(AdamWConfig(decay_vectors=True)) == {name for name, _ in tiny_parameters(tiny_shape())}


def test_decay_shrinks_a_weight_without_gradient_by_lr_times_decay():
    named = tiny_parameters(tiny_shape(), torch.float64)
    before = {name: parameter.detach().clone() for name, parameter in named}
    optimizer = AdamWConfig(lr=0.5, weight_decay=0.2).build(named)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in named:
        torch.testing.assert_close(parameter.detach(), before[name] * (0.9 if parameter.ndim == 2 else 1))


@pytest.mark.parametrize("implementation", ["for-loop", "foreach", "fused"])
def test_implementations_agree(implementation):
    results = []
    for choice in ("auto", implementation):
        named = tiny_parameters(tiny_shape(), torch.float64)
        optimizer = AdamWConfig(lr=0.1, implementation=choice).build(named)
        for step in range(5):
            for _, parameter in named:
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64
                )
            optimizer.step()
        results.append([parameter.detach() for _, parameter in named])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_frozen_parameters_are_routed_as_frozen():
    named = tiny_parameters(tiny_shape())
    named[0][1].requires_grad_(False)
    assert AdamWConfig().build(named).routes()[0] == ("model.embed_tokens.weight", "frozen")


def test_all_frozen_is_refused():
    named = tiny_parameters(tiny_shape())
    for _, parameter in named:
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        AdamWConfig().build(named)


def test_state_of_other_parameters_is_refused_although_the_shapes_agree():
    named = tiny_parameters(tiny_shape())
    saved = AdamWConfig().build(named).state_dict()
    renamed = [(name.replace("layers.0", "layers.9"), parameter) for name, parameter in named]
    with pytest.raises(ArtifactError, match="belongs to other parameters"):
        AdamWConfig().build(renamed).load_state_dict(saved)
