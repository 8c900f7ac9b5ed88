"""`adapter.afa-lora`: the slot's laws, and the invariants of the paper's page (its section 6), by number."""

import copy
import itertools
import json
import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import stackloom as sl
from stackloom.core.errors import ArtifactError, ConfigError, FitError
from stackloom.kernels.afa_lora import ACTIVATIONS, blend
from stackloom.plugins.adapter.afa_lora.config import AfaLoRAConfig
from stackloom.plugins.adapter.afa_lora.layer import AfaLinear
from stackloom.plugins.adapter.afa_lora.schedule import Schedule
from stackloom.plugins.adapter.lora.config import LoRAConfig
from stackloom.plugins.adapter.low_rank import wrapped
from stackloom.testing import AdapterContract, llama_shape, relative_error, tiny_llama

EPS = torch.finfo(torch.float32).eps


class TestAfaLoRA(AdapterContract):
    plugin = "adapter.afa-lora"


class TestAfaLoRAWithSiLUCosineAndDropout(AdapterContract):
    plugin = "adapter.afa-lora"
    options: ClassVar = {
        "rank": 3,
        "activation": "silu",
        "schedule": "cosine",
        "rho": 0.5,
        "rslora": True,
        "dropout": 0.1,
        "targets": ["layers.1.self_attn.*_proj", "mlp.*_proj"],
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


def injected(beta=None, base=None, **options):
    """Return (adapter, model) with values in every matrix; `beta` is set as a schedule would."""
    model = base or tiny_llama()
    adapter = AfaLoRAConfig(**options).build()
    adapter.inject(model, seed=0)
    drawn(model)
    if beta is not None:
        adapter._set(beta)
    return adapter, model


def layer(beta, activation="relu", dtype=torch.float64, *, rank=3, features=(11, 7)):
    draw = torch.Generator().manual_seed(0)
    base = nn.Linear(*features, dtype=dtype)
    base.weight.data.copy_(torch.randn(base.weight.shape, generator=draw))
    made = AfaLinear(
        base,
        beta=torch.tensor(beta, dtype=torch.float32),
        activation=activation,
        implementation="auto",
        rank=rank,
        scaling=1.5,
        dropout=0.0,
        dtype=dtype,
    )
    made.draw("kaiming", draw)
    made.lora_B.weight.data.copy_(torch.randn(made.lora_B.weight.shape, generator=draw))
    made.started, made.linear = True, beta == 0
    return made


def inputs(*shape, dtype=torch.float64, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(model, seed=0):
    model.zero_grad()
    model(tokens(seed), labels=tokens(seed), use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- 1: beta 0 is LoRA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_1_at_beta_0_outputs_and_gradients_are_loras_bit_by_bit(activation, dtype):
    _, ours = injected(0.0, tiny_llama(dtype=dtype), activation=activation)
    lora = tiny_llama(dtype=dtype)
    LoRAConfig().build().inject(lora, seed=0)
    drawn(lora)
    assert torch.equal(logits(ours), logits(lora))
    left, right = gradients(ours), gradients(lora)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_1_the_saved_files_are_loras_byte_by_byte(tmp_path):
    adapter, model = injected(0.0)
    lora, twin = LoRAConfig().build(), tiny_llama()
    lora.inject(twin, seed=0)
    drawn(twin)
    adapter.save(model, tmp_path / "afa", "base")
    lora.save(twin, tmp_path / "lora", "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "afa" / name).read_bytes() == (tmp_path / "lora" / name).read_bytes()
    history = json.loads((tmp_path / "afa" / "afa.json").read_text())
    assert history == {"activation": "relu", "schedule": "linear", "rho": 0.3, "hold": 0.0, "final_beta": 0.0}


def test_1_peft_loads_the_file_with_equal_logits(tmp_path):
    adapter, model = injected(0.0, targets=("q_proj", "v_proj", "down_proj"))
    adapter.save(model, tmp_path, "base")
    theirs = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert relative_error(logits(theirs), logits(model)) < 1e-6
    adapter.merge(model)
    assert relative_error(logits(theirs.merge_and_unload()), logits(model)) < 50 * EPS


def test_1_loras_file_becomes_a_linear_adapter(tmp_path):
    lora, model = LoRAConfig().build(), tiny_llama()
    lora.inject(model, seed=0)
    drawn(model)
    lora.save(model, tmp_path, "base")
    adapter, twin = AfaLoRAConfig().build(), tiny_llama()
    adapter.inject(twin, seed=5)
    adapter.load(twin, tmp_path)
    assert adapter.beta == 0
    assert torch.equal(logits(twin), logits(model))


def test_training_with_beta_0_throughout_is_training_lora():
    """Ten steps of Adam: the parameters end with the same bits."""
    ends = []
    for config in (AfaLoRAConfig(rho=0.0, activation="silu"), LoRAConfig()):
        model, adapter = tiny_llama(), config.build()
        adapter.inject(model, seed=0)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        model.train()
        for step in range(10):
            adapter.on_step(step, 10)
            optimizer.zero_grad()
            model(tokens(step), labels=tokens(step), use_cache=False).loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


# --- 2 to 4: the maths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_2_before_the_first_update_the_outputs_are_the_bases(activation, beta):
    model, adapter = tiny_llama(), AfaLoRAConfig(activation=activation).build()
    adapter.inject(model, seed=0)
    adapter._set(beta)
    assert torch.equal(logits(model), logits(tiny_llama()))


@given(beta=st.floats(0, 1, width=32), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_3_relus_blend_is_a_leaky_relu(beta, seed):
    z = inputs(5, 9, seed=seed)
    exact = torch.nn.functional.leaky_relu(z, 1 - beta)
    assert (blend(z, torch.tensor(beta, dtype=torch.float64), "relu") - exact).abs().max() <= 1e-15
    one = blend(torch.tensor([2.0, -2.0], dtype=torch.float64), torch.tensor(beta, dtype=torch.float64), "relu")
    assert one.tolist() == [2.0, pytest.approx(-2 * (1 - beta), abs=1e-15)]


def test_3_at_beta_1_it_is_b_relu_a_x():
    made, x = layer(1.0), inputs(5, 11)
    branch = torch.relu(x @ made.lora_A.weight.T) @ made.lora_B.weight.T
    expected = made.base_layer(x) + 1.5 * branch
    torch.testing.assert_close(made(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_4_gradients_are_the_derivative(activation, beta):
    made, x = layer(beta, activation), inputs(5, 11).requires_grad_()
    assert (x.detach() @ made.lora_A.weight.T).abs().min() > 1e-4  # away from ReLU's kink
    leaves = (x, made.lora_A.weight, made.lora_B.weight)
    assert torch.autograd.gradcheck(lambda *_: made(x), leaves)


@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh"])
def test_slope_at_zero_is_what_the_page_says(activation):
    """phi'(0) = 1 - beta / 2 for SiLU and GELU, 1 for tanh."""
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    blend(z, torch.tensor(0.5), activation).sum().backward()
    assert z.grad.item() == pytest.approx(1.0 if activation == "tanh" else 0.75, abs=1e-15)


# --- 5: merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_5_the_residual_is_within_its_bound_and_linear_in_beta(activation):
    x, seen = inputs(50, 11), []
    for beta in (0.25, 0.5, 1.0):
        made = layer(beta, activation)
        z = x @ made.lora_A.weight.T
        bent = blend(z, torch.tensor(1.0), activation)
        norm = torch.linalg.matrix_norm(made.lora_B.weight.detach(), ord=2)
        bound = beta * 1.5 * norm * (bent - z).norm(dim=-1)
        left_out = made.residual(x)
        assert (left_out.norm(dim=-1) <= bound * (1 + 1e-12)).all()
        folded = x @ made.folded().T + made.bias
        torch.testing.assert_close(made(x) - folded, left_out, rtol=1e-11, atol=1e-11)
        seen.append(left_out / beta)
    torch.testing.assert_close(seen[0], seen[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[1], seen[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda adapter, model, folder: adapter.merge(model),
        lambda adapter, model, folder: adapter.save(model, folder, "base"),
        lambda adapter, model, folder: adapter.rollout_weights(model),
    ],
    ids=["merge", "save", "rollout"],
)
def test_5_above_beta_0_nothing_linear_leaves_the_adapter(tmp_path, attempt):
    adapter, model = injected(0.25)
    before = logits(model)
    with pytest.raises(FitError, match=r"beta is 0\.25.*not linear[\s\S]*train until beta is 0"):
        attempt(adapter, model, tmp_path)
    assert torch.equal(logits(model), before)
    adapter._set(0.0)
    attempt(adapter, model, tmp_path)


def test_5_a_forced_merge_says_what_it_leaves_out():
    adapter, model = injected(0.5)
    expected = adapter.residuals(model, lambda m: logits(m))
    found = adapter.merge_with_residual(model, lambda m: logits(m))
    assert found == expected
    assert len(found) == 14
    assert all(0 < value < 1 for value in found.values())
    assert not wrapped(model)


def test_5_at_beta_0_there_is_no_residual_and_unseen_layers_are_named():
    adapter, model = injected(0.0)
    assert set(adapter.residuals(model, lambda m: logits(m)).values()) == {0.0}
    with pytest.raises(FitError, match="saw no input"):
        adapter.residuals(model, lambda m: None)


def test_5_merge_then_subtraction_restores_the_weights():
    adapter, model = injected(0.0)
    layers, base = dict(wrapped(model)), tiny_llama()
    added = {path: 2.0 * (each.lora_B.weight.double() @ each.lora_A.weight.double()) for path, each in layers.items()}
    adapter.merge(model)
    for path, product in added.items():
        left = model.get_submodule(path).weight.double() - product
        assert relative_error(left, base.get_submodule(path).weight) < 2 * EPS


# --- 6: the schedule --------------------------------------------------------------------------------------------------

SCHEDULES = {
    "linear": {},
    "linear, held": {"hold": 0.2, "rho": 0.5},
    "cosine": {"schedule": "cosine", "rho": 1.0},
    "patient": {"schedule": "warmup_cosine_patient"},
    "exponential": {"schedule": "exponential", "cutoff_step": 25},
}


def betas(steps, **options):
    schedule = AfaLoRAConfig(**options).schedule_of_beta
    return [schedule.beta(step, steps) for step in range(steps)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 60, 1000])
def test_6_beta_falls_from_one_to_exactly_zero_and_stays(name, steps):
    values = betas(steps, **SCHEDULES[name])
    assert values[-1] == 0.0
    assert all(0 <= value <= 1 for value in values)
    top = values.index(max(values))
    assert all(later <= earlier for earlier, later in itertools.pairwise(values[top:]))
    assert all(value == 0.0 for value in values[AfaLoRAConfig(**SCHEDULES[name]).schedule_of_beta.span(steps)[1] :])
    if steps >= 10 and name != "patient":
        assert values[0] == 1.0


def test_6_the_shapes_are_the_pages_formulas():
    assert betas(10, rho=0.4) == [1.0, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0]
    assert betas(10, rho=0.2, hold=0.3) == [1.0, 1.0, 1.0, 1.0, 0.5, 0, 0, 0, 0, 0]
    assert betas(10, rho=0.4, schedule="cosine")[1] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    patient = betas(100, schedule="warmup_cosine_patient", warmup=0.02)
    assert patient[:3] == [0.0, 0.5, 1.0]
    assert patient[79] > 0
    assert patient[80:] == [0.0] * 20
    assert betas(10, schedule="exponential", decay=0.5, cutoff_step=3)[:4] == [1.0, math.exp(-0.5), math.exp(-1), 0.0]


def test_6_less_than_a_step_of_annealing_is_lora_from_the_start():
    assert betas(3, rho=0.1) == [0.0, 0.0, 0.0]
    (answer,) = AfaLoRAConfig(rho=0.1).fit(_context(steps=3))[1:]
    assert (answer.ok, answer.severity) == (True, "warning")
    assert "plain LoRA" in answer.reason
    assert AfaLoRAConfig().fit(_context(steps=100))[-1].reason == "beta is 0 from step 30 of 100"


def _context(steps):
    return TestAfaLoRA.context().model_copy(update={"stage_options": {"steps": steps}})


@pytest.mark.parametrize("steps", [None, 0, -1, 1.5, True])
def test_6_an_unknown_length_is_refused(steps):
    adapter, _ = injected()
    with pytest.raises(FitError, match="number of optimizer steps"):
        adapter.on_step(0, steps)


def test_6_training_without_a_schedule_is_refused():
    adapter, model = injected()
    assert adapter.beta is None
    with pytest.raises(FitError, match="call on_step"):
        model.train()(tokens())
    adapter.on_step(0, 10)
    model(tokens())
    assert adapter.beta == 1.0


def _trained(config, steps, *, checkpointing=False, first=0, model=None, optimizer=None):
    """Train from step `first` to steps[0] of a schedule of steps[1]."""
    adapter = config.build()
    if model is None:
        model = tiny_llama()
        adapter.inject(model, seed=0)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    else:
        fresh = tiny_llama()
        adapter.inject(fresh, seed=3)
        fresh.load_state_dict(model.state_dict())
        state, model = optimizer.state_dict(), fresh
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        optimizer.load_state_dict(state)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    for step in range(first, steps[0]):
        adapter.on_step(step, steps[1])
        optimizer.zero_grad()
        model(tokens(step), labels=tokens(step), use_cache=False).loss.backward()
        optimizer.step()
    return adapter, model, optimizer


def _values(model):
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_6_a_resume_in_the_middle_of_the_schedule_is_bit_exact(activation):
    config = AfaLoRAConfig(activation=activation, rho=0.8)
    whole = _trained(config, (8, 8))[1]
    _, half, optimizer = _trained(config, (3, 8))
    resumed = _trained(config, (8, 8), first=3, model=copy.deepcopy(half), optimizer=optimizer)[1]
    assert all(torch.equal(one, two) for one, two in zip(_values(whole), _values(resumed), strict=True))


def test_6_accumulated_micro_batches_are_one_batch():
    """In the middle of the schedule; beta belongs to the optimizer's step, not to the forward pass."""
    adapter, model = injected(activation="gelu", rho=1.0)
    adapter.on_step(3, 8)
    model.train()
    whole = gradients(model, 2)
    model.zero_grad()
    for row in tokens(2).split(1):
        (model(row, labels=row, use_cache=False).loss / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert relative_error(parameter.grad, whole[name]) < 100 * EPS, name
    assert adapter.beta == pytest.approx(1 - 3 / 7)


def test_6_recomputed_activations_see_the_same_beta():
    config = AfaLoRAConfig(activation="silu", rho=1.0)
    plain, recomputed = (_values(_trained(config, (4, 8), checkpointing=flag)[1]) for flag in (False, True))
    assert all(torch.equal(one, two) for one, two in zip(plain, recomputed, strict=True))


# --- 7: tensor parallel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_7_row_parallel_shards_are_summed_before_the_activation_and_not_after(activation):
    """Two ranks hold halves of the input features: z is a partial sum on each, and phi of a sum is no sum of phis."""
    made, x = layer(0.7, activation), inputs(5, 11)
    beta, split = made.beta.double(), (6, 5)
    partial = [part @ A.T for part, A in zip(x.split(split, 1), made.lora_A.weight.split(split, 1), strict=True)]
    base = sum(part @ W.T for part, W in zip(x.split(split, 1), made.weight.split(split, 1), strict=True)) + made.bias
    right = base + 1.5 * blend(sum(partial), beta, activation) @ made.lora_B.weight.T
    wrong = base + 1.5 * sum(blend(z, beta, activation) @ made.lora_B.weight.T for z in partial)
    torch.testing.assert_close(made(x), right, rtol=1e-12, atol=1e-12)
    assert (made(x) - wrong).norm() > 0.01 * made(x).norm()


def test_7_column_parallel_shards_need_no_reduction():
    made, x = layer(0.7, "silu"), inputs(5, 11)
    z = blend(x @ made.lora_A.weight.T, made.beta.double(), "silu")
    shards = [z @ B.T for B in made.lora_B.weight.split((4, 3))]
    torch.testing.assert_close(made(x), made.base_layer(x) + 1.5 * torch.cat(shards, 1), rtol=1e-12, atol=1e-12)


# --- 8 and 9: several adapters, none ----------------------------------------------------------------------------------


def test_8_a_second_adapter_is_refused_whoever_it_is():
    adapter, model = injected(0.5)
    for other in (adapter, LoRAConfig().build(), AfaLoRAConfig().build()):
        with pytest.raises(FitError, match="has an adapter already"):
            other.inject(model, seed=1)
    lora, other = LoRAConfig().build(), tiny_llama()
    lora.inject(other, seed=0)
    with pytest.raises(FitError, match="holds another adapter"):
        adapter.merge(other)


def test_9_disabled_it_is_the_base_bit_by_bit():
    adapter, model = injected(0.5)
    before = logits(model)
    with adapter.disabled(model):
        assert torch.equal(logits(model), logits(tiny_llama()))
    assert torch.equal(logits(model), before)
    assert not torch.equal(before, logits(tiny_llama()))


# --- 10 and 11: compile, mixed precision ------------------------------------------------------------------------------


def test_10_one_graph_serves_every_beta_down_to_zero():
    adapter, model = injected(activation="silu", targets=("q_proj", "down_proj"))
    model.train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    graphs, losses = [], []
    for step in range(6):
        adapter.on_step(step, 6)
        loss = compiled(tokens(), labels=tokens(), use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] > 0
    assert len(set(graphs)) == 1
    assert len(set(losses[:3])) == 3  # beta is 1, 0.5, 0; no parameter moved
    assert adapter.beta == 0.0


def test_10_compiled_outputs_are_the_eager_ones_and_loras_bits_at_beta_0():
    made, x = layer(0.4, "gelu", torch.float32), inputs(5, 11, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    for beta in (0.4, 1.0, 0.0):
        made.beta.fill_(beta)
        made.linear = beta == 0
        assert relative_error(compiled(x), made(x)) < 8 * EPS
    assert torch.equal(compiled(x), made(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_11_autocast_blends_in_float32_and_promotes_nothing(activation):
    made, x = layer(0.4, activation, torch.float32), inputs(5, 11, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
        plain = made.base_layer(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    y.sum().backward()
    assert {p.grad.dtype for p in (made.lora_A.weight, made.lora_B.weight)} == {torch.float32}
    assert relative_error(y.float(), made(x)) < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_11_a_bfloat16_model_keeps_its_dtype_and_a_float32_beta(beta):
    adapter, model = injected(activation="silu", base=tiny_llama(dtype=torch.bfloat16))
    adapter._set(beta)
    assert logits(model).dtype == torch.bfloat16
    assert {module.beta.dtype for module in wrapped(model).values()} == {torch.float32}
    wide, twin = injected(activation="silu")
    wide._set(beta)
    assert relative_error(logits(model).float(), logits(twin)) < 8 * torch.finfo(torch.bfloat16).eps


def test_a_model_that_is_cast_keeps_an_exact_beta():
    adapter, model = injected(activation="silu")
    model.to(torch.bfloat16)
    adapter.on_step(3, 100)  # 0.9 is no bfloat16 number
    assert adapter.beta == pytest.approx(0.9, rel=1e-7)
    logits(model)


def test_layers_share_one_beta_and_no_file_or_state_holds_it():
    _, model = injected(0.5)
    assert len({id(module.beta) for module in wrapped(model).values()}) == 1
    assert not any("beta" in name for name in model.state_dict())


# --- rollouts and exact files -----------------------------------------------------------------------------------------


def test_rollout_gets_the_merged_weights_and_the_trained_model_stays():
    adapter, model = injected(0.0)
    weights = adapter.rollout_weights(model)
    engine = tiny_llama()
    missing = engine.load_state_dict(weights, strict=False)
    assert len(weights) == 14
    assert not missing.unexpected_keys
    assert len(wrapped(model)) == 14
    adapter.merge(model)
    assert torch.equal(logits(engine), logits(model))


def test_off_policy_rollouts_are_folded_because_the_trainer_said_so():
    adapter, model = injected(0.5, rollout="off-policy")
    weights = adapter.rollout_weights(model)
    path, each = next(iter(wrapped(model).items()))
    assert torch.equal(weights[f"{path}.weight"], each.folded())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_exact_file_gives_the_same_function_at_any_beta_and_peft_refuses_it(tmp_path, activation):
    adapter, model = injected(0.7, activation=activation)
    adapter.save_exact(model, tmp_path, "base")
    other, twin = AfaLoRAConfig(activation=activation).build(), tiny_llama()
    other.inject(twin, seed=9)
    other.load(twin, tmp_path)
    assert torch.equal(logits(twin), logits(model))
    with pytest.raises(FitError, match="not linear"):
        other.merge(twin)
    with pytest.raises((ValueError, KeyError, TypeError)):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    lora, base = LoRAConfig().build(), tiny_llama()
    lora.inject(base, seed=0)
    with pytest.raises(ArtifactError, match="no LoRA: peft_type is 'AFA_LORA'"):
        lora.load(base, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "silu"}, "the activation is 'silu', the injected adapter's is 'relu'"),
        ({"activation": None}, "the activation is None"),
        ({"final_beta": 2}, "final_beta is 2"),
        ({"final_beta": "0"}, "final_beta is '0'"),
        ({"final_beta": float("nan")}, "final_beta is nan"),
    ],
)
def test_an_exact_file_that_says_something_else_is_refused(tmp_path, change, message):
    adapter, model = injected(0.7)
    adapter.save_exact(model, tmp_path, "base")
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"afa": fields["afa"] | change}))
    drawn(model, seed=3)
    before = logits(model)
    with pytest.raises(ArtifactError, match=message):
        adapter.load(model, tmp_path)
    assert torch.equal(logits(model), before)
    assert load_file(tmp_path / "adapter_model.safetensors")


def test_an_exact_file_needs_a_beta(tmp_path):
    adapter, model = injected()
    with pytest.raises(FitError, match="has no beta yet"):
        adapter.save_exact(model, tmp_path, "base")


def test_a_loaded_adapter_gets_no_activation(tmp_path):
    adapter, model = injected(0.0)
    adapter.save(model, tmp_path, "base")
    adapter.load(model, tmp_path)
    with pytest.raises(FitError, match="a loaded adapter is linear"):
        adapter.on_step(0, 10)
    adapter.on_step(3, 10)
    assert adapter.beta == 0.0


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "greater than or equal to 1"),
        ({"rho": 1.5}, "less than or equal to 1"),
        ({"rho": -0.1}, "greater than or equal to 0"),
        ({"activation": "elu"}, "relu"),
        ({"schedule": "exponential"}, "never reaches 0"),
        ({"hold": 0.8}, "more than the whole training"),
        ({"schedule": "warmup_cosine_patient", "warmup": 0.9}, "more than the whole training"),
        ({"init": "pissa"}, "kaiming"),
        ({"use_dora": True}, "unknown key"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        TestAfaLoRA.config(**options)


def test_rank_above_a_targets_sides_is_a_warning():
    assert AfaLoRAConfig(rank=17).fit(TestAfaLoRA.context())[0].severity == "warning"


def test_the_blend_is_counted():
    work = TestAfaLoRA.work()
    ours, lora = AfaLoRAConfig().cost(work), LoRAConfig().cost(work)
    assert ours.flops - lora.flops == 4 * 3 * 8 * 14 * work.tokens * work.micro_batches
    assert ours.parameters == lora.parameters


def test_patterns_choose_attention_or_mlp():
    _, model = injected(0.0, targets=("self_attn.[qkv]_proj", "mlp.*_proj"))
    ends = {path.rpartition(".")[2] for path in wrapped(model)}
    assert ends == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert llama_shape().layers * len(ends) == len(wrapped(model))


def test_schedule_is_data_without_torch():
    assert Schedule("linear", 0.5, 0.0, 0.0, 0.0, 0.0, 0).beta(0, 4) == 1.0


@pytest.mark.parametrize(("dtype", "element"), [("float32", 4), ("model", 2)])
def test_a_plan_counts_the_optimizers_state_in_the_matrices_own_dtype(dtype, element):
    adapter = {"use": "adapter.afa-lora", "dtype": dtype}
    data = {"use": "data.jsonl", "path": "examples/first_stack.jsonl"}
    train = sl.train(data=data, optimizer="optimizer.adamw", adapter=adapter, steps=10)
    model = sl.use("model.hf", checkpoint="smollm2-135m-instruct")
    parts = sl.Stack("adapter", model=model, stages=[train], dtype="bfloat16").plan(device="h100").components()
    costs = {part.plugin: part.cost for part in parts}
    matrices = costs["adapter.afa-lora"].parameters
    assert costs["adapter.afa-lora"].weight_bytes == element * matrices
    assert costs["optimizer.adamw"].optimizer_bytes == 2 * element * matrices
