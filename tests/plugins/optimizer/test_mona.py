"""`optimizer.mona`: the slot's laws, and the invariants of the paper's page (its section 6), by number."""

import io
from typing import ClassVar

import pytest
import torch
from torch import nn

from stackloom.core.errors import ArtifactError, ConfigError, FitError
from stackloom.plugins.optimizer.matrix_optimizer import MatrixOptimizer
from stackloom.plugins.optimizer.mona.config import MonaConfig
from stackloom.plugins.optimizer.muon.config import MuonConfig
from stackloom.testing import OptimizerContract, tiny_parameters, tiny_shape

PAIRS = [(0.99, -50.0), (0.975, -20.0), (0.9, -5.0), (0.01, 0.5)]


class TestMona(OptimizerContract):
    plugin = "optimizer.mona"
    options: ClassVar = {"lr": 0.01}


class TestMonaWithThreeBuffers(OptimizerContract):
    plugin = "optimizer.mona"
    options: ClassVar = {"lr": 0.01, "buffers": "three"}


class TestMonaLite(OptimizerContract):
    plugin = "optimizer.mona"
    options: ClassVar = {
        "lr": 0.01,
        "buffers": "lite",
        "momentum_dtype": "bfloat16",
        "stochastic_rounding": True,
        "alpha_warmup_steps": 3,
        "init_prev": "first",
    }


def gradient(step, shape=(6, 10), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def trained(config, steps, *, dtype=torch.float32, shape=(6, 10), gradients=gradient):
    weight = nn.Parameter(gradient(99, shape, dtype))
    optimizer = config.build([("layer.weight", weight)])
    for step in range(steps):
        weight.grad = gradients(step, shape, dtype)
        optimizer.step()
    return weight.detach(), optimizer


def fed(monkeypatch, config, steps, *, gradients=gradient):
    """Return what reaches the orthogonalisation, step by step, in float64."""
    seen = []
    plain = MatrixOptimizer._orthogonalise
    monkeypatch.setattr(
        MatrixOptimizer, "_orthogonalise", lambda self, stack: seen.append(stack.clone()) or plain(self, stack)
    )
    trained(config, steps, dtype=torch.float64, gradients=gradients)
    return [stack[0] for stack in seen]


def mona(**options):
    return MonaConfig(momentum=0.0, nesterov=False, **options)


@pytest.mark.parametrize("beta_a", [0.0, 0.5, 0.975])
@pytest.mark.parametrize("buffers", ["one", "three", "lite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_1_without_acceleration_it_is_muon_bit_by_bit(beta_a, buffers, dtype):
    ours, _ = trained(MonaConfig(lr=0.1, alpha=0.0, beta_a=beta_a, buffers=buffers), 8, dtype=dtype)
    muon, _ = trained(MuonConfig(lr=0.1), 8, dtype=dtype)
    assert torch.equal(ours, muon)


@pytest.mark.parametrize(("beta_a", "alpha"), PAIRS)
@pytest.mark.parametrize("init_prev", ["zero", "first"])
def test_2_three_buffers_are_one_buffer(monkeypatch, beta_a, alpha, init_prev):
    options = {"alpha": alpha, "beta_a": beta_a, "init_prev": init_prev, "allow_unstable": True}
    three = fed(monkeypatch, mona(buffers="three", **options), 200)
    one = fed(monkeypatch, mona(buffers="one", **options), 200)
    assert len(three) == 200
    for step, (left, right) in enumerate(zip(three, one, strict=True)):
        assert (left - right).abs().max() <= 1e-14 * (1 + abs(alpha)) * left.abs().max(), step


@pytest.mark.parametrize("buffers", ["one", "three"])
def test_3_without_memory_the_acceleration_is_the_last_difference(monkeypatch, buffers):
    seen = fed(monkeypatch, mona(alpha=0.7, beta_a=0.0, buffers=buffers), 5)
    for step in range(1, 5):
        new, old = gradient(step, dtype=torch.float64), gradient(step - 1, dtype=torch.float64)
        torch.testing.assert_close(seen[step], 1.7 * new - 0.7 * old, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("buffers", ["one", "three", "lite"])
def test_4_a_constant_gradient_feels_no_acceleration_once_started_from_itself(buffers):
    def constant(step, shape, dtype):
        return gradient(7, shape).bfloat16().to(dtype)  # lite holds it exactly

    ours, optimizer = trained(MonaConfig(lr=0.1, init_prev="first", buffers=buffers), 20, gradients=constant)
    muon, _ = trained(MuonConfig(lr=0.1), 20, gradients=constant)
    assert torch.equal(ours, muon)
    (state,) = optimizer.state.values()
    if buffers == "three":
        assert (state["acceleration"] == 0).all()


def test_4_from_zero_the_acceleration_decays_as_a_power():
    def constant(step, shape, dtype):
        return torch.ones(shape, dtype=dtype)

    for steps in (1, 2, 7):
        _, optimizer = trained(MonaConfig(beta_a=0.8, buffers="three"), steps, dtype=torch.float64, gradients=constant)
        (state,) = optimizer.state.values()
        torch.testing.assert_close(
            state["acceleration"], torch.full((6, 10), 0.2 * 0.8 ** (steps - 1), dtype=torch.float64)
        )


@pytest.mark.parametrize(("beta_a", "alpha"), [(0.975, -20.0), (0.99, -50.0), (0.0, -0.5)])
def test_5_the_papers_rule(beta_a, alpha):
    assert MonaConfig(beta_a=beta_a).acceleration == pytest.approx(alpha, rel=1e-12)
    assert MonaConfig(beta_a=beta_a, alpha_sign="positive").acceleration == pytest.approx(-alpha, rel=1e-12)
    assert MonaConfig(beta_a=beta_a).acceleration * (1 - beta_a) == pytest.approx(-0.5, rel=1e-15)


@pytest.mark.parametrize("buffers", ["one", "three", "lite"])
def test_6_shards_are_the_whole_bit_by_bit(buffers):
    """Lines 2 to 6 are elementwise: two halves of a matrix keep the same buffers as the whole."""
    config = MonaConfig(buffers=buffers)
    _, whole = trained(config, 5, shape=(8, 9))
    (state,) = whole.state.values()
    for rows in (slice(0, 3), slice(3, 8)):
        weight = nn.Parameter(gradient(99, (8, 9))[rows].clone())
        optimizer = config.build([("layer.weight", weight)])
        for step in range(5):
            weight.grad = gradient(step, (8, 9))[rows].clone()
            optimizer.step()
        (shard,) = optimizer.state.values()
        for name in state.keys() - {"step"}:
            assert torch.equal(shard[name], state[name][rows]), name


@pytest.mark.parametrize("alpha", [-20.0, 0.0, 20.0])
def test_7_no_step_is_longer_than_the_bound(alpha):
    for kind in ("random", "rank one", "zero"):

        def gradients(step, shape, dtype, kind=kind):
            full = gradient(step, shape, dtype)
            return {"random": full, "rank one": full[:, :1] @ full[:1], "zero": torch.zeros(shape)}[kind]

        config = MonaConfig(lr=1.0, alpha=alpha, weight_decay=0.0, adjust_lr_fn="none")
        before, _ = trained(config, 3, gradients=gradients)
        after, _ = trained(config, 4, gradients=gradients)
        step = torch.linalg.matrix_norm(after - before, ord=2)
        assert step <= 1.22, kind
        assert (step == 0) == (kind == "zero")


@pytest.mark.parametrize("buffers", ["one", "three", "lite"])
def test_8_a_transposed_problem_gives_the_transposed_weight(buffers):
    config = MonaConfig(lr=0.1, buffers=buffers)
    wide, _ = trained(config, 5, shape=(6, 10))
    weight = nn.Parameter(gradient(99).mT.contiguous())
    optimizer = config.build([("layer.weight", weight)])
    for step in range(5):
        weight.grad = gradient(step).mT.contiguous()
        optimizer.step()
    assert torch.equal(weight.detach().mT, wide)


def test_9_a_stack_of_experts_is_its_experts():
    config = MonaConfig(lr=0.1)
    together = nn.Parameter(gradient(99, (3, 6, 10)))
    alone = [(f"layers.{i}.weight", nn.Parameter(together.detach()[i].clone())) for i in range(3)]
    stacked, separate = config.build([("mlp.experts.up_proj", together)]), config.build(alone)
    for step in range(4):
        together.grad = gradient(step, (3, 6, 10))
        for i, (_, weight) in enumerate(alone):
            weight.grad = together.grad[i].clone()
        stacked.step()
        separate.step()
    assert torch.equal(together.detach(), torch.stack([weight.detach() for _, weight in alone]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("buffers", ["one", "three", "lite"])
def test_10_resume_is_exact_and_keeps_every_buffers_dtype(buffers, dtype):
    config = MonaConfig(lr=0.1, buffers=buffers, alpha_warmup_steps=8)
    weight, optimizer = trained(config, 3, dtype=dtype)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = nn.Parameter(weight.clone())
    resumed = config.build([("layer.weight", twin)])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for (left,), (right,) in [(optimizer.state.values(), resumed.state.values())]:
        assert {name: value.dtype for name, value in left.items()} == {n: v.dtype for n, v in right.items()}
    for step in range(3, 7):
        twin.grad = gradient(step, dtype=dtype)
        resumed.step()
    assert torch.equal(twin.detach(), trained(config, 7, dtype=dtype)[0])


def test_11_the_stored_gradient_is_the_raw_one():
    _, optimizer = trained(MonaConfig(beta_a=0.99, buffers="three"), 3)
    (state,) = optimizer.state.values()
    assert torch.equal(state["previous_gradient"], gradient(2))


def test_11_storing_the_augmented_gradient_would_show_at_step_3(monkeypatch):
    seen = fed(monkeypatch, mona(beta_a=0.99, alpha=-50.0 + 1e-9, buffers="one"), 3)
    first, second, third = (gradient(step, dtype=torch.float64) for step in range(3))

    def line(previous):
        acceleration = 0.01 * first
        augmented_1 = first - 50 * acceleration
        acceleration = 0.99 * acceleration + 0.01 * (second - (augmented_1 if previous == "augmented" else first))
        augmented_2 = second - 50 * acceleration
        acceleration = 0.99 * acceleration + 0.01 * (third - (augmented_2 if previous == "augmented" else second))
        return third - 50 * acceleration

    torch.testing.assert_close(seen[2], line("raw"), rtol=1e-6, atol=1e-6)
    assert (seen[2] - line("augmented")).norm() > 0.1 * seen[2].norm()


def test_12_closure_is_called_with_gradients_on_and_its_loss_returned():
    weight = nn.Parameter(gradient(99))
    optimizer = MonaConfig(lr=0.1).build([("layer.weight", weight)])

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    before = weight.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(before.square().sum().item())
    assert not torch.equal(weight.detach(), before)


def test_12_a_groups_own_acceleration_is_obeyed():
    weight = nn.Parameter(gradient(99))
    optimizer = MonaConfig(lr=0.1).build([("layer.weight", weight)])
    optimizer.param_groups[0]["alpha"], optimizer.param_groups[0]["beta_a"] = 3.0, 0.5
    for step in range(4):
        weight.grad = gradient(step)
        optimizer.step()
    other = MonaConfig(lr=0.1, alpha=3.0, beta_a=0.5, allow_unstable=True)
    assert torch.equal(weight.detach(), trained(other, 4)[0])


@pytest.mark.parametrize("buffers", ["one", "three", "lite"])
def test_12_no_gradient_touches_no_buffer_and_no_buffer_is_the_gradient(buffers):
    weight = nn.Parameter(gradient(99))
    optimizer = MonaConfig(buffers=buffers, init_prev="first").build([("layer.weight", weight)])
    weight.grad = gradient(0)
    optimizer.step()
    (state,) = optimizer.state.values()
    before = {name: value.clone() for name, value in state.items()}
    weight.grad.fill_(1e6)
    assert all(torch.equal(value, state[name]) for name, value in before.items())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert all(torch.equal(value, state[name]) for name, value in before.items())


def test_13_a_step_that_the_scaler_skips_changes_nothing():
    weight = nn.Parameter(gradient(99))
    optimizer = MonaConfig(lr=0.1).build([("layer.weight", weight)])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def attempt(step, poison):
        optimizer.zero_grad()
        scaler.scale((weight * gradient(step)).sum()).backward()
        if poison:
            weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()

    attempt(0, poison=False)
    (state,) = optimizer.state.values()
    before, value = {name: each.clone() for name, each in state.items()}, weight.detach().clone()
    attempt(1, poison=True)
    assert torch.equal(weight.detach(), value)
    assert all(torch.equal(each, state[name]) for name, each in before.items())
    attempt(1, poison=False)
    assert not torch.equal(weight.detach(), value)


def test_alpha_grows_over_its_warmup(monkeypatch):
    seen = fed(monkeypatch, mona(alpha=0.8, beta_a=0.0, alpha_warmup_steps=4), 3)
    for step in range(1, 3):
        new, old = gradient(step, dtype=torch.float64), gradient(step - 1, dtype=torch.float64)
        torch.testing.assert_close(seen[step], new + 0.2 * (step + 1) * (new - old), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta_a": 1.0}, "less than 1"),
        ({"beta_a": -0.1}, "greater than or equal to 0"),
        ({"alpha": -40.0, "beta_a": 0.975}, "stability limit of 40"),
        ({"alpha": 2.0, "beta_a": 0.5}, "stability limit of 2"),
        ({"buffers": "lite", "beta_a": 0.995}, "stalls at beta_a 0.995"),
        ({"no_such": 1}, "unknown key"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        TestMona.config(**options)


def test_unstable_and_stalling_options_can_be_asked_for():
    assert TestMona.config(alpha=-40.0, allow_unstable=True).acceleration == -40
    assert TestMona.config(buffers="lite", beta_a=0.995, stochastic_rounding=True).buffers == "lite"


def test_lites_average_stalls_above_the_limit_and_not_with_stochastic_rounding():
    """The reason of the refusal: at 0.999 an increment is below half an ulp of the average."""

    def constant(step, shape, dtype):
        return torch.ones(shape, dtype=dtype)

    averages = {}
    for stochastic in (False, True):
        config = MonaConfig.model_construct(
            **MonaConfig(beta_a=0.99, buffers="lite", stochastic_rounding=stochastic).model_dump() | {"beta_a": 0.999}
        )
        _, optimizer = trained(config, 1000, shape=(16, 16), gradients=constant)
        (state,) = optimizer.state.values()
        averages[stochastic] = state["gradient_average"].float().mean().item()
    exact = 1 - 0.999**1000
    assert averages[False] < 0.5 * exact
    assert averages[True] == pytest.approx(exact, rel=0.05)


def test_bad_parameters_and_gradients_are_refused():
    matrix = nn.Parameter(gradient(0))
    with pytest.raises(ConfigError, match="looks like an embedding or a head"):
        MonaConfig(adamw_names=()).build([("model.embed_tokens.weight", matrix)])
    forced = MonaConfig(adamw_names=(), force_names=("*embed*",)).build([("model.embed_tokens.weight", matrix)])
    assert forced.routes() == [("model.embed_tokens.weight", "mona, decay 0.1")]
    with pytest.raises(ConfigError, match="1 dimensions and is no matrix"):
        MonaConfig(force_names=("*bias*",)).build([("layer.bias", nn.Parameter(torch.ones(3)))])
    with pytest.raises(FitError, match="complex"):
        MonaConfig().build([("layer.weight", nn.Parameter(torch.ones(2, 2, dtype=torch.cfloat)))])
    optimizer = MonaConfig().build([("layer.weight", matrix)])
    matrix.grad = torch.ones(6, 10).to_sparse()
    with pytest.raises(FitError, match="sparse gradient"):
        optimizer.step()
    assert not optimizer.state


def test_state_of_muon_is_refused():
    saved = MuonConfig().build(tiny_parameters(tiny_shape())).state_dict()
    with pytest.raises(ArtifactError, match="belongs to other parameters"):
        MonaConfig().build(tiny_parameters(tiny_shape())).load_state_dict(saved)


def test_memory_per_element_is_the_pages():
    work = TestMona.work("float32", trainable=1000)
    bytes_of = {
        name: MonaConfig(**options).cost(work).optimizer_bytes / 1000
        for name, options in {
            "three": {"buffers": "three"},
            "one": {},
            "lite": {"buffers": "lite"},
            "lite with bfloat16 momentum": {"buffers": "lite", "momentum_dtype": "bfloat16"},
        }.items()
    }
    assert bytes_of == {"three": 12, "one": 8, "lite": 6, "lite with bfloat16 momentum": 4}
    assert 1 - (bytes_of["lite"] - 4) / (bytes_of["three"] - 4) == 0.75  # the paper's saving, over Muon's 4 bytes
