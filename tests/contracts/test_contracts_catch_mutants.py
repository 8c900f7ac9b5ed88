"""Each law can fail: a plugin broken on purpose is caught by the law that is there for it."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stackloom.core.cache import Buffer, CacheSpec
from stackloom.core.cost import Cost
from stackloom.core.errors import StackloomError
from stackloom.core.fit import Fit
from stackloom.core.slots.data import Example
from stackloom.testing import (
    AttentionContract,
    DataContract,
    ModelContract,
    OptimizerContract,
    contract_for,
    record,
    tiny_tokenizer,
)

CAUGHT = (AssertionError, pytest.fail.Exception)


def catches(contract, law, *arguments):
    """Assert that `law` of the class `contract` fails."""
    with pytest.raises(CAUGHT):
        getattr(contract(), law)(*arguments)


def component(base, build, **attributes):
    """Return `base` for a plugin whose component is what `build(*dependencies, **changes)` makes."""
    plugin = {
        OptimizerContract: "optimizer.adamw",
        AttentionContract: "attention.full",
        DataContract: "data.jsonl",
        ModelContract: "model.hf",
    }[base]
    return type("Mutant", (base,), {"plugin": plugin, "component": staticmethod(build)} | attributes)


def config_class(contract, **methods):
    """Return `contract` with some of the config's methods replaced."""
    real = contract.config

    def config(**changes):
        made = real(**changes)
        return type("MutantConfig", (type(made),), methods)(**made.model_dump())

    return type("Mutant", (contract,), {"config": staticmethod(config), "component": staticmethod(contract.component)})


def manifest(contract, **changes):
    """Return `contract` with a manifest that says something else; `can` changes a part of its table."""
    real = contract.record()
    if "can" in changes:
        changes["can"] = real.manifest.can.model_copy(update=changes["can"])
    lying = type(real)(
        manifest=real.manifest.model_copy(update=changes),
        distribution=real.distribution,
        version=real.version,
        package=real.package,
        folder=real.folder,
    )
    return type("Mutant", (contract,), {"record": staticmethod(lambda: lying)})


AdamW = contract_for("optimizer.adamw", lr=0.01)
Full = contract_for("attention.full")


# --- every slot -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "change"),
    [
        ("test_manifest_is_of_this_slots_version", {"slot_api": "optimizer/99"}),
        ("test_features_are_the_slots", {"can": {"features": ("rollback",)}}),
        ("test_dtypes_are_known", {"can": {"dtypes": ("float33",)}}),
        ("test_dtypes_are_known", {"can": {"dtypes": ()}}),
        ("test_matrix_feature_is_true", {"can": {"features": ("matrix",)}}),
    ],
)
def test_untrue_manifest(law, change):
    catches(manifest(AdamW, **change), law)


def test_component_that_is_no_callable():
    catches(
        type("Mutant", (AdamW,), {"config": staticmethod(lambda: SimpleNamespace(component_class=lambda: 3))}),
        "test_component_is_there",
    )


def test_cache_features_that_are_not_there():
    catches(manifest(Full, can={"features": ("state", "pages")}), "test_cache_features_are_true")
    catches(manifest(Full, can={"features": ()}), "test_cache_features_are_true")


def test_planning_that_draws_or_remembers():
    calls = []
    catches(
        config_class(AdamW, cost=lambda self, work: Cost(flops=random.random())), "test_planning_is_pure", "float32"
    )
    catches(
        config_class(AdamW, cost=lambda self, work: Cost(flops=len(calls.append(1) or calls))),
        "test_planning_is_pure",
        "float32",
    )
    catches(config_class(AdamW, fit=lambda self, ctx: True), "test_planning_is_pure", "float32")


def test_misfit_in_a_declared_dtype():
    catches(config_class(AdamW, fit=lambda self, ctx: Fit.no("never")), "test_fits_where_its_manifest_says", "float32")


def test_config_that_imports_torch(tmp_path, monkeypatch):
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "config.py").write_text(
        "import torch\nfrom stackloom.plugins.optimizer.adamw.config import AdamWConfig\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    real = AdamW.record()
    heavy = type(real)(manifest=real.manifest, distribution="heavy", version="1", package="heavy", folder=package)
    catches(
        type("Mutant", (AdamW,), {"record": staticmethod(lambda: heavy), "config": staticmethod(AdamW.config)}),
        "test_planning_imports_no_torch",
    )


def test_config_that_takes_anything():
    from stackloom.plugins.optimizer.adamw.config import AdamWConfig

    lax = type("Mutant", (AdamW,), {"config": staticmethod(lambda **changes: AdamWConfig.model_construct(**changes))})
    catches(lax, "test_unknown_option_is_refused")
    catches(lax, "test_nan_and_infinity_are_refused")


# --- optimizer --------------------------------------------------------------------------------------------------------


class Momentum(torch.optim.Optimizer):
    """A correct optimizer whose parts the mutants break."""

    def __init__(self, named):
        self.named = list(named)
        super().__init__([parameter for _, parameter in self.named], {"lr": 0.05})

    def routes(self):
        return [(name, "momentum") for name, _ in self.named]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group["lr"])

    def update(self, parameter, gradient, lr):
        buffer = self.state[parameter].setdefault("buffer", torch.zeros_like(parameter))
        parameter.sub_(buffer.mul_(0.9).add_(gradient), alpha=lr)


class ForgetsItsState(Momentum):
    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": {}})


class KeepsStateOutside(Momentum):
    def update(self, parameter, gradient, lr):
        self.count = getattr(self, "count", 0) + 1
        super().update(parameter, gradient, lr / self.count)


class IgnoresTheGroupsRate(Momentum):
    def update(self, parameter, gradient, lr):
        super().update(parameter, gradient, 0.05)


class Climbs(Momentum):
    def update(self, parameter, gradient, lr):
        super().update(parameter, -gradient, lr)


class MovesWithoutGradient(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.99)
        super().step()


class SwallowsNaN(Momentum):
    def update(self, parameter, gradient, lr):
        super().update(parameter, gradient.nan_to_num(), lr)


class ForgetsAParameter(Momentum):
    def __init__(self, named):
        named = list(named)
        super().__init__(named[:-1])

    def routes(self):
        return super().routes()[:-1]


class WidensParameters(Momentum):
    def update(self, parameter, gradient, lr):
        super().update(parameter, gradient, lr)
        parameter.data = parameter.data.float()


class Draws(Momentum):
    def update(self, parameter, gradient, lr):
        super().update(parameter, gradient * torch.rand(()), lr)


class NeedsAClosure(Momentum):
    def step(self, closure=None):
        closure()


class ReadsMemoryOrder(Momentum):
    def update(self, parameter, gradient, lr):
        flat = gradient.as_strided((gradient.numel(),), (1,)).view(gradient.shape)
        super().update(parameter, flat, lr)


class NeedsMatrices(Momentum):
    def update(self, parameter, gradient, lr):
        super().update(parameter, gradient if gradient.ndim < 3 else gradient * 0, lr)


class TakesNothing(Momentum):
    def __init__(self, named):
        named = list(named)
        super().__init__(named or [("none", nn.Parameter(torch.zeros(1)))])


def one_buffer(self, work):
    return Cost(optimizer_bytes=work.trainable * work.element_bytes)


LAWS_OF_OPTIMIZERS = [
    name for name in dir(OptimizerContract) if name.startswith("test_") and name not in dir(AttentionContract)
]
TAKE_DTYPE = {
    "test_state_bytes_are_what_cost_says",
    "test_computes_in_the_parameters_dtype",
    "test_resumes_bit_exactly",
}


def optimizer_contract(mutant, cost=one_buffer):
    return component(
        OptimizerContract,
        mutant,
        config=staticmethod(lambda **changes: SimpleNamespace(cost=lambda work: cost(None, work))),
    )


@pytest.mark.parametrize("law", LAWS_OF_OPTIMIZERS)
def test_correct_optimizer_passes(law):
    getattr(optimizer_contract(Momentum)(), law)(*(["bfloat16"] if law in TAKE_DTYPE else []))


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (ForgetsItsState, "test_resumes_bit_exactly"),
        (KeepsStateOutside, "test_resumes_bit_exactly"),
        (IgnoresTheGroupsRate, "test_learning_rate_of_the_groups_is_obeyed"),
        (Climbs, "test_loss_falls_on_a_convex_problem"),
        (MovesWithoutGradient, "test_parameter_without_gradient_stays"),
        (MovesWithoutGradient, "test_frozen_parameter_stays"),
        (SwallowsNaN, "test_nan_gradient_does_not_vanish"),
        (ForgetsAParameter, "test_routes_name_every_parameter_once"),
        (ForgetsAParameter, "test_every_trainable_parameter_is_in_one_group_with_a_learning_rate"),
        (WidensParameters, "test_computes_in_the_parameters_dtype"),
        (Draws, "test_is_as_deterministic_as_claimed"),
        (NeedsAClosure, "test_step_needs_no_closure"),
        (ReadsMemoryOrder, "test_layout_of_the_gradient_does_not_matter"),
        (NeedsMatrices, "test_odd_sizes"),
        (TakesNothing, "test_nothing_to_train_is_refused"),
    ],
)
def test_broken_optimizer(mutant, law):
    try:
        catches(optimizer_contract(mutant), law, *(["bfloat16"] if law in TAKE_DTYPE else []))
    except TypeError as refusal:  # NeedsAClosure calls None
        assert mutant is NeedsAClosure, refusal


@pytest.mark.parametrize("factor", [0.5, 2])
def test_optimizer_cost_off_by_two(factor):
    wrong = optimizer_contract(
        Momentum, lambda self, work: Cost(optimizer_bytes=factor * work.trainable * work.element_bytes)
    )
    catches(wrong, "test_state_bytes_are_what_cost_says", "float32")


# --- attention --------------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """A correct mixer with pages and state, whose parts the mutants break: the mean of all tokens so far."""

    cache_spec = CacheSpec(pages={"x": Buffer(shape=(24,))}, state={"sum": Buffer(shape=(24,))})

    def __init__(self, layer):
        super().__init__()
        self.proj = nn.Linear(layer.hidden, layer.hidden, bias=False)

    def forward(self, x_BTD):
        return self.proj(x_BTD.cumsum(1) / torch.arange(1, x_BTD.shape[1] + 1)[:, None].to(x_BTD))

    def prefill(self, x_BTD, view):
        sums = view.state("sum")[:, None] + x_BTD.cumsum(1)
        counts = view.lengths_B[:, None, None] + torch.arange(1, x_BTD.shape[1] + 1)[:, None]
        view.append(x_BTD.shape[1], x=x_BTD)
        view.write(sum=sums[:, -1])
        return self.proj(sums / counts.to(x_BTD))

    def step(self, x_BD, view):
        return self.prefill(x_BD[:, None], view)[:, 0]


class SeesTheFuture(Mean):
    def forward(self, x_BTD):
        return super().forward(x_BTD + 0.01 * x_BTD.roll(-1, 1))


class SeesOnlyThePast(Mean):
    def forward(self, x_BTD):
        return super().forward(torch.cat((torch.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]), 1))


class ReadsPastTheLengths(Mean):
    def prefill(self, x_BTD, view):
        mixed = super().prefill(x_BTD, view)
        return mixed + 0 * view.read("x").sum((1, 2))[:, None, None]


class TakesOneLengthForAll(Mean):
    def prefill(self, x_BTD, view):
        counts = view.lengths_B.max() + torch.arange(1, x_BTD.shape[1] + 1)[None, :, None]
        right = view.lengths_B[:, None, None] + torch.arange(1, x_BTD.shape[1] + 1)[None, :, None]
        return super().prefill(x_BTD, view) * (right / counts).to(x_BTD)


class KeepsStateToItself(Mean):
    def prefill(self, x_BTD, view):
        self.last = x_BTD[:, -1] if not hasattr(self, "last") or self.last.shape != x_BTD[:, -1].shape else self.last
        return super().prefill(x_BTD, view) + 0.01 * self.last[:, None]


class DropsState(Mean):
    def step(self, x_BD, view):
        mixed = super().step(x_BD, view)
        view.write(sum=view.state("sum") * 0.5)
        return mixed


class Rounds(Mean):
    def forward(self, x_BTD):
        return super().forward(x_BTD).float()

    def prefill(self, x_BTD, view):
        return super().prefill(x_BTD, view).float()


class MixesTheBatch(Mean):
    def forward(self, x_BTD):
        return super().forward(x_BTD) + 0.01 * x_BTD.mean(0).cumsum(0)


class WrongBackward(Mean):
    def forward(self, x_BTD):
        mixed = super().forward(x_BTD)
        return (
            mixed + 0.1 * (mixed.detach() - mixed) + 0.1 * (mixed - mixed.detach()) * 0
            if not torch.is_grad_enabled()
            else mixed * 1.0 + (0.2 * mixed - 0.2 * mixed.detach())
        )


class SavesHalf(Mean):
    def __init__(self, layer):
        super().__init__(layer)
        self.scale = torch.randn(())

    def forward(self, x_BTD):
        return super().forward(x_BTD) * self.scale


class DropsOut(Mean):
    def forward(self, x_BTD):
        return nn.functional.dropout(super().forward(x_BTD), 0.1)


class TakesAnyWidth(Mean):
    def forward(self, x_BTD):
        return super().forward(x_BTD[..., :24])


def mean_cost(self, work):
    parameters = work.model.layers * work.model.hidden**2
    per_layer = work.sequences * work.model.hidden * (work.sequence_length + 1) * work.element_bytes
    return Cost(
        parameters=parameters, weight_bytes=parameters * work.element_bytes, cache_bytes=work.model.layers * per_layer
    )


def attention_contract(mutant, cost=mean_cost):
    config = staticmethod(lambda **changes: SimpleNamespace(cost=lambda work: cost(None, work)))
    base = component(AttentionContract, mutant, config=config)
    return manifest(base, can={"features": ("pages", "state", "gqa")})


LAWS_OF_ATTENTION = [
    name for name in dir(AttentionContract) if name.startswith("test_") and name not in dir(OptimizerContract)
]
ARGUMENT = {
    "test_cache_bytes_are_what_cost_says": "float32",
    "test_computes_in_the_inputs_dtype": "float32",
    "test_prefill_of_any_split_is_forward": 63,
    "test_output_depends_on_the_past_and_the_present_alone": 63,
}


def argument(law, tmp_path):
    if law == "test_saved_weights_come_back_bit_exactly":
        return [tmp_path]
    return [ARGUMENT[law]] if law in ARGUMENT else []


@pytest.mark.parametrize("law", LAWS_OF_ATTENTION)
def test_correct_mixer_passes(law, tmp_path):
    getattr(attention_contract(Mean)(), law)(*argument(law, tmp_path))


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (SeesTheFuture, "test_output_depends_on_the_past_and_the_present_alone"),
        (SeesTheFuture, "test_steps_are_forward"),
        (SeesOnlyThePast, "test_output_depends_on_the_past_and_the_present_alone"),
        (ReadsPastTheLengths, "test_sequences_of_different_lengths_in_one_view_are_each_alone"),
        (TakesOneLengthForAll, "test_sequences_of_different_lengths_in_one_view_are_each_alone"),
        (KeepsStateToItself, "test_prefill_of_any_split_is_forward"),
        (KeepsStateToItself, "test_rollback_of_any_n_leaves_no_trace"),
        (DropsState, "test_steps_are_forward"),
        (DropsState, "test_steps_after_a_prefill_are_forward"),
        (Rounds, "test_computes_in_the_inputs_dtype"),
        (MixesTheBatch, "test_sequences_of_a_batch_do_not_mix"),
        (WrongBackward, "test_gradients_are_the_slope"),
        (SavesHalf, "test_saved_weights_come_back_bit_exactly"),
        (DropsOut, "test_is_as_deterministic_as_claimed"),
        (TakesAnyWidth, "test_input_of_another_width_is_refused"),
    ],
)
def test_broken_mixer(mutant, law, tmp_path):
    given = "bfloat16" if mutant is Rounds else None
    catches(attention_contract(mutant), law, *([given] if given else argument(law, tmp_path)))


@pytest.mark.parametrize("law", ["test_parameters_are_what_cost_says", "test_cache_bytes_are_what_cost_says"])
def test_attention_cost_off_by_two(law, tmp_path):
    def doubled(self, work):
        cost = mean_cost(self, work)
        return cost + cost

    catches(attention_contract(Mean, doubled), law, *argument(law, tmp_path))


# --- data -------------------------------------------------------------------------------------------------------------


class Words:
    """A correct data set of two texts, whose parts the mutants break."""

    texts = ("one two", "three")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        tokens = self.tokenizer.encode(self.texts[index], add_special_tokens=False)
        return Example(tokens, [True] * len(tokens))

    def problems(self):
        return ()


class MasksAShiftedSpan(Words):
    def __getitem__(self, index):
        tokens, mask = super().__getitem__(index)
        return Example(tokens, [False, *mask[1:]])


class MasksTooLittle(Words):
    def __getitem__(self, index):
        tokens, mask = super().__getitem__(index)
        return Example(tokens, mask[:-1])


class MasksOnlyTheFirstToken(Words):
    def __getitem__(self, index):
        tokens, mask = super().__getitem__(index)
        return Example(tokens, [True] + [False] * (len(mask) - 1))


class Shuffles(Words):
    def __getitem__(self, index):
        return super().__getitem__(random.randrange(2)) if index < 2 else super().__getitem__(index)


class RemembersTheLastOne(Words):
    def __getitem__(self, index):
        self.calls = getattr(self, "calls", 0) + 1
        tokens, mask = super().__getitem__(index)
        return Example([*tokens, self.calls % 7], [*mask, True])


class WrapsAround(Words):
    def __getitem__(self, index):
        return super().__getitem__(index % 2)


class SharesItsLists(Words):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.held = [super(SharesItsLists, self).__getitem__(index) for index in range(2)]

    def __getitem__(self, index):
        return self.held[index]


class NamesUnknownTokens(Words):
    def __getitem__(self, index):
        return Example([10**6, 1], [True, True])


class ReportsNothings(Words):
    def problems(self):
        return ("",)


def data_contract(mutant):
    return component(DataContract, mutant, trained=Words.texts, bad_options=classmethod(lambda cls, folder: [{}]))


@pytest.mark.parametrize(
    "law", [name for name in dir(DataContract) if name.startswith("test_") and name not in dir(OptimizerContract)]
)
def test_correct_data_passes(law, tmp_path):
    if law != "test_bad_files_are_refused_by_a_typed_error":
        getattr(data_contract(Words)(), law)()


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (MasksAShiftedSpan, "test_mask_lies_on_what_the_model_should_write"),
        (MasksTooLittle, "test_examples_are_tokens_with_a_mask_of_their_length"),
        (MasksOnlyTheFirstToken, "test_every_example_trains_something"),
        (Shuffles, "test_global_random_state_is_left_alone"),
        (RemembersTheLastOne, "test_examples_are_the_same_in_any_order_and_in_every_run"),
        (WrapsAround, "test_index_past_the_end_is_an_index_error"),
        (SharesItsLists, "test_an_example_is_the_callers_own"),
        (NamesUnknownTokens, "test_examples_are_tokens_with_a_mask_of_their_length"),
        (ReportsNothings, "test_problems_are_sentences"),
    ],
)
def test_broken_data(mutant, law):
    catches(data_contract(mutant), law)


def test_data_that_swallows_a_bad_file(tmp_path):
    catches(
        component(
            DataContract,
            lambda tokenizer, **changes: Words(tokenizer),
            bad_options=classmethod(lambda cls, folder: [{"path": "x"}]),
        ),
        "test_bad_files_are_refused_by_a_typed_error",
        tmp_path,
    )


# --- model ------------------------------------------------------------------------------------------------------------


class SmallLlama(ModelContract):
    plugin = "model.hf"

    @classmethod
    def files(cls, folder: Path):
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=260,
                max_position_embeddings=64,
                tie_word_embeddings=False,
            )
        ).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return {"checkpoint": str(folder)}


def model_contract(change):
    """Return the contract of a model that `change(model)` breaks after loading."""

    def component(**changes):
        real = SmallLlama.config(**changes).build()

        def load(**where):
            model = real.load(**where)
            return change(model) or model

        return SimpleNamespace(load=load, tokenizer=real.tokenizer)

    return type("Mutant", (SmallLlama,), {"component": staticmethod(component)})


def wrapped_layer(change):
    """Break the first layer's output: `change(x)` of (B, T, D)."""

    def apply(model):
        model.model.layers[0].register_forward_hook(lambda module, arguments, output: change(output))

    return apply


def draw_weights(model):
    nn.init.normal_(model.lm_head.weight)


def extra_weight(model):
    model.register_parameter("extra", nn.Parameter(torch.zeros(3)))


@pytest.mark.parametrize(
    ("change", "law", "arguments"),
    [
        (extra_weight, "test_parameters_are_what_shape_and_cost_say", ["float32"]),
        (lambda model: model.float(), "test_loads_in_the_dtype_and_in_eval_mode", ["bfloat16"]),
        (lambda model: model.train(), "test_loads_in_the_dtype_and_in_eval_mode", ["float32"]),
        (wrapped_layer(lambda x: x + x.roll(-1, 1)), "test_logits_depend_on_the_past_alone", [63]),
        (wrapped_layer(lambda x: x * x.shape[1]), "test_generation_with_a_cache_is_generation_without", []),
        (draw_weights, "test_two_loads_are_bit_equal", []),
        (
            lambda model: model.model.embed_tokens.register_forward_hook(lambda m, a, output: output.detach()),
            "test_gradients_reach_every_parameter",
            [],
        ),
        (lambda model: setattr(model.config, "num_hidden_layers", 5), "test_shape_is_the_loaded_models", []),
    ],
)
def test_broken_model(change, law, arguments):
    catches(model_contract(lambda model: setattr(model, "changed", change(model))), law, *arguments)


def test_model_that_saves_other_weights(tmp_path):
    def rescaled(model):
        model.register_forward_pre_hook(
            lambda module, arguments: setattr(module.lm_head.weight, "data", module.lm_head.weight.data * 1.5)
        )

    catches(model_contract(rescaled), "test_saved_model_comes_back_bit_exactly", tmp_path)


def test_tokenizer_of_another_model():
    def component(**changes):
        return SimpleNamespace(
            tokenizer=lambda: SimpleNamespace(encode=lambda text, **_: [10**6], decode=lambda tokens: "Hello, world")
        )

    catches(
        type("Mutant", (SmallLlama,), {"component": staticmethod(component)}), "test_tokenizer_belongs_to_the_model"
    )


def test_model_cost_off_by_two():
    def doubled(self, work):
        return Cost(parameters=2 * work.model.parameters)

    catches(config_class(SmallLlama, cost=doubled), "test_parameters_are_what_shape_and_cost_say", "float32")


def test_attention_feature_that_is_not_there():
    catches(manifest(SmallLlama, can={"features": ()}), "test_attention_feature_is_true")


def test_contract_for_finds_the_contract_of_the_slot():
    assert issubclass(contract_for("data.jsonl"), DataContract)
    assert record("data.jsonl").manifest.slot == "data"
    with pytest.raises(StackloomError, match="has no contract"):
        contract_for("nonsense.plugin")
