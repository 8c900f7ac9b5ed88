"""A tiny run with all that a report shows: training is real, what the later stages measure is made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import stackloom as sl
from stackloom.artifacts import Artifact, Card, read, writing
from stackloom.core import statistics
from stackloom.core.rows import EvidenceRow
from stackloom.registry import open_registry
from stackloom.report import write_report
from stackloom.run import evaluate, quantize, runner
from stackloom.testing import tiny_tokenizer

HOSTILE = '<script>alert("task")</script>'
KINDS = {"add": 12, "multiply": 12, HOSTILE: 6}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The tensors are tiny: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the checkpoint, the data and the registry of the package's runs."""
    folder = tmp_path_factory.mktemp("report")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 1"}, {"role": "assistant", "content": str(i + 1)}]}
        for i in range(20)
    ]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="package")
def registry(home: Path) -> Iterator[Any]:
    """A registry of its own."""
    with open_registry(home=home / "home") as opened:
        yield opened


Planned = Callable[..., Any]


@pytest.fixture(scope="package")
def planned(home: Path, registry: Any) -> Planned:
    """`planned("name", sl.train(...), ...)`: a plan on this CPU; `text()` and `train()` make its parts."""

    def make(name: str, *stages: Any) -> Any:
        model = sl.use("model.hf", checkpoint=str(home / "checkpoint"))
        stack = sl.Stack(name, model=model, stages=list(stages), device="cpu", dtype="float32")
        return stack.plan(catalogue=registry)

    return make


@pytest.fixture(scope="package")
def text(home: Path) -> Any:
    """The data of every stage."""
    return sl.use("data.jsonl", path=str(home / "lines.jsonl"), format="messages")


@pytest.fixture(scope="package")
def train(text: Any) -> Any:
    """A train stage of eight steps."""
    return sl.train(
        data=text,
        optimizer=sl.use("optimizer.adamw", lr=1e-2),
        steps=8,
        batch_size=4,
        micro_batch_size=2,
        sequence_length=64,
        checkpoint_every=3,
    )


def metrics(share: float) -> dict[str, Any]:
    """What an evaluate stage writes, with about this share of tasks passed."""
    tasks = {
        f"{kind}-{index}": {"kind": kind, "passed": index < share * count, "valid": index != count - 1}
        for kind, count in KINDS.items()
        for index in range(count)
    }
    counted = {kind: [task for task in tasks.values() if task["kind"] == kind and task["valid"]] for kind in KINDS}
    passed = {kind: [task["passed"] for task in found] for kind, found in counted.items()}
    call = {"name": "add", "arguments": {"a": HOSTILE, "b": 2}, "id": "1"}
    messages = [
        {"role": "user", "content": f"What is 1 + 2? {HOSTILE}", "tool_calls": [], "tool_call_id": "", "name": ""},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call], "tool_call_id": "", "name": ""},
        {"role": "tool", "content": "3", "tool_calls": [], "tool_call_id": "1", "name": "add"},
        {"role": "assistant", "content": "3 " * 3000, "tool_calls": [], "tool_call_id": "", "name": ""},
    ]
    return {
        "pass_rate": statistics.pass_rate([ok for found in passed.values() for ok in found]),
        "by_kind": {kind: statistics.pass_rate(found) for kind, found in passed.items()},
        "masked": 3,
        "tokens": 43210,
        "tasks": tasks,
        "transcripts": [
            {"task": task, "messages": messages, "reward": {"value": 0.5, "valid": True, "reason": HOSTILE}}
            for task in list(tasks)[:20]
        ],
        "perplexity": {"value": 12.5, "interval": [11.25, 13.75], "sequences": 8, "nll": [2.5] * 8},
        "against_float": {
            "kl": {"value": 0.125, "interval": [0.1, 0.15], "count": 88},
            "nll_difference": {"value": -0.01, "interval": [-0.03, 0.01], "count": 88},
            "agreement": statistics.pass_rate([True] * 66 + [False] * 22),
        },
        "cloze": statistics.pass_rate([True] * 9 + [False] * 11) | {"chance": 0.25},
    }


def layers() -> list[dict[str, Any]]:
    """What a quantize stage writes; one layer has no error at all."""
    names = [f"model.layers.{block}.mlp.{part}" for block in range(12) for part in ("gate", "up", "down")]
    return [
        {
            "name": name,
            "scheme": "W4 g64",
            "snr_db": float("inf") if place == 5 else 21.0 - (place * 7 % 5) - (6.5 if place == 17 else 0),
            "bytes_before": 3072 * 576,
            "bytes_after": 3072 * 156,
        }
        | ({"strategy": "equalized, static", "activation_range": 31.7, "output_error": 0.015} if place == 3 else {})
        for place, name in enumerate(names)
    ]


def evaluated(ctx: Any) -> Artifact:
    """Stand in for the evaluate stage."""
    found = metrics({1: 0.2, 3: 0.8}.get(ctx.stage.index, 0.7))
    ctx.metrics(1, {"pass_rate": found["pass_rate"]["value"]})
    with writing(ctx.target, Card(kind="metrics", key=ctx.key, made_by="evaluate")) as folder:
        (folder / "metrics.json").write_text(json.dumps(found))
    return read(ctx.target)


def quantized(ctx: Any) -> Artifact:
    """Stand in for the quantize stage."""
    ctx.metrics(1, {"layers": 36.0})
    with writing(ctx.target, Card(kind="quantized", key=ctx.key, made_by="quantize")) as folder:
        (folder / "layers.json").write_text(json.dumps(layers()))
    return read(ctx.target)


@pytest.fixture(scope="package")
def finished(home: Path, registry: Any, planned: Planned, text: Any, train: Any) -> Path:
    """The folder of a finished run of five stages: train, evaluate, quantize, evaluate, evaluate."""
    test, small = sl.stage("evaluate", data=text), sl.stage("quantize", quantizer=sl.use("quantizer.rtn"))
    plan = planned("tiny-agent", train, test, small, test, test)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluate, "run", evaluated)
        patched.setattr(quantize, "run", quantized)
        folder = runner.run(plan, registry, folder=home / "run").folder
    row = EvidenceRow(
        plugin="optimizer.adamw", claim="decoupled_decay", scale="cpu", verdict="reproduced", paper=None, ours=0.25,
        unit="nats", interval=(0.2, 0.3), seeds=(1, 2), seconds=3.0, device="cpu", versions={}, commit="abc",
        date="2025-01-02T03:04:05+00:00",
    )  # fmt: skip
    registry.evidence.append(row)
    return folder


@pytest.fixture(scope="package")
def page(finished: Path, registry: Any) -> str:
    """The finished run's report."""
    return write_report(finished, registry).read_text(encoding="utf-8")
