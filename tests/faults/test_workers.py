"""kill -9 of one Ray worker in the middle of a step: the run recovers with the metrics of an undisturbed one."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import stackloom as sl
from stackloom.registry import open_registry
from stackloom.run import runner
from stackloom.testing import tiny_tokenizer

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'stackloom[ray]'"),
]
KILLS = int(os.environ.get("STACKLOOM_WORKER_KILLS", "1"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> sl.Stack:
    folder = tmp_path_factory.mktemp("workers")
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **ends, vocab_size=len(tokenizer), max_position_embeddings=256))
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    chats = [
        {"messages": [{"role": "user", "content": f"{i} + 1"}, {"role": "assistant", "content": f"{i + 1}"}]}
        for i in range(30)
    ]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return sl.Stack(
        "workers",
        model=sl.use("model.hf", checkpoint=str(folder / "checkpoint")),
        stages=[
            sl.train(
                data=sl.use("data.jsonl", path=str(folder / "lines.jsonl"), format="messages"),
                optimizer=sl.use("optimizer.adamw", lr=1e-2),
                steps=120,
                batch_size=4,
                sequence_length=64,
                checkpoint_every=10,
            )
        ],
        device="cpu",
        dtype="float32",
        workers=2,
    )


class Killer(runner.Display):
    """Kills a worker that Ray runs, KILLS times, some milliseconds after a step that the seed names."""

    def __init__(self, steps: list[int]) -> None:
        self.left, self.killed, self.resumed = steps, 0, list[str]()

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        if self.left and step >= self.left[0]:
            self.left.pop(0)
            time.sleep(random.Random(step).uniform(0, 0.02))
            workers = [
                int(path.name)
                for path in Path("/proc").glob("[0-9]*")
                if (path / "cmdline").exists() and b"ray::RayTrainWorker" in (path / "cmdline").read_bytes()
            ]
            os.kill(max(workers), signal.SIGKILL)
            self.killed += 1

    def say(self, line: str) -> None:
        if line.startswith("resuming at step"):
            self.resumed.append(line)


def test_a_run_whose_ray_worker_is_killed_ends_as_an_undisturbed_one(stack: sl.Stack, tmp_path: Path) -> None:
    with open_registry(home=tmp_path / "home") as registry:
        plan = stack.plan(catalogue=registry)
        killer = Killer(sorted(random.Random(0).sample(range(15, 100), KILLS)))
        cut = runner.run(plan, registry, folder=tmp_path / "cut", display=killer, executor="ray")
        whole = runner.run(plan, registry, folder=tmp_path / "whole", executor="ray")
        assert killer.killed == KILLS
        assert len(killer.resumed) == KILLS
        print(f"killed {killer.killed} workers; {', '.join(killer.resumed)}")
        curves = [
            [(metric.step, metric.value) for metric in registry.ledger.metrics(made.id, "loss")]
            for made in (cut, whole)
        ]
        assert curves[0] == curves[1]
        assert [step for step, _ in curves[0]] == list(range(1, 121))
        assert cut.stages[0].digest == whole.stages[0].digest
