"""`adapter.lora`: the slot's laws, exact folds, planning, and files that go to PEFT and come from it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from stackloom.core.errors import ArtifactError, ConfigError, FitError
from stackloom.plugins.adapter.lora.config import LoRAConfig
from stackloom.plugins.adapter.low_rank import LowRankLinear, wrapped
from stackloom.testing import AdapterContract, llama_shape, relative_error, tiny_llama

EPS = torch.finfo(torch.float32).eps
ATTENTION = ("q_proj", "v_proj")


class TestLoRA(AdapterContract):
    plugin = "adapter.lora"


class TestRSLoRAWithDropoutOnSomeLayers(AdapterContract):
    plugin = "adapter.lora"
    options: ClassVar = {
        "rank": 3,
        "alpha": 6.5,
        "rslora": True,
        "dropout": 0.1,
        "init": "gaussian",
        "targets": ["layers.1.self_attn.*_proj", "lm_head"],
    }


def tokens(seed=0, length=17):
    return torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, seed=0):
    return model(tokens(seed), use_cache=False).logits


def drawn(model, seed=1):
    """Give every matrix values, B included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def injected(base=None, **options):
    model = base or tiny_llama()
    adapter = LoRAConfig(**options).build()
    adapter.inject(model, seed=0)
    drawn(model)
    return adapter, model


# --- the maths --------------------------------------------------------------------------------------------------------


@given(
    rank=st.integers(1, 9),
    alpha=st.floats(0.1, 64),
    rslora=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_fold_is_within_half_a_unit_in_the_last_place_of_the_exact_sum(rank, alpha, rslora, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    base = nn.Linear(11, 7, dtype=dtype)
    base.weight.data.copy_(torch.randn(7, 11, generator=draw))
    config = LoRAConfig(rank=rank, alpha=alpha, rslora=rslora)
    layer = LowRankLinear(base, rank=rank, scaling=config.scaling, dropout=0.0, dtype=torch.float32)
    layer.draw("kaiming", draw)
    layer.lora_B.weight.data.copy_(torch.randn(7, rank, generator=draw))
    exact = base.weight.double() + config.scaling * (layer.lora_B.weight.double() @ layer.lora_A.weight.double())
    half_unit = (
        torch.finfo(dtype).eps / 2 * 2 ** exact.abs().log2().floor().clamp_min(math.log2(torch.finfo(dtype).tiny))
    )
    assert ((layer.folded().double() - exact).abs() <= half_unit * (1 + 1e-6)).all()


def test_scaling_is_alpha_over_rank_or_its_root():
    assert LoRAConfig(rank=16, alpha=8).scaling == 0.5
    assert LoRAConfig(rank=16, alpha=8, rslora=True).scaling == 2.0


def test_layer_computes_the_formula():
    draw = torch.Generator().manual_seed(0)
    layer = LowRankLinear(nn.Linear(11, 7), rank=3, scaling=1.5, dropout=0.0, dtype=torch.float32)
    layer.draw("gaussian", draw)
    layer.lora_B.weight.data.normal_(generator=draw)
    x = torch.randn(5, 11, generator=draw)
    branch = x.double() @ layer.lora_A.weight.double().T @ layer.lora_B.weight.double().T
    expected = x.double() @ layer.weight.double().T + layer.bias.double() + 1.5 * branch
    assert relative_error(layer(x), expected) < 4 * EPS * 11**0.5


@pytest.mark.parametrize(("init", "deviation"), [("kaiming", 1 / math.sqrt(3 * 400)), ("gaussian", 1 / 50)])
def test_starts_have_the_stated_spread(init, deviation):
    layer = LowRankLinear(nn.Linear(400, 7), rank=50, scaling=1.0, dropout=0.0, dtype=torch.float32)
    layer.draw(init, torch.Generator().manual_seed(0))
    drawn_A = layer.lora_A.weight
    assert drawn_A.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * drawn_A.numel()))
    assert abs(drawn_A.mean().item()) < 5 * deviation / math.sqrt(drawn_A.numel())
    assert init == "gaussian" or drawn_A.abs().max() <= 1 / math.sqrt(400)
    assert not layer.lora_B.weight.any()


def test_dropout_falls_on_the_branch_in_training_alone():
    _, model = injected(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_other_targets_and_dtypes_do_not_move_a_layers_draw():
    draws = []
    for dtype, targets in (
        (torch.float32, ATTENTION),
        (torch.bfloat16, ("v_proj",)),
        (torch.float64, ("v_proj", "up_proj")),
    ):
        model = tiny_llama(dtype=dtype)
        LoRAConfig(targets=targets).build().inject(model, seed=3)
        draws.append(model.model.layers[1].self_attn.v_proj.lora_A.weight.detach().float())
        others = [
            layer.lora_A.weight for path, layer in wrapped(model).items() if path != "model.layers.1.self_attn.v_proj"
        ]
        assert not any(torch.equal(draws[-1], other.float()) for other in others)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_matrices_are_float32_under_bfloat16_unless_asked():
    kinds = {}
    for dtype in ("float32", "model"):
        _, model = injected(tiny_llama(dtype=torch.bfloat16), dtype=dtype)
        kinds[dtype] = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        assert logits(model).dtype == torch.bfloat16
    assert kinds == {"float32": {torch.float32}, "model": {torch.bfloat16}}


def test_float16_matrices_are_refused_in_the_plan():
    for dtype, ok in (("float16", False), ("bfloat16", True)):
        assert all(fit.ok for fit in LoRAConfig(dtype="model").fit(TestLoRA.context(dtype))) == ok
    assert all(fit.ok for fit in LoRAConfig().fit(TestLoRA.context("float16")))


def test_small_updates_survive_accumulation_in_bfloat16():
    """256 micro-batch gradients of one size: bfloat16 stops counting at 256 of its last place, float32 does not."""
    _, model = injected(tiny_llama(dtype=torch.bfloat16), targets=("q_proj",))
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.ones(1, layer.in_features, dtype=torch.bfloat16)
    for _ in range(1000):
        torch.autograd.backward(layer(x).sum())
    once = torch.autograd.grad(layer(x).sum(), layer.lora_B.weight)[0]
    assert relative_error(layer.lora_B.weight.grad, 1000 * once) < 1000 * EPS


def test_compiled_training_steps_do_not_recompile():
    adapter, model = injected(dropout=0.1)
    model.train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    graphs = []
    for step in range(4):
        adapter.on_step(step, 4)
        torch.autograd.backward(compiled(tokens(step), labels=tokens(step), use_cache=False).loss)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad, alpha=0.01)
                parameter.grad = None
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] > 0
    assert len(set(graphs)) == 1


def test_compiled_outputs_are_the_eager_ones():
    _, model = injected()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert relative_error(logits(compiled), logits(model)) < 100 * EPS
    torch._dynamo.reset()


def test_requires_grad_comes_back_as_it_was():
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapter, _ = injected(model)
    adapter.merge(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_fold_that_overflows_changes_nothing():
    adapter, model = injected(tiny_llama(dtype=torch.float16))
    list(wrapped(model).values())[-1].lora_B.weight.data.fill_(1e6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FitError, match=r"model\.layers\.1\.mlp\.down_proj is not finite in torch\.float16"):
        adapter.merge(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "tied", "message"),
    [
        (("q_prj",), False, "names no module; linear layers of the model: down_proj"),
        (("embed_tokens",), False, "an embedding"),
        (("*",), False, "an embedding"),
        (("lm_head",), True, "whose weight is also model.embed_tokens.weight"),
        (("self_attn",), False, "a LlamaAttention and no torch.nn.Linear"),
        (("q_proj", "norm"), False, "a LlamaRMSNorm"),
    ],
)
def test_target_that_cannot_be_wrapped_is_refused_and_nothing_changes(targets, tied, message):
    model = tiny_llama(llama_shape(tied=tied))
    with pytest.raises(FitError, match=message):
        LoRAConfig(targets=targets).build().inject(model, seed=0)
    assert not wrapped(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("targets", "tied", "message"),
    [
        (("q_prj",), False, "names no linear layer; there are down_proj"),
        (("embed_tokens",), False, "names the embedding"),
        (("lm_head",), True, "shares the embedding's weight"),
    ],
)
def test_plan_refuses_the_same_targets(targets, tied, message):
    context = TestLoRA.context().model_copy(update={"model": llama_shape(tied=tied)})
    (answer,) = LoRAConfig(targets=targets).fit(context)
    assert not answer.ok
    assert message in answer.reason


def test_rank_above_a_targets_sides_is_a_warning():
    (answer,) = LoRAConfig(rank=17).fit(TestLoRA.context())
    assert (answer.ok, answer.severity) == (True, "warning")
    assert "exceeds the smallest side 16" in answer.reason
    assert LoRAConfig(rank=16).fit(TestLoRA.context())[0].severity == "info"


def test_quantized_layers_are_refused_by_their_kind():
    class Int8Linear(nn.Linear):
        pass

    model = tiny_llama()
    for layer in model.model.layers:
        layer.self_attn.q_proj = Int8Linear(32, 32)
    with pytest.raises(FitError, match="a Int8Linear and no"):
        LoRAConfig(targets=("q_proj",)).build().inject(model, seed=0)


def test_head_of_its_own_can_be_a_target_and_is_counted():
    config = LoRAConfig(rank=2, targets=("lm_head", "layers.0.mlp.up_proj"))
    _, model = injected(rank=2, targets=config.targets)
    assert set(wrapped(model)) == {"model.layers.0.mlp.up_proj", "lm_head"}
    assert config.cost(TestLoRA.work()).parameters == 2 * (97 + 32) + 2 * (48 + 32)
    (touch,) = config.touches(TestLoRA.context())
    assert touch.nodes == ("lm_head", "model.layers.[0].mlp.up_proj")


def test_routed_experts_are_no_targets():
    context = TestLoRA.context().model_copy(update={"model": llama_shape(experts=4, experts_per_token=2)})
    assert not LoRAConfig(targets=("up_proj",)).fit(context)[0].ok
    assert all(fit.ok for fit in LoRAConfig(targets=ATTENTION).fit(context))


def test_options_without_sense_are_refused():
    for options in ({"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"targets": []}, {"init": "pissa"}):
        with pytest.raises(ConfigError):
            TestLoRA.config(**options)


# --- PEFT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 4, "alpha": 10.0, "rslora": True, "targets": ATTENTION},
        {"rank": 2, "alpha": 3.5, "targets": ("layers.1.mlp.down_proj", "lm_head"), "init": "gaussian"},
    ],
    ids=["default", "rslora", "paths"],
)
def test_peft_loads_our_file_with_equal_logits(tmp_path, options):
    adapter, model = injected(**options)
    adapter.save(model, tmp_path, "base")
    theirs = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    ours = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum("lora_" in name for name, _ in theirs.named_parameters()) == len(ours)
    assert torch.equal(logits(theirs), logits(model))
    assert relative_error(logits(theirs), logits(tiny_llama())) > 0.01
    adapter.merge(model)
    assert relative_error(logits(theirs.merge_and_unload()), logits(model)) < 50 * EPS


@pytest.mark.parametrize("start", [True, "gaussian"])
@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_pefts_file_with_equal_logits(tmp_path, start, rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=list(ATTENTION),
        init_lora_weights=start,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(tiny_llama(), config).eval()
    drawn(theirs)
    theirs.save_pretrained(tmp_path)
    model, adapter = tiny_llama(), LoRAConfig(rank=4, alpha=6, rslora=rslora, targets=ATTENTION).build()
    adapter.inject(model, seed=0)
    adapter.load(model, tmp_path)
    assert torch.equal(logits(model), logits(theirs))
    assert relative_error(logits(model), logits(tiny_llama())) > 0.01


def test_bfloat16_file_goes_into_float32_matrices(tmp_path):
    adapter, model = injected(targets=ATTENTION)
    adapter.save(model, tmp_path, "base")
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    adapter.load(model, tmp_path)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.lora_A.weight.dtype == torch.float32
    assert torch.equal(layer.lora_A.weight, layer.lora_A.weight.bfloat16().float())


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop(KEY), f"tensor {KEY} is missing"),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(8, 32)}),
            "lm_head.* no place",
        ),
        (lambda tensors: tensors.update({KEY: tensors[KEY].t().contiguous()}), rf"tensor {KEY} is \(32, 8\)"),
        (lambda tensors: tensors.update({KEY: tensors[KEY] * math.nan}), f"tensor {KEY} is not finite"),
        (lambda tensors: tensors.update({KEY: tensors[KEY].to(torch.int8)}), f"tensor {KEY} is torch.int8"),
        (lambda tensors: tensors.clear(), "is missing"),
    ],
    ids=["missing", "unknown", "shape", "nan", "integer", "empty"],
)
def test_wrong_tensor_is_named_and_nothing_changes(tmp_path, damage, message):
    adapter, model = injected()
    adapter.save(model, tmp_path, "base")
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    drawn(model, seed=7)
    before = logits(model)
    with pytest.raises(ArtifactError, match=message):
        adapter.load(model, tmp_path)
    assert torch.equal(logits(model), before)


def test_tensor_that_is_there_twice_is_named(tmp_path):
    adapter, model = injected()
    adapter.save(model, tmp_path, "base")
    path = tmp_path / "adapter_model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].decode()
    entry = json.dumps({KEY: json.loads(header)[KEY]}, separators=(",", ":"))[1:-1]
    header = header.rstrip()[:-1] + "," + entry + "}"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + content[8 + size :])
    with pytest.raises(ArtifactError, match=f"tensor {KEY} is there twice"):
        adapter.load(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 4}, "r is 4, the injected adapter has 8"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": 8}, "lora_alpha is 8, the injected adapter has 16"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"init_lora_weights": "pissa"}, "also changed the base"),
        ({"a_field_of_the_future": 1}, "a_field_of_the_future is 1, which is not supported"),
        ({"peft_type": "IA3"}, "no LoRA: peft_type is 'IA3'"),
    ],
)
def test_config_that_computes_otherwise_is_refused_by_field(tmp_path, change, message):
    adapter, model = injected()
    adapter.save(model, tmp_path, "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        adapter.load(model, tmp_path)


def test_config_without_rank_means_pefts_default(tmp_path):
    adapter, model = injected(alpha=8.0)
    adapter.save(model, tmp_path, "base")
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: fields[name] for name in fields if name not in ("r", "lora_alpha", "use_rslora")})
    )
    adapter.load(model, tmp_path)
    other, model = injected(rank=4)
    with pytest.raises(ArtifactError, match="r is 8"):
        other.load(model, tmp_path)


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_are_an_artifact_error(tmp_path_factory, content):
    adapter, model = SHARED.made
    folder = SHARED.folder(tmp_path_factory)
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError):
        adapter.load(model, folder)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        adapter.load(model, folder)


class _Shared(SimpleNamespace):
    """One injected model for all examples of a property."""

    def folder(self, factory) -> Path:
        adapter, model = self.made
        path = factory.mktemp("fuzz")
        adapter.save(model, path, "base")
        return path


SHARED = _Shared(made=injected(targets=("q_proj",)))


def test_matrix_that_is_not_finite_is_not_saved(tmp_path):
    adapter, model = injected()
    model.model.layers[0].mlp.up_proj.lora_B.weight.data[0, 0] = math.inf
    with pytest.raises(FitError, match=r"model\.layers\.0\.mlp\.up_proj\.lora_B\.weight is not finite"):
        adapter.save(model, tmp_path, "base")
