"""kill -9 at random moments of a run: it always resumes, and ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stackloom.artifacts import read
from stackloom.testing import tiny_tokenizer

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("STACKLOOM_RUN_KILLS", "3"))
STACK = """
name: killed
resources: {{device: cpu, dtype: float32}}
model: {{use: model.hf, checkpoint: {checkpoint}}}
stages:
  - train:
      data: {{use: data.jsonl, path: {lines}, format: messages}}
      optimizer: {{use: optimizer.muon, lr: 1e-2}}
      steps: 150
      batch_size: 4
      sequence_length: 64
      checkpoint_every: 10
  - train:
      data: {{use: data.jsonl, path: {lines}, format: messages}}
      adapter: {{use: adapter.lora, rank: 4}}
      optimizer: {{use: optimizer.adamw, lr: 1e-3}}
      steps: 150
      batch_size: 4
      sequence_length: 64
      checkpoint_every: 10
  - quantize: {{quantizer: {{use: quantizer.gptq}}, data: {{use: data.jsonl, path: {lines}, format: messages}},
      calibration_sequences: 8, sequence_length: 64}}
  - evaluate: {{data: {{use: data.jsonl, path: {lines}, format: messages}}, sequences: 8, sequence_length: 64}}
  - export: {{dtype: float32}}
"""
STAGES = ("0-train", "1-train", "2-quantize", "3-evaluate", "4-export")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
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
    path = folder / "stack.yaml"
    path.write_text(STACK.format(checkpoint=folder / "checkpoint", lines=folder / "lines.jsonl"))
    return path


def start(stack: Path, run: Path, show: str = "--quiet") -> subprocess.Popen[bytes]:
    environment = os.environ | {"STACKLOOM_HOME": str(stack.parent / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stackloom", "run", str(stack), "--folder", str(run), show]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=pipe, stderr=pipe)


def finish(stack: Path, run: Path) -> list[str]:
    process = start(stack, run)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    return digests(run)


def digests(run: Path) -> list[str]:
    return [read(run / name).digest for name in STAGES]


def test_a_run_killed_inside_each_stage_ends_with_the_same_bits(stack: Path, tmp_path: Path) -> None:
    whole = finish(stack, tmp_path / "whole")
    for index, name in enumerate(STAGES):
        process = start(stack, tmp_path / "cut", "--json")
        assert process.stdout is not None
        running = (json.loads(line) for line in process.stdout)
        assert any(event.get("index") == index and event.get("state") == "running" for event in running)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "cut" / name).exists()
        assert all(read(tmp_path / "cut" / earlier) for earlier in STAGES[:index])
    assert finish(stack, tmp_path / "cut") == whole


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(stack: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    whole = finish(stack, tmp_path / "whole")
    seconds = time.monotonic() - begin
    draw = random.Random(0)
    killed, tries = 0, 0
    while killed < KILLS and tries < 4 * KILLS:
        tries += 1
        process = start(stack, tmp_path / "cut")
        try:
            process.wait(timeout=draw.uniform(0.2, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        else:  # it finished before the kill, which it may do on a machine whose load changes
            assert process.returncode == 0
            assert digests(tmp_path / "cut") == whole
            shutil.rmtree(tmp_path / "cut")
            continue
        for target in (tmp_path / "cut").glob("[0-9]-*"):
            if not target.name.endswith(".work"):
                read(target)  # what is there is whole
    assert finish(stack, tmp_path / "cut") == whole
    print(f"killed {killed} times in {tries} tries, {seconds:.0f} s undisturbed")
    assert killed >= 1
