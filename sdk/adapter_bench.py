"""`stackloom bench adapter`: a training step with AFA-LoRA against PEFT's LoRA, and a forward pass after the merge.

Both adapters hold the same matrices on copies of one model, and take their steps in turn. No row is returned unless
their losses agree at beta 0.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from stackloom.core.devices import find_device
from stackloom.core.errors import EngineError
from stackloom.plugins.adapter.afa_lora.config import AfaLoRAConfig
from stackloom.testing import llama_shape, tiny_llama

# The second is SmolLM2's layer and is held to the bars; in the first Python's time per layer is not yet hidden.
SMALL = {"layers": 2, "hidden": 288, "heads": 9, "kv_heads": 3, "head_dim": 32, "intermediate": 768, "vocab": 512}
WIDE = {"layers": 1, "hidden": 576, "heads": 9, "kv_heads": 3, "head_dim": 64, "intermediate": 1536, "vocab": 512}
LENGTH, RANK, ALPHA = 256, 8, 16
STEPS = 30
STEP_BAR = 1 / 1.05  # PEFT's time over ours
MERGED_BAR = 1.0
LOSS_ERROR = 1e-5  # relative, float32
STAGES = {"beta 1": (0, 11), "beta 0": (10, 11)}  # step and steps that give it, with rho 1


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure training steps at both ends of beta and the merged model, at two sizes, in float32.

    Args:
        quick: the small size alone, and a tenth of the steps.

    Raises:
        EngineError: the two adapters disagree at beta 0; nothing is returned.
    """
    rows = measure(SMALL, 1, STEPS // 10 if quick else STEPS, barred=False)
    return rows if quick else rows + measure(WIDE, 2, STEPS, barred=True)


def measure(sizes: dict[str, int], batch: int, steps: int, *, barred: bool) -> list[dict[str, Any]]:
    """Measure one size.

    Args:
        sizes: of a random Llama.
        batch: sequences of a step.
        steps: how many of each are timed.
        barred: whether the rows are held to the bars.

    Raises:
        EngineError: the two adapters disagree at beta 0.
    """
    shape = llama_shape(**sizes)
    size = f"{shape.layers} x {shape.hidden}, rank {RANK}, {batch} x {LENGTH} tokens, float32"
    base = tiny_llama(shape).train()
    for parameter in base.parameters():
        parameter.data.mul_(0.2)  # a deviation of 0.02, as such models have
    tokens = torch.randint(0, shape.vocab, (batch, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = []
    for activation, stages in (("relu", ("beta 1",)), ("silu", ("beta 1", "beta 0"))):
        config = AfaLoRAConfig(rank=RANK, alpha=ALPHA, activation=activation, rho=1.0)
        peft_config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(config.targets), task_type="CAUSAL_LM")
        theirs = get_peft_model(copy.deepcopy(base), peft_config)
        model, adapter = copy.deepcopy(base), config.build()
        adapter.inject(model, seed=0)
        _copy_matrices(theirs, model)
        adapter.on_step(*STAGES["beta 0"])
        error = abs(_loss(model, tokens) / _loss(theirs, tokens) - 1)
        if not error <= LOSS_ERROR:
            raise EngineError(f"not measured: the losses at beta 0 differ by {error:.1e}", where="adapter")
        ours, baseline = _stepper(model, tokens), _stepper(theirs, tokens)
        for name in stages:
            adapter.on_step(*STAGES[name])
            case = f"training step, {activation}, {name}, {size}"
            rows.append(_row(case, ours, baseline, steps, STEP_BAR if barred else None, error))
    adapter.merge(model)
    pair = _forward(model, tokens), _forward(theirs.merge_and_unload(), tokens)
    rows.append(_row(f"forward after the merge, {size}", *pair, steps, MERGED_BAR if barred else None, error))
    return rows


@torch.no_grad()
def _copy_matrices(theirs: Any, ours: Any) -> None:
    """Draw PEFT's B, which is zero, and give both adapters the same matrices."""
    generator = torch.Generator().manual_seed(1)
    values = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            values[name.removeprefix("base_model.model.").replace(".default", "")] = parameter
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(values[name])


@torch.no_grad()
def _loss(model: Any, tokens: Tensor) -> float:
    return float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)


def _stepper(model: Any, tokens: Tensor) -> Callable[[], None]:
    """Forward, backward and an AdamW step whose rate is 0, so that every step does the same work."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()

    return step


def _forward(model: Any, tokens: Tensor) -> Callable[[], None]:
    model.eval()

    @torch.no_grad()
    def forward() -> None:
        model(input_ids=tokens, use_cache=False)

    return forward


def _row(
    case: str, ours: Callable[[], None], baseline: Callable[[], None], steps: int, bar: float | None, error: float
) -> dict[str, Any]:
    """Time baseline, ours, baseline in turn; `spread` is the baseline against itself, and forgives as much of a bar."""
    turns = (baseline, ours, baseline)
    seconds: list[list[float]] = [[], [], []]
    for call in turns:
        call()
    for _ in range(steps):
        for call, series in zip(turns, seconds, strict=True):
            start = time.perf_counter()
            call()
            series.append(time.perf_counter() - start)
    first, mine, second = map(statistics.median, seconds)
    both = statistics.median(seconds[0] + seconds[2])
    spread = abs(first - second) / second
    return {
        "name": "adapter",
        "case": case,
        "ratio": round(both / mine, 4),
        "bar": None if bar is None else round(bar, 4),
        "met": None if bar is None else both / mine >= bar - spread,
        "floor_fraction": None,
        "error": error,
        "device": find_device("cpu").title,
        "baseline": "peft LoRA",
        "milliseconds": round(1e3 * mine, 3),
        "baseline_milliseconds": round(1e3 * both, 3),
        "spread": round(spread, 4),
        "runs": steps,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "peft": version("peft")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
