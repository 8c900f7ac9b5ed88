"""Stacks that run in a second: a random Llama over bytes and a few lines of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import stackloom as sl
from stackloom.registry import open_registry
from stackloom.testing import tiny_tokenizer


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors are tiny: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        **sizes,
        **ends,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Twenty short chats."""
    path = tmp_path / "lines.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 1"}, {"role": "assistant", "content": str(i + 1)}]}
        for i in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def registry(tmp_path: Path):
    """A registry of its own."""
    with open_registry(home=tmp_path / "home") as opened:
        yield opened


Train = Callable[..., Any]


@pytest.fixture
def train(lines: Path) -> Train:
    """`train(steps=4, ...)`: a train stage over the lines."""

    def make(**options: Any) -> Any:
        defaults = {
            "data": sl.use("data.jsonl", path=str(lines), format="messages"),
            "optimizer": sl.use("optimizer.adamw", lr=1e-2),
            "steps": 6,
            "batch_size": 4,
            "micro_batch_size": 2,
            "sequence_length": 64,
            "checkpoint_every": 2,
        }
        return sl.train(**defaults | options)

    return make


@pytest.fixture
def planned(checkpoint: Path, registry) -> Callable[..., Any]:
    """`planned(stage, stage, ...)`: a plan on this CPU in float32."""

    def make(*stages: Any, name: str = "tiny", **resources: Any) -> Any:
        stack = sl.Stack(
            name,
            model=sl.use("model.hf", checkpoint=str(checkpoint)),
            stages=list(stages),
            **{"device": "cpu", "dtype": "float32"} | resources,
        )
        return stack.plan(catalogue=registry)

    return make
