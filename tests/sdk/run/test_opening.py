"""A model is opened by what a user calls it: a folder, a run, or the stack that was run."""

from __future__ import annotations

import pytest
import torch
import yaml

import stackloom as sl
from stackloom.core.errors import ConfigError
from stackloom.core.generation import Request, Sampling
from stackloom.engine.engine import Engine
from stackloom.opening import open_checkpoint
from stackloom.run import runner
from stackloom.run.context import StageContext

RTN = {"use": "quantizer.rtn", "scheme": "w8a8", "group_size": "channel"}


def test_a_folder_opens_under_its_name(checkpoint, registry):
    name, model, tokenizer = open_checkpoint(str(checkpoint), registry, dtype="float32")
    assert name == checkpoint.name
    assert model.dtype == torch.float32
    assert tokenizer("a")["input_ids"]
    with pytest.raises(ConfigError, match="unknown dtype"):
        open_checkpoint(str(checkpoint), registry, dtype="int3")


def test_a_run_opens_with_what_its_stages_made(planned, train, registry, tmp_path):
    plan = planned(train(), sl.quantize(quantizer=RTN))
    made = runner.run(plan, registry, folder=tmp_path / "run")
    name, model, tokenizer = open_checkpoint(str(tmp_path / "run"), registry)
    assert name == plan.name
    last = StageContext("", plan, plan.stages[-1], "", tmp_path, tmp_path, tuple(made.stages), registry)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, last.load_model()[0](ids).logits)
    with Engine(model, tokenizer, end_tokens=()) as engine:
        assert len(engine.generate_all([Request((1, 2), Sampling(max_tokens=3))])[0].token_ids) == 3


def test_a_stack_opens_by_its_run_once_there_is_one(checkpoint, lines, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    stage = {
        "data": {"use": "data.jsonl", "path": str(lines), "format": "messages"},
        "optimizer": {"use": "optimizer.adamw", "lr": 1e-2},
        "steps": 1,
        "batch_size": 2,
        "micro_batch_size": 2,
        "sequence_length": 64,
    }
    model = {"use": "model.hf", "checkpoint": str(checkpoint)}
    path = tmp_path / "stack.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "model": model, "stages": [{"train": stage}]}))
    with pytest.raises(ConfigError, match="was not run"):
        open_checkpoint(str(path), registry)
    sl.Stack.from_file(path).plan().run()
    assert open_checkpoint(str(path), registry)[0] == "mine"
