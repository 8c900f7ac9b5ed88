"""MONA's identities, its loss and sharpness against Muon and AdamW on a small Llama, and where it ends in a valley."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table
from stackloom.core.statistics import mean_interval
from stackloom.plugins.optimizer.byte_llama import ByteLlama, Bytes, Schedule, Size, held_out_loss, train
from stackloom.plugins.optimizer.sharpness import sharpness

PAIRS = ((0.99, -50.0), (0.975, -20.0), (0.9, -5.0), (0.01, 0.5))
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("optimizer.adamw", {}),
    "muon": ("optimizer.muon", {}),
    "mona": ("optimizer.mona", {}),
    "mona, positive alpha": ("optimizer.mona", {"beta_a": 0.9, "alpha_sign": "positive"}),
}
SCHEDULES = {
    "cpu": Schedule(steps=80, sequences=8),
    "cpu-full": Schedule(),
    "gpu": Schedule(steps=2000, sequences=256),
}
RATES = {"cpu": (4e-3,), "cpu-full": (2e-3, 4e-3, 8e-3), "gpu": (1e-3, 2e-3, 4e-3, 8e-3)}
SEQUENCES = 4096


@dataclass(frozen=True)
class Outcome:
    """What one run ended with: the model, its held-out loss in nats per byte, and the training loss per step."""

    model: ByteLlama
    loss: float
    curve: tuple[float, ...]


def one_buffer_is_three(ctx: ClaimContext) -> ClaimResult:
    """Largest relative distance between what the two forms feed to the momentum, float64, 200 steps."""
    worst = 0.0
    for beta_a, alpha in PAIRS:
        for init_prev in ("zero", "first"):
            options = {"alpha": alpha, "beta_a": beta_a, "init_prev": init_prev, "momentum": 0.0}
            forms = [_momentum_buffers(ctx, "optimizer.mona", buffers=form, **options) for form in ("three", "one")]
            for three, one in zip(*forms, strict=True):
                worst = max(worst, float((three - one).abs().max() / (1 + abs(alpha))))
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds[:1]))


def without_acceleration_it_is_muon(ctx: ClaimContext) -> ClaimResult:
    """Number of parameters that differ from Muon's after training the small Llama with alpha 0."""
    states = []
    for plugin, options in (("optimizer.muon", {}), ("optimizer.mona", {"alpha": 0.0})):
        model = ByteLlama(Size(layers=2), seed=ctx.seeds[0])
        optimizer = ctx.component(plugin, model.named_parameters(), lr=4e-3, **options)
        train(model, optimizer, _text(ctx, "train"), Schedule(steps=10), ctx.seeds[0])
        states.append(list(model.parameters()))
    different = sum(int((one != two).sum()) for one, two in zip(*states, strict=True))
    return ClaimResult(ours=different, baseline=0.0, seeds=tuple(ctx.seeds[:1]))


def updates_stay_bounded(ctx: ClaimContext) -> ClaimResult:
    """Largest singular value of a step over lr times scale, over signs of alpha, 50 steps of random gradients."""
    worst = 0.0
    for alpha in (-20.0, 0.0, 20.0):
        weight = nn.Parameter(torch.zeros(48, 64))
        options = {"lr": 1.0, "alpha": alpha, "weight_decay": 0.0, "adjust_lr_fn": "none"}
        optimizer = ctx.component("optimizer.mona", [("layer.weight", weight)], **options)
        for step in range(50):
            before, weight.grad = weight.detach().clone(), _random((48, 64), step)
            optimizer.step()
            worst = max(worst, float(torch.linalg.matrix_norm(weight.detach() - before, ord=2)))
    return ClaimResult(ours=worst, baseline=1.22, seeds=tuple(ctx.seeds[:1]))


def lite_saves_memory(ctx: ClaimContext) -> ClaimResult:
    """Share of the acceleration's extra bytes that lite saves, counted in the state after one step."""
    held = {}
    for name, plugin, options in (
        ("muon", "optimizer.muon", {}),
        ("three", "optimizer.mona", {"buffers": "three"}),
        ("lite", "optimizer.mona", {"buffers": "lite"}),
    ):
        weight = nn.Parameter(torch.zeros(64, 64))
        optimizer = ctx.component(plugin, [("layer.weight", weight)], **options)
        weight.grad = torch.ones(64, 64)
        optimizer.step()
        held[name] = sum(value.nbytes for value in optimizer.state[weight].values() if value.ndim)
    saved = 1 - (held["lite"] - held["muon"]) / (held["three"] - held["muon"])
    return ClaimResult(ours=saved, seeds=tuple(ctx.seeds[:1]), details={"bytes": held})


def beats_muon(ctx: ClaimContext) -> ClaimResult:
    """Held-out loss of MONA minus Muon's, each at its best learning rate, paired by seed."""
    return _difference(ctx, "mona", "muon")


def beats_adamw(ctx: ClaimContext) -> ClaimResult:
    """Held-out loss of MONA minus AdamW's, each at its best learning rate, paired by seed."""
    return _difference(ctx, "mona", "adamw")


def positive_alpha_beats_muon(ctx: ClaimContext) -> ClaimResult:
    """Held-out loss of MONA with a positive alpha minus Muon's, each at its best learning rate, paired by seed."""
    return _difference(ctx, "mona, positive alpha", "muon")


def minima_are_flatter(ctx: ClaimContext) -> ClaimResult:
    """Top Hessian eigenvalue where MONA ends over that where Muon ends, each at its best learning rate."""
    arms = _arms(ctx, ("mona", "muon"))
    batch = _text(ctx, "held-out")[:16]
    sharp = {name: [_sharpness(outcome.model, batch) for outcome in arm] for name, arm in arms.items()}
    found = mean_interval([a / b for a, b in zip(sharp["mona"], sharp["muon"], strict=True)])
    table = Table(
        title="Top Hessian eigenvalue on held-out text",
        columns=("seed", *sharp),
        rows=tuple((seed, *(values[i] for values in sharp.values())) for i, seed in enumerate(ctx.seeds)),
    )
    return ClaimResult(
        ours=found["value"],
        interval=found["interval"],
        baseline=1.0,
        seeds=tuple(ctx.seeds),
        details={"tables": [table]},
    )


def leaves_sharp_minima(ctx: ClaimContext) -> ClaimResult:
    """Share of starting points in a valley that end in its flat minimum, with the paper's alpha minus without."""
    shares: dict[str, list[float]] = {name: [] for name in ("negative", "none", "positive")}
    options = {"negative": {}, "none": {"alpha": 0.0}, "positive": {"alpha_sign": "positive"}}
    for seed in ctx.seeds:
        starts = torch.rand(200 if ctx.scale == "cpu" else 2000, 2, generator=torch.Generator().manual_seed(seed))
        for name, each in options.items():
            shares[name].append(_share_in_flat_minimum(ctx, starts * 6 - 3, **each))
    found = mean_interval([a - b for a, b in zip(shares["negative"], shares["none"], strict=True)])
    table = Table(
        title="Share of starts that end in the flat minimum",
        columns=("seed", *shares),
        rows=tuple((seed, *(values[i] for values in shares.values())) for i, seed in enumerate(ctx.seeds)),
    )
    return ClaimResult(
        ours=found["value"],
        interval=found["interval"],
        baseline=0.0,
        seeds=tuple(ctx.seeds),
        details={"tables": [table]},
    )


def valley(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Two minima of about one depth in a shallow bowl: sharp at x = -1 (width 0.2), flat at x = 1 (width 0.8)."""
    sharp = torch.exp(-((x + 1) ** 2 + y**2) / (2 * 0.2**2))
    flat = torch.exp(-((x - 1) ** 2 + y**2) / (2 * 0.8**2))
    return 0.02 * (x**2 + y**2) - sharp - flat


def _share_in_flat_minimum(ctx: ClaimContext, starts: torch.Tensor, **options: Any) -> float:
    """Every start is a 1 x 2 matrix of one stack, so that each is orthogonalised (here: normalised) alone."""
    points = nn.Parameter(starts.clone().unsqueeze(1))
    options = {"lr": 0.05, "weight_decay": 0.0, "adjust_lr_fn": "none", "ns_dtype": "float32", **options}
    optimizer = ctx.component("optimizer.mona", [("experts.points", points)], **options)
    for step in range(400):
        optimizer.zero_grad()
        valley(points[:, 0, 0], points[:, 0, 1]).sum().backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.step()
    x, y = points.detach()[:, 0].unbind(-1)
    return float(((x > 0) & (valley(x, y) < -0.5)).float().mean())


def _difference(ctx: ClaimContext, ours: str, theirs: str) -> ClaimResult:
    arms = _arms(ctx, (ours, theirs))
    found = mean_interval([a.loss - b.loss for a, b in zip(arms[ours], arms[theirs], strict=True)])
    table = Table(
        title="Held-out loss, nats per byte",
        columns=("seed", *arms),
        rows=tuple((seed, *(arm[i].loss for arm in arms.values())) for i, seed in enumerate(ctx.seeds)),
    )
    curve = Curve(
        title=f"Training loss, seed {ctx.seeds[0]}",
        across="step",
        up="nats per byte",
        x=tuple(range(SCHEDULES[ctx.scale].steps)),
        series={name: arm[0].curve for name, arm in arms.items()},
    )
    return ClaimResult(
        ours=found["value"],
        interval=found["interval"],
        baseline=0.0,
        seeds=tuple(ctx.seeds),
        details={"tables": [table], "curves": [curve]},
    )


def _arms(ctx: ClaimContext, names: Sequence[str]) -> dict[str, list[Outcome]]:
    """Each arm at its best learning rate, one run a seed; the sweep uses one more seed than is reported."""
    outcomes = {}
    for name in names:
        rates = RATES[ctx.scale]
        sweep = max(ctx.seeds) + 1
        best = min(rates, key=lambda rate: _run(ctx, name, rate, sweep).loss) if len(rates) > 1 else rates[0]
        outcomes[name] = [_run(ctx, name, best, seed) for seed in ctx.seeds]
        losses = ", ".join(f"{outcome.loss:.4f}" for outcome in outcomes[name])
        ctx.say(f"{name}: learning rate {best:g}, held-out loss {losses}")
    return outcomes


_DONE: dict[tuple[Any, ...], Outcome] = {}  # claims of one process share their runs


def _run(ctx: ClaimContext, arm: str, rate: float, seed: int) -> Outcome:
    plugin, options = ARMS[arm]
    model = ByteLlama(Size(), seed).to(ctx.device)
    optimizer = ctx.component(plugin, model.named_parameters(), lr=rate, **options)  # recorded for every claim
    key = (ctx.scale, ctx.device, arm, rate, seed)
    if key not in _DONE:
        losses: list[float] = []
        train(model, optimizer, _text(ctx, "train"), SCHEDULES[ctx.scale], seed, lambda step, loss: losses.append(loss))
        _DONE[key] = Outcome(model, held_out_loss(model, _text(ctx, "held-out")[:512]), tuple(losses))
    return _DONE[key]


def _sharpness(model: ByteLlama, batch: torch.Tensor) -> float:
    return sharpness(lambda: model.loss(batch), list(model.parameters()))


def _text(ctx: ClaimContext, split: str) -> torch.Tensor:
    length = SCHEDULES[ctx.scale].length
    rows = ctx.data("data.pydoc", Bytes(), sequences=SEQUENCES, sequence_length=length, split=split)
    return torch.stack(list(rows)).to(ctx.device)


def _momentum_buffers(ctx: ClaimContext, plugin: str, **options: Any) -> list[torch.Tensor]:
    """The momentum after each step; with decay 0 it is the augmented gradient itself."""
    weight = nn.Parameter(torch.zeros(6, 10, dtype=torch.float64))
    optimizer = ctx.component(plugin, [("layer.weight", weight)], allow_unstable=True, **options)
    seen = []
    for step in range(200):
        weight.grad = _random((6, 10), step).double()
        optimizer.step()
        seen.append(optimizer.state[weight]["momentum_buffer"].clone())
    return seen


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
