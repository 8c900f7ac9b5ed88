"""`stackloom serve` as a process: it starts, drains, and refuses what it cannot serve."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import openai
import pytest
from typer.testing import CliRunner

from stackloom.cli import make_app
from stackloom.core.errors import ConfigError, StackloomError

LONG = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 1600, "pattern": "^[a-z]*$"}},
}
ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    found = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(found)
    tokenizer.save_pretrained(found)
    return found


@contextmanager
def process(folder, home, *arguments, **environment):
    """Start the server; yields (process, url) once it listens."""
    command = [sys.executable, "-m", "stackloom", "serve", str(folder), "--port", "0", "--dtype", "float32", *arguments]
    env = os.environ | {"STACKLOOM_HOME": str(home), "OMP_NUM_THREADS": "1", "STACKLOOM_API_KEY": ""} | environment
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as found:
        try:
            line = next(line for line in found.stderr if " at http" in line)
            yield found, re.search(r"http://\S+", line)[0]
        finally:
            found.kill()


def test_sigterm_ends_what_runs_and_takes_nothing_new(folder, tmp_path):
    with process(folder, tmp_path) as (found, url), openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=1500, stream=True, response_format=LONG
        )
        chunks = iter(stream)
        first = [next(chunks) for _ in range(3)]
        found.send_signal(signal.SIGTERM)
        rest = list(chunks)
        assert rest[-1].choices[0].finish_reason == "length"
        assert len(first) + len(rest) > 500
        assert found.wait(timeout=20) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_a_stream_that_outlives_the_grace_is_broken_off(folder, tmp_path):
    with process(folder, tmp_path, "--grace", "0") as (found, url):
        body = {"model": "tiny", "messages": ASK, "max_tokens": 2000, "stream": True, "response_format": LONG}
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=30) as answer:
            next(answer.iter_lines())
            found.send_signal(signal.SIGTERM)
            assert found.wait(timeout=20) == 0


def test_think_asks_a_served_model(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KEY", "secret")
    with process(folder, tmp_path, "--name", "mine", STACKLOOM_API_KEY="secret") as (_, url):
        arguments = ["think", "hi", "-e", url, "--api-key-env", "KEY", "--reasoner", "reasoner.single"]
        result = CliRunner().invoke(make_app(), [*arguments, "-o", "max_tokens=4"])
        assert "cut before its end" in str(result.exception)  # a random model never ends, which is what it is told
        refused = CliRunner().invoke(make_app(), [*arguments[:4], "--api-key-env", "NO_SUCH_VARIABLE"])
    assert "key" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["./no-such-folder"], "no folder"),
        (["gpt-5-pro"], "unknown checkpoint"),
        (["EMPTY"], "config.json"),
        (["DAMAGED"], ""),
        (["STACK"], "was not run"),
        (["FOLDER", "--host", "0.0.0.0"], "whoever reaches"),
        (["FOLDER", "--dtype", "int3"], "unknown dtype"),
        (["FOLDER", "--host", "192.0.2.1"], "cannot listen"),
    ],
)
def test_what_cannot_be_served_is_told(folder, arguments, says, tmp_path, monkeypatch):
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STACKLOOM_API_KEY", "x" if "192.0.2.1" in arguments else "")
    empty, damaged, stack = tmp_path / "empty", tmp_path / "damaged", tmp_path / "stack.yaml"
    empty.mkdir()
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    stack.write_text(
        "name: x\nmodel: {use: model.hf, checkpoint: smollm2-135m}\nstages: [{evaluate: {environment: {use: "
        "environment.arithmetic}}}]\n"
    )
    given = {"FOLDER": folder, "EMPTY": empty, "DAMAGED": damaged, "STACK": stack}
    result = CliRunner().invoke(make_app(), ["serve", *(str(given.get(word, word)) for word in arguments)])
    assert isinstance(result.exception, StackloomError)
    assert says in str(result.exception)


def test_a_taken_port_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    with process(folder, tmp_path) as (_, url):
        port = url.split(":")[2].split("/")[0]
        result = CliRunner().invoke(make_app(), ["serve", str(folder), "--port", port])
    assert isinstance(result.exception, ConfigError)
    assert "cannot listen" in str(result.exception)
