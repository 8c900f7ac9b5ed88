"""WISCA's identities, its loss against no rewriting and matched learning rates, and SmolLM2 before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table
from stackloom.core.statistics import mean_interval
from stackloom.plugins.optimizer.byte_llama import Bytes, Schedule, held_out_loss, train

AT_INIT: dict[str, Any] = {"every_n_steps": None}
DOUBLED = "doubled learning rate"  # of all weights, twice the best of origin's
ARMS: dict[str, dict[str, Any] | None] = {
    "origin": None,
    "every 50 steps": {"every_n_steps": 50},
    "at init": AT_INIT,
    "q/k alone": {"every_n_steps": 50, "vo": "off"},
    "v/o alone": {"every_n_steps": 50, "qk": "off"},
    "matched learning rates": AT_INIT | {"control": "scale-invariant"},
    DOUBLED: None,
}
SCHEDULES = {"cpu": Schedule(steps=120, sequences=8), "cpu-full": Schedule(steps=250), "gpu": Schedule(steps=2000)}
RATES = {"cpu": (4e-3,), "cpu-full": (2e-3, 4e-3, 8e-3), "gpu": (1e-3, 2e-3, 4e-3, 8e-3)}
SEQUENCES, HELD_OUT = 4096, 256
TOKENS = torch.arange(7, 47)[None]


class SmallLlama(nn.Module):
    """A grouped-query Llama of transformers over bytes: six query heads, one key-value head, tied embeddings."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = llama(seed=seed, vocab_size=256, tie_word_embeddings=True)

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy of each byte after the first, in nats."""
        logits = self.model(tokens_BT[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())


@dataclass(frozen=True)
class Outcome:
    """What one run ended with: held-out loss in nats per byte, and the training loss per step."""

    loss: float
    curve: tuple[float, ...]


def outputs_stay(ctx: ClaimContext) -> ClaimResult:
    """Largest change of a logit, of the largest, in float64, over head counts, granularities and norms."""
    worst = 0.0
    for kv_heads in (6, 2, 1):
        for unit in ("tensor", "head", "channel"):
            for norm in (1, 2):
                model = float64_llama(kv_heads=kv_heads, seed=ctx.seeds[0])
                up_down = "tensor" if unit == "tensor" else "channel"
                wisca = ctx.component("transform.wisca", qk=unit, vo=unit, up_down=up_down, norm=norm, min_change=0)
                worst = max(worst, _change(model, lambda model=model, wisca=wisca: wisca.apply(model)))
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds[:1]))


def powers_of_two_change_no_bit(ctx: ClaimContext) -> ClaimResult:
    """Largest change of a logit in bfloat16 with factors rounded to powers of two; in the details, without."""
    changes = {}
    for pow2 in ("auto", "never"):
        model = llama(seed=ctx.seeds[0]).bfloat16()
        wisca = ctx.component("transform.wisca", qk="channel", vo="channel", up_down="channel", pow2=pow2)
        changes[pow2] = _change(model, lambda model=model, wisca=wisca: wisca.apply(model))
    return ClaimResult(
        ours=changes["auto"], baseline=0.0, seeds=tuple(ctx.seeds[:1]), details={"arbitrary factors": changes["never"]}
    )


def init_is_a_learning_rate(ctx: ClaimContext) -> ClaimResult:
    """Largest distance of logits, float64, between rewriting at init and matched learning rates over 20 steps."""
    rules = {"optimizer.adamw": {"lr": 1e-3, "eps": 1e-30}, "optimizer.muon": {"lr": 1e-3, "adamw_eps": 1e-30}}
    worst: dict[str, float] = {}
    for plugin, options in rules.items():
        runs = []
        for mode in ("off", "scale-invariant"):
            model = float64_llama(kv_heads=2, seed=ctx.seeds[0])
            optimizer = ctx.component(plugin, model.named_parameters(), **options)
            ctx.component("transform.wisca", **AT_INIT, control=mode).apply(model, (optimizer,))
            runs.append(_logits_over_steps(model, optimizer, 20))
        worst[plugin] = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*runs, strict=True))
    return ClaimResult(ours=max(worst.values()), baseline=0.0, seeds=tuple(ctx.seeds[:1]), details=worst)


def balanced_is_flattest(ctx: ClaimContext) -> ClaimResult:
    """Top eigenvalue of the Hessian of (q k - C)^2 at the balanced split, over 4 |C|; the largest deviation from 1."""
    worst, rows = 0.0, []
    for q, k in ((1.0, 2.0), (4.0, 0.5), (-3.0, 0.1), (0.01, 70.0)):
        target = q * k
        before = _sharpness(q, k, target)
        s = (abs(k) / abs(q)) ** 0.5
        after = _sharpness(s * q, k / s, target)
        rows.append((q, k, before, after, 4 * abs(target)))
        worst = max(worst, abs(after / (4 * abs(target)) - 1))
    table = Table(title="Top eigenvalue", columns=("q", "k", "before", "balanced", "4 |C|"), rows=tuple(rows))
    return ClaimResult(ours=worst, baseline=0.0, seeds=tuple(ctx.seeds[:1]), details={"tables": [table]})


def small_steps_never_repair(ctx: ClaimContext) -> ClaimResult:
    """Drift of |W_q|^2 - |W_k|^2 over 100 steps of SGD, as a share of how far |W_q|^2 moved."""
    model = float64_llama(kv_heads=1, seed=ctx.seeds[0])
    layer = model.model.layers[0].self_attn
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def squares() -> tuple[float, float]:
        return float(layer.q_proj.weight.detach().square().sum()), float(layer.k_proj.weight.detach().square().sum())

    before = squares()
    _logits_over_steps(model, optimizer, 100)
    after = squares()
    drift = abs((after[0] - after[1]) - (before[0] - before[1]))
    return ClaimResult(ours=drift / abs(after[0] - before[0]), baseline=0.0, seeds=tuple(ctx.seeds[:1]))


def grouped_queries_start_apart(ctx: ClaimContext) -> ClaimResult:
    """Factor of W_q in a fresh model with six query heads to a key-value head, over layers and seeds."""
    found = []
    for seed in ctx.seeds:
        for rewrite in ctx.component("transform.wisca").apply(llama(seed=seed)):
            if rewrite.name.endswith("q/k"):
                found.append(float(rewrite.what.partition(",")[0].rpartition(" ")[2]))
    measured = mean_interval(found)
    return ClaimResult(ours=measured["value"], interval=measured["interval"], baseline=1.0, seeds=tuple(ctx.seeds))


def smollm2_computes_the_same(ctx: ClaimContext) -> ClaimResult:
    """Largest change of a logit of SmolLM2-135M on 1,024 tokens of text in float32, of the largest logit."""
    return ClaimResult(ours=_of_smollm2(ctx, "float32"), baseline=1e-5, seeds=tuple(ctx.seeds[:1]))


def smollm2_keeps_every_bit(ctx: ClaimContext) -> ClaimResult:
    """The same in bfloat16, where factors are powers of two."""
    return ClaimResult(ours=_of_smollm2(ctx, "bfloat16"), baseline=0.0, seeds=tuple(ctx.seeds[:1]))


def every_n_steps_beats_origin(ctx: ClaimContext) -> ClaimResult:
    """Held-out loss of rewriting every 50 steps minus that of no rewriting."""
    return _difference(ctx, "every 50 steps", "origin")


def init_beats_origin(ctx: ClaimContext) -> ClaimResult:
    """Held-out loss of rewriting at init minus that of no rewriting."""
    return _difference(ctx, "at init", "origin")


def beats_matched_learning_rates(ctx: ClaimContext) -> ClaimResult:
    """Held-out loss of rewriting every 50 steps minus that of matched learning rates, which rewrite nothing."""
    return _difference(ctx, "every 50 steps", "matched learning rates")


def control_coincides(ctx: ClaimContext) -> ClaimResult:
    """Mean distance of held-out losses between rewriting at init and matched learning rates, without clipping."""
    schedule = Schedule(**vars(SCHEDULES[ctx.scale]) | {"clip": float("inf")})
    arms = ("at init", "matched learning rates")
    outcomes = {arm: [_run(ctx, arm, 4e-3, seed, schedule) for seed in ctx.seeds] for arm in arms}
    gaps = [abs(a.loss - b.loss) for a, b in zip(*outcomes.values(), strict=True)]
    details = {"tables": [_table(ctx, outcomes)], "curves": [_curve(ctx, outcomes)]}
    return ClaimResult(ours=sum(gaps) / len(gaps), baseline=0.0, seeds=tuple(ctx.seeds), details=details)


def every_part_beats_origin(ctx: ClaimContext) -> ClaimResult:
    """The better of q/k alone and v/o alone minus no rewriting; all arms of the experiment in the details."""
    outcomes = _arms(ctx, tuple(ARMS))
    parts = ("q/k alone", "v/o alone")
    best = min(parts, key=lambda arm: sum(outcome.loss for outcome in outcomes[arm]))
    gains = [a.loss - b.loss for a, b in zip(outcomes[best], outcomes["origin"], strict=True)]
    return _result(ctx, gains, outcomes)


def llama(*, kv_heads: int = 1, seed: int = 0, **changes: Any) -> Any:
    """Return a fresh Llama of four layers, width 96 and six query heads, drawn without the global generator."""
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 6}
    config = LlamaConfig(**{**sizes, "num_key_value_heads": kv_heads, "vocab_size": 97, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def float64_llama(**options: Any) -> Any:
    """Return a Llama that computes in float64 throughout: transformers' own norm rounds to float32 inside."""
    model = llama(**options).double()
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, norm)
    return model


@torch.no_grad()
def _change(model: Any, rewrite: Callable[[], Any], tokens: Sequence[Tensor] = (TOKENS,)) -> float:
    before = [model(each, use_cache=False).logits for each in tokens]
    rewrite()
    moved = largest = 0.0
    for each, old in zip(tokens, before, strict=True):
        new = model(each, use_cache=False).logits
        moved, largest = max(moved, float((new - old).abs().max())), max(largest, float(old.abs().max()))
    return moved / largest


def _of_smollm2(ctx: ClaimContext, dtype: str) -> float:
    model, tokenizer = ctx.model("smollm2-135m-instruct", dtype=dtype)
    rows = ctx.data("data.pydoc", tokenizer, sequences=4, sequence_length=256, split="held-out")
    wisca = ctx.component("transform.wisca", up_down="tensor")
    return _change(model, lambda: wisca.apply(model), [row[None] for row in rows])


def _logits_over_steps(model: Any, optimizer: Any, steps: int) -> list[Tensor]:
    """Train on fixed tokens and return the logits before each step."""
    seen = []
    for _ in range(steps):
        logits = model(TOKENS, use_cache=False).logits
        seen.append(logits.detach())
        optimizer.zero_grad()
        functional.cross_entropy(logits[0, :-1], TOKENS[0, 1:]).backward()
        optimizer.step()
    return seen


def _sharpness(q: float, k: float, target: float) -> float:
    point = torch.tensor([q, k], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: (x[0] * x[1] - target) ** 2, point)
    return float(torch.linalg.eigvalsh(hessian).max())


def _difference(ctx: ClaimContext, ours: str, theirs: str) -> ClaimResult:
    outcomes = _arms(ctx, (ours, theirs))
    return _result(ctx, [a.loss - b.loss for a, b in zip(outcomes[ours], outcomes[theirs], strict=True)], outcomes)


def _result(ctx: ClaimContext, gains: Sequence[float], outcomes: dict[str, list[Outcome]]) -> ClaimResult:
    found = mean_interval(list(gains))
    return ClaimResult(
        ours=found["value"],
        interval=found["interval"],
        baseline=0.0,
        seeds=tuple(ctx.seeds),
        details={"tables": [_table(ctx, outcomes)], "curves": [_curve(ctx, outcomes)]},
    )


def _table(ctx: ClaimContext, outcomes: dict[str, list[Outcome]]) -> Table:
    rows = [(seed, *(arm[i].loss for arm in outcomes.values())) for i, seed in enumerate(ctx.seeds)]
    return Table(title="Held-out loss, nats per byte", columns=("seed", *outcomes), rows=tuple(rows))


def _curve(ctx: ClaimContext, outcomes: dict[str, list[Outcome]]) -> Curve:
    return Curve(
        title=f"Training loss, seed {ctx.seeds[0]}",
        across="step",
        up="nats per byte",
        x=tuple(range(SCHEDULES[ctx.scale].steps)),
        series={name: arm[0].curve for name, arm in outcomes.items()},
    )


def _arms(ctx: ClaimContext, names: Sequence[str]) -> dict[str, list[Outcome]]:
    """Each arm at its best learning rate, one run a seed; the sweep uses one more seed than is reported."""
    outcomes = {}
    schedule = SCHEDULES[ctx.scale]
    for name in names:
        best = 2 * _best_rate(ctx, "origin") if name == DOUBLED else _best_rate(ctx, name)
        outcomes[name] = [_run(ctx, name, best, seed, schedule) for seed in ctx.seeds]
        losses = ", ".join(f"{outcome.loss:.4f}" for outcome in outcomes[name])
        ctx.say(f"{name}: learning rate {best:g}, held-out loss {losses}")
    return outcomes


def _best_rate(ctx: ClaimContext, name: str) -> float:
    """The rate of the lowest loss on a seed that is not reported."""
    rates, sweep, schedule = RATES[ctx.scale], max(ctx.seeds) + 1, SCHEDULES[ctx.scale]
    return min(rates, key=lambda rate: _run(ctx, name, rate, sweep, schedule).loss) if len(rates) > 1 else rates[0]


_DONE: dict[tuple[Any, ...], Outcome] = {}  # claims of one process share their runs


def _run(ctx: ClaimContext, arm: str, rate: float, seed: int, schedule: Schedule) -> Outcome:
    model = SmallLlama(seed).to(ctx.device)
    optimizer = ctx.component("optimizer.adamw", model.named_parameters(), lr=rate)
    options = ARMS[arm]
    wisca = None if options is None else ctx.component("transform.wisca", **options)
    if wisca is not None:
        wisca.apply(model.model, (optimizer,))
    key = (ctx.scale, ctx.device, arm, rate, seed, schedule)
    if key not in _DONE:
        losses: list[float] = []

        def watch(step: int, loss: float) -> None:
            losses.append(loss)
            if wisca is not None and step + 1 < schedule.steps and wisca.due(step + 1):
                wisca.apply(model.model, (optimizer,))

        train(model, optimizer, _text(ctx, "train"), schedule, seed, watch)  # type: ignore[arg-type]
        loss = held_out_loss(model, _text(ctx, "held-out")[:HELD_OUT])  # type: ignore[arg-type]
        _DONE[key] = Outcome(loss, tuple(losses))
    return _DONE[key]


def _text(ctx: ClaimContext, split: str) -> Tensor:
    rows = ctx.data("data.pydoc", Bytes(), sequences=SEQUENCES, sequence_length=128, split=split)
    return torch.stack(list(rows)).to(ctx.device)
