"""`stackloom bench pipeline`: a step of the train stage against the same step written by hand in plain torch.

The stage runs as a run does: plan, ledger, packing, checks. Each time it reports a step, the hand-written loop does the
same step on a copy of the model, so that the two alternate A B A B in one process. No row is returned unless both had
the same loss at every step. Checkpoints and the artifact, which are no part of a step, are not timed.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from stackloom.core import planning
from stackloom.core.devices import find_device
from stackloom.core.errors import EngineError
from stackloom.core.stack import StackSpec
from stackloom.plugins.data.jsonl.config import JsonlConfig
from stackloom.plugins.model.hf.config import HFConfig
from stackloom.registry import open_registry
from stackloom.registry.discovery import unmet
from stackloom.run import runner
from stackloom.run.batches import Batches
from stackloom.testing import llama_shape, tiny_llama, tiny_tokenizer

BAR = 1 / 1.02  # hand-written time over ours: at most 2 per cent of a step
WARM_UP = 3
LOSS_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}  # relative; rounding of a mean and of a sum over tokens
LEARNING_RATE, DECAY, BETAS, EPS, CLIP = 1e-4, 0.1, (0.9, 0.95), 1e-8, 1.0


@dataclass(frozen=True)
class Case:
    """One size to measure.

    Attributes:
        name: what the row calls it.
        checkpoint: a checkpoint's name, or the sizes of a random Llama.
        dtype: compute dtype.
        batch, length: sequences of a step and tokens of each.
        steps: how many are timed; twice: by the stage and by hand.
        bar: least ratio; None for a size that only shows the overhead.
    """

    name: str
    checkpoint: str | dict[str, int]
    dtype: str
    batch: int
    length: int
    steps: int
    bar: float | None = None


TINY = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 128}
SMALL = {"layers": 6, "hidden": 256, "heads": 8, "kv_heads": 4, "head_dim": 32, "intermediate": 768}
CASES = (
    Case("tiny Llama", TINY, "float32", 2, 64, 200),
    Case("small Llama", SMALL, "float32", 4, 128, 60),
    Case("SmolLM2-135M", "smollm2-135m-instruct", find_device("cpu").dtype, 1, 256, 30, BAR),
)


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure every case, or the tiny one with a tenth of the steps, and return a row for each.

    Raises:
        ArtifactError: the checkpoint is not installed.
        EngineError: the two loops disagree; nothing is returned.
    """
    return [measure(CASES[0], CASES[0].steps // 10)] if quick else [measure(case, case.steps) for case in CASES]


def measure(case: Case, steps: int) -> dict[str, Any]:
    """Measure one case.

    Raises:
        EngineError: the losses differ by more than rounding.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        pair = Pair(case, steps, Path(home))
    relative = max(abs(a - b) / abs(b) for a, b in zip(*pair.losses, strict=True))
    if not relative <= LOSS_ERROR[case.dtype]:
        raise EngineError(
            f"not measured: the losses of the stage and of the hand-written loop differ by {relative:.1e}",
            where=f"pipeline, {case.name}",
        )
    ours, hand = (times[WARM_UP:] for times in pair.seconds)
    ratio = statistics.median(b / a for a, b in zip(ours, hand, strict=True))
    return {
        "name": "pipeline",
        "case": f"{case.name} {case.dtype}, {case.batch} x {case.length} tokens a step, AdamW",
        "ratio": round(ratio, 4),
        "bar": None if case.bar is None else round(case.bar, 4),
        "met": None if case.bar is None else ratio >= case.bar,
        "floor_fraction": None,
        "error": relative,
        "device": find_device("cpu").title,
        "milliseconds": round(1e3 * statistics.median(ours), 3),
        "baseline_milliseconds": round(1e3 * statistics.median(hand), 3),
        "overhead_milliseconds": round(1e3 * statistics.median(a - b for a, b in zip(ours, hand, strict=True)), 3),
        "spread": round(statistics.median(abs(a / b - 1) for a, b in pairwise(hand)), 4),
        "runs": len(ours),
        "took_seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


class Pair(runner.Display):
    """Runs the stage, and from within it, step by step, the hand-written loop.

    Args:
        case: what to run.
        steps: how many steps to time after the warm-up.
        home: for the model, the data, the registry and the run.

    Attributes:
        seconds, losses: per step, of the stage and of the loop.
    """

    def __init__(self, case: Case, steps: int, home: Path) -> None:
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.losses: tuple[list[float], list[float]] = ([], [])
        self._steps = steps + WARM_UP
        checkpoint, data = _checkpoint(case, home), _data(case, home)
        with open_registry(home=home / "registry") as registry:
            plan = planning.plan(_stack(case, checkpoint, data, self._steps), registry, device="cpu", unmet=unmet)
            self._hand = _hand_written(case, checkpoint, data, self._steps, plan.stages[0].seed)
            self._clock = time.perf_counter()
            runner.run(plan, registry, folder=home / "run", display=self)

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """The stage did a step: note its time, then do the same step by hand."""
        self.seconds[0].append(time.perf_counter() - self._clock)
        self.losses[0].append(values["loss"])
        start = time.perf_counter()
        self.losses[1].append(self._hand(step - 1))
        self._clock = time.perf_counter()
        self.seconds[1].append(self._clock - start)


def _stack(case: Case, checkpoint: str, data: Path, steps: int) -> StackSpec:
    optimizer = {"lr": LEARNING_RATE, "weight_decay": DECAY, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
    train = {
        "data": {"use": "data.jsonl", "path": str(data), "format": "text"},
        "optimizer": {"use": "optimizer.adamw", **optimizer},
        "steps": steps,
        "batch_size": case.batch,
        "micro_batch_size": 1,
        "sequence_length": case.length,
        "schedule": "constant",
        "clip_norm": CLIP,
        "checkpoint_every": steps + 1,
    }
    return StackSpec.from_data(
        {
            "name": "pipeline",
            "resources": {"device": "cpu", "dtype": case.dtype},
            "model": {"use": "model.hf", "checkpoint": checkpoint},
            "stages": [{"train": train}],
        }
    )


def _checkpoint(case: Case, home: Path) -> str:
    if isinstance(case.checkpoint, str):
        return case.checkpoint
    tokenizer = tiny_tokenizer()
    tiny_llama(llama_shape(**case.checkpoint, vocab=len(tokenizer))).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    return str(home / "model")


def _data(case: Case, home: Path) -> Path:
    """Write examples that each fill a sequence, so that packing has nothing to save."""
    draw, path = random.Random(0), home / "text.jsonl"
    rows = [{"text": " ".join(str(draw.randrange(10**6)) for _ in range(case.length))} for _ in range(64)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _hand_written(case: Case, checkpoint: str, data: Path, steps: int, seed: int) -> Callable[[int], float]:
    """Return a function that does step `i` and returns its loss; batches are ready before the first."""
    source = HFConfig(checkpoint=checkpoint).build()
    model = source.load(device="cpu", dtype=case.dtype).train()
    examples = JsonlConfig(path=str(data), format="text").build(source.tokenizer())
    batches = Batches(examples, sequence_length=case.length, batch_size=case.batch, seed=seed)
    ready: list[list[Tensor]] = [[row.input_ids[None] for row in batches.rows(step)] for step in range(steps)]
    parameters = [parameter.requires_grad_(True) for parameter in model.parameters()]
    groups = [
        {"params": [part for part in parameters if (part.ndim >= 2) is matrix], "weight_decay": decay}
        for matrix, decay in ((True, DECAY), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS)

    def step(index: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        rows, loss = ready[index], 0.0
        for ids in rows:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            part = F.cross_entropy(logits.float(), ids[0, 1:]) / len(rows)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss

    return step
