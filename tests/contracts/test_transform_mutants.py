"""Each law of transforms can fail: a component broken on purpose is caught by its law."""

import inspect
import logging
from typing import ClassVar

import pytest
import torch

from stackloom.core.slots.transform import Invariant, Rewrite
from stackloom.core.touch import Touch
from stackloom.plugins.transform.wisca.wisca import Wisca
from stackloom.testing import TransformContract

CAUGHT = (AssertionError, pytest.fail.Exception)


class OfWisca(TransformContract):
    plugin = "transform.wisca"
    options: ClassVar = {"min_change": 0.0}


def catches(mutant, law, tmp_path, dtype="float32", **config):
    """Assert that `law` fails for a component of class `mutant`, some of its config's methods replaced."""
    real = OfWisca.config

    def make(**changes):
        made = real(**changes)
        return type("MutantConfig", (type(made),), config)(**made.model_dump()) if config else made

    replaced = {"config": staticmethod(make), "component": staticmethod(lambda **changes: mutant(real(**changes)))}
    method = getattr(type("Mutant", (OfWisca,), replaced)(), law)
    given = {"tmp_path": tmp_path, "dtype": dtype}
    with pytest.raises(CAUGHT):
        method(**{name: given[name] for name in inspect.signature(method).parameters})


def after(change):
    """Return a WISCA that makes one more change."""

    class Mutant(Wisca):
        def apply(self, model, optimizers=()):
            found = super().apply(model, optimizers)
            with torch.no_grad():
                return change(self, model, found) or found

    return Mutant


ForgetsTheDividedSide = after(lambda self, model, found: (model.model.layers[0].self_attn.o_proj.weight.mul_(2), ())[1])
TouchesTheHead = after(lambda self, model, found: (model.lm_head.weight.mul_(1.01), ())[1])
DoesNothing = type("DoesNothing", (Wisca,), {"apply": lambda self, model, optimizers=(): [Rewrite("model", "all")]})
SkipsEverything = type(
    "SkipsEverything", (Wisca,), {"apply": lambda self, model, optimizers=(): [Rewrite("model", skipped="lazy")]}
)
SaysNothing = after(lambda self, model, found: [Rewrite(each.name) for each in found])
NamesNoModule = after(lambda self, model, found: [Rewrite("somewhere", "q x 2")])
Infinite = after(lambda self, model, found: [Rewrite("model", "all", before=float("inf"))])
Freezes = after(lambda self, model, found: (model.model.norm.requires_grad_(False), ())[1])
Widens = after(lambda self, model, found: (model.double(), ())[1])
LeavesNothing = after(lambda self, model, found: (model.model.norm.weight.mul_(float("nan")), ())[1])
SwitchesToTraining = after(lambda self, model, found: (model.train(), ())[1])
Draws = after(lambda self, model, found: (torch.rand(1), ())[1])


class Remembers(Wisca):
    """Scales more the second time."""

    def __init__(self, config):
        super().__init__(config)
        self.times = 0

    def due(self, step):
        return super().due(step + self.times)

    def apply(self, model, optimizers=()):
        self.times += 1
        found = super().apply(model, optimizers)
        with torch.no_grad():
            model.model.layers[0].self_attn.v_proj.weight.mul_(2.0**self.times)
            model.model.layers[0].self_attn.o_proj.weight.div_(2.0**self.times)
        return found


class TakesAnything(Wisca):
    def apply(self, model, optimizers=()):
        try:
            return super().apply(model, optimizers)
        except Exception as error:  # noqa: BLE001 - the mutation
            logging.info("%s", error)
            return []


class ChecksAsItGoes(Wisca):
    def apply(self, model, optimizers=()):
        with torch.no_grad():
            model.model.layers[0].self_attn.v_proj.weight.mul_(2)
            model.model.layers[0].self_attn.o_proj.weight.div_(2)
        return super().apply(model, optimizers)


class AddsABuffer(Wisca):
    def apply(self, model, optimizers=()):
        model.model.register_buffer("scales", torch.ones(3))
        return super().apply(model, optimizers)


class ForgetsTheOptimizer(Wisca):
    def apply(self, model, optimizers=()):
        return super().apply(model)


class SwapsParameters(Wisca):
    def apply(self, model, optimizers=()):
        layer = model.model.layers[0].self_attn.q_proj
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        return super().apply(model)


class ZeroesTheFirstMoment(Wisca):
    def apply(self, model, optimizers=()):
        found = super().apply(model, optimizers)
        for optimizer in optimizers:
            for state in optimizer.state.values():
                state["exp_avg"].zero_()
        return found


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (ForgetsTheDividedSide, "test_outputs_stay_within_the_bound"),
        (TouchesTheHead, "test_weights_change_where_touches_say_and_nowhere_else"),
        (DoesNothing, "test_weights_change_where_touches_say_and_nowhere_else"),
        (SkipsEverything, "test_rewrites_name_what_was_done"),
        (SaysNothing, "test_rewrites_name_what_was_done"),
        (NamesNoModule, "test_rewrites_name_what_was_done"),
        (Infinite, "test_rewrites_name_what_was_done"),
        (Remembers, "test_equal_models_are_rewritten_to_equal_bits"),
        (Remembers, "test_due_depends_on_the_step_alone"),
        (Freezes, "test_weights_stay_finite_trainable_and_of_their_dtype"),
        (Widens, "test_weights_stay_finite_trainable_and_of_their_dtype"),
        (LeavesNothing, "test_weights_stay_finite_trainable_and_of_their_dtype"),
        (SwitchesToTraining, "test_random_state_and_mode_stay"),
        (Draws, "test_random_state_and_mode_stay"),
        (TakesAnything, "test_foreign_layers_are_refused_and_nothing_has_changed"),
        (ChecksAsItGoes, "test_foreign_layers_are_refused_and_nothing_has_changed"),
        (AddsABuffer, "test_rewritten_model_loads_as_any_other"),
        (SwapsParameters, "test_training_goes_on_with_what_the_optimizer_remembers"),
        (ForgetsTheOptimizer, "test_optimizer_state_follows_the_weights"),
        (ZeroesTheFirstMoment, "test_optimizer_state_follows_the_weights"),
    ],
)
def test_broken_transform(mutant, law, tmp_path):
    catches(mutant, law, tmp_path)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        ({"invariant": lambda self, dtype, layers: Invariant("", 1e-5)}, "test_invariant_is_stated_with_a_bound"),
        (
            {"invariant": lambda self, dtype, layers: Invariant("all", float("inf"))},
            "test_invariant_is_stated_with_a_bound",
        ),
        ({"invariant": lambda self, dtype, layers: Invariant("all", 0.0)}, "test_outputs_stay_within_the_bound"),
        (
            {"touches": lambda self, ctx: [Touch(nodes=("model.layers.0",), mode="rewrite")]},
            "test_weights_change_where_touches_say_and_nowhere_else",
        ),
        (
            {"touches": lambda self, ctx: [Touch(nodes=("model", "lm_head"), mode="rewrite")]},
            "test_weights_change_where_touches_say_and_nowhere_else",
        ),
    ],
)
def test_transform_that_promises_otherwise_than_it_does(method, law, tmp_path):
    catches(Wisca, law, tmp_path, **method)


def test_version_counters_are_watched(tmp_path):
    class Untold(Wisca):
        def apply(self, model, optimizers=()):
            twin = type(model)(model.config)
            twin.load_state_dict(model.state_dict())
            found = super().apply(twin, optimizers)
            for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
                mine.data = theirs.data
            return found

    catches(Untold, "test_version_counters_of_changed_weights_rise", tmp_path)
