"""The verbs on a run: what a user types after `plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
STACK = """
name: tiny
resources: {{device: cpu, dtype: float32}}
model: {{use: model.hf, checkpoint: {checkpoint}}}
stages:
  - train:
      adapter: {{use: adapter.lora, rank: 4}}
      data: {{use: data.jsonl, path: {lines}, format: messages}}
      optimizer: {{use: optimizer.adamw, lr: 1e-2}}
      steps: {steps}
      batch_size: 4
      sequence_length: 64
  - quantize: {{quantizer: {{use: quantizer.rtn, scheme: w8a8}}}}
  - evaluate: {{data: {{use: data.jsonl, path: {lines}, format: messages}}, sequences: 4, sequence_length: 32}}
trackers: [tracker.jsonl]
"""


@pytest.fixture
def stack(checkpoint: Path, lines: Path, tmp_path: Path):
    """`stack(steps)` writes a stack file over a random Llama."""

    def make(steps: int) -> str:
        path = tmp_path / f"stack-{steps}.yaml"
        path.write_text(STACK.format(checkpoint=checkpoint, lines=lines, steps=steps))
        return str(path)

    return make


def test_run_resume_diff_report_and_export(stackloom, stack, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    done = stackloom("run", stack(3), "--folder", first)
    assert done.returncode == 0, done.stderr
    assert "done in" in done.stdout
    assert f"stackloom resume {first}" in done.stdout
    assert (Path(first) / "report.html").stat().st_size > 10_000
    assert (Path(first) / "metrics.jsonl").read_text().count('"loss"') == 3

    again = stackloom("resume", first, "--json")
    states = [json.loads(line) for line in again.stdout.splitlines()]
    assert [event["state"] for event in states if event["event"] == "stage"] == ["skipped"] * 3

    assert stackloom("run", stack(6), "--folder", second, "--quiet").stdout == ""
    compared = json.loads(stackloom("diff", first, second, "--json").stdout)
    assert compared["plan"]["stages[0].options.steps"] == [3, 6]
    assert len(compared["metrics"]["2"]["perplexity"]) == 2

    assert stackloom("report", first).returncode == 0
    target = tmp_path / "exported"
    exported = stackloom("export", first, str(target), "--dtype", "float32")
    assert exported.returncode == 0, exported.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(target)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    assert AutoTokenizer.from_pretrained(target).encode("a")


@pytest.mark.parametrize(
    "arguments", ["resume nowhere", "report nowhere", "diff nowhere nowhere", "export nowhere here"]
)
def test_a_folder_that_is_no_run_is_a_config_error(stackloom, arguments: str) -> None:
    refused = stackloom(*arguments.split())
    assert refused.returncode == 1
    assert "is no run folder" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_whose_checkpoint_is_missing_stops_before_it_begins(stackloom, stack, tmp_path: Path) -> None:
    path = Path(stack(1))
    path.write_text(path.read_text().replace("checkpoint: /", "checkpoint: /nowhere/"))
    refused = stackloom("run", str(path), "--folder", str(tmp_path / "run"))
    assert refused.returncode == 1
    assert "error: model" in refused.stderr
    assert not (tmp_path / "run").exists()
