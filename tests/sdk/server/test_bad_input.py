"""Bad input gets a 4xx that says what is wrong; afterwards the server is well and answers a good request."""

from __future__ import annotations

import json
import math
import socket
import time

import httpx
import pytest

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PLAIN = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
HEADERS = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
DEEP = "[" * 100_000
HALF = "\ud800"


def without(body, name):
    return {key: value for key, value in body.items() if key != name}


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


CHAT = {
    "temperature-nan": GOOD | {"temperature": math.nan},
    "temperature-infinite": GOOD | {"temperature": math.inf},
    "temperature-negative": GOOD | {"temperature": -1},
    "temperature-text": GOOD | {"temperature": "hot"},
    "top-p-zero": GOOD | {"top_p": 0},
    "top-k-negative": GOOD | {"top_k": -1},
    "min-p-above-one": GOOD | {"min_p": 1.5},
    "penalty-2-to-the-63": GOOD | {"presence_penalty": 2**63},
    "repetition-penalty-zero": GOOD | {"repetition_penalty": 0},
    "max-tokens-zero": GOOD | {"max_tokens": 0},
    "max-tokens-negative": GOOD | {"max_tokens": -1},
    "max-tokens-2-to-the-63": GOOD | {"max_tokens": 2**63},
    "max-tokens-above-the-limit": GOOD | {"max_tokens": 601},
    "max-tokens-fraction": GOOD | {"max_tokens": 1.5},
    "max-tokens-twice": GOOD | {"max_completion_tokens": 2},
    "n-zero": GOOD | {"n": 0},
    "n-large": GOOD | {"n": 65},
    "seed-2-to-the-63": GOOD | {"seed": 2**63},
    "stop-empty": GOOD | {"stop": ""},
    "stops-many": GOOD | {"stop": ["x"] * 17},
    "top-logprobs-alone": GOOD | {"top_logprobs": 3},
    "top-logprobs-many": GOOD | {"logprobs": True, "top_logprobs": 21},
    "unknown-option": GOOD | {"temprature": 1},
    "no-model": without(GOOD, "model"),
    "no-messages": without(GOOD, "messages"),
    "messages-empty": GOOD | {"messages": []},
    "messages-text": GOOD | {"messages": "hi"},
    "messages-nested": GOOD | {"messages": [[{"role": "user", "content": "hi"}]]},
    "role-unknown": GOOD | {"messages": [{"role": "boss", "content": "hi"}]},
    "content-number": GOOD | {"messages": [{"role": "user", "content": 5}]},
    "content-image": GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "content-half-a-character": GOOD | {"messages": [{"role": "user", "content": "\ud800"}]},
    "name-half-a-character": GOOD | {"messages": [{"role": "tool", "content": "x", "name": "\udfff"}]},
    "call-without-function": GOOD | {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
    "prompt-beyond-the-context": GOOD | {"messages": [{"role": "user", "content": "x" * 5000}]},
    "tool-name": GOOD | {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
    "tool-type": GOOD | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
    "tool-twice": GOOD | {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
    "tool-choice-unknown": GOOD | {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    "tool-choice-without-tools": GOOD | {"tool_choice": "required"},
    "tool-half-a-character": GOOD | {"tools": [{"type": "function", "function": {"name": "f", "description": HALF}}]},
    "schema-missing": GOOD | {"response_format": {"type": "json_schema"}},
    "grammar-invalid": GOOD | schema({"type": "nonsense"}),
    "grammar-unsatisfiable": GOOD | schema({"type": "string", "minLength": 5, "maxLength": 1}),
    "grammar-remote": GOOD | schema({"$ref": "http://127.0.0.1:1/x"}),
    "grammar-pattern": GOOD | schema({"type": "string", "pattern": "("}),
    "grammar-half-a-character": GOOD | schema({"const": "\ud800"}),
    "stream-options-alone": GOOD | {"stream_options": {}},
    "heavy-and-n": GOOD | {"heavy": {}, "n": 2},
    "heavy-width": GOOD | {"heavy": {"width": -1}},
    "heavy-nan": GOOD | {"heavy": {"temperature": math.nan}},
    "heavy-deadline": GOOD | {"heavy": {"deadline_s": 1}},
    "heavy-last-message": GOOD | {"heavy": {}, "messages": [{"role": "assistant", "content": "hi"}]},
    "body-list": [],
    "body-text": "hi",
    "body-null": None,
}
TEXT = {
    "prompt-empty": PLAIN | {"prompt": ""},
    "prompt-no-tokens": PLAIN | {"prompt": []},
    "prompt-no-token-in-one": PLAIN | {"prompt": [[]]},
    "prompt-negative": PLAIN | {"prompt": [-1]},
    "prompt-unknown-token": PLAIN | {"prompt": [260]},
    "prompt-2-to-the-63": PLAIN | {"prompt": [2**63]},
    "prompt-mixed": PLAIN | {"prompt": ["a", 1]},
    "prompt-nested": PLAIN | {"prompt": [[[1]]]},
    "prompts-many": PLAIN | {"prompt": ["a"] * 65},
    "prompt-half-a-character": PLAIN | {"prompt": "\ud800"},
    "choices-many": PLAIN | {"prompt": ["a"] * 33, "n": 2},
    "echo": PLAIN | {"echo": True},
    "logprobs-negative": PLAIN | {"logprobs": -1},
}
RAW = {
    "empty": b"",
    "no-json": b"{",
    "no-utf8": b'{"model": "\xff"}',
    "deep": DEEP.encode(),
    "deep-within": json.dumps(GOOD | {"heavy": {"x": 1}}).replace("1", DEEP).encode(),
    "digits": json.dumps(GOOD).replace("2", "9" * 5000).encode(),
}
REQUESTS = (
    [("chat/completions", name, json.dumps(body).encode()) for name, body in CHAT.items()]
    + [("completions", name, json.dumps(body).encode()) for name, body in TEXT.items()]
    + [(path, name, body) for path in ("chat/completions", "completions") for name, body in RAW.items()]
)


@pytest.fixture(scope="module")
def http(endless):
    client, _ = endless
    with httpx.Client(base_url=str(client.base_url), headers=HEADERS, timeout=30) as found:
        yield found


def well(http):
    """Whether the server is healthy and answers a good request."""
    assert http.get(str(http.base_url).replace("/v1/", "/health")).json()["status"] == "ok"
    assert http.post("chat/completions", json=GOOD).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("path", "name", "body"), REQUESTS, ids=[f"{path}-{name}" for path, name, _ in REQUESTS])
def test_bad_requests_are_told_what_is_wrong(http, path, name, body):
    answer = http.post(path, content=body)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    well(http)


@pytest.mark.parametrize("size", [300_001, 10 * 1024**2])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_beyond_the_limit_are_not_read(http, size, chunked):
    body = json.dumps(GOOD | {"messages": [{"role": "user", "content": "x" * size}]}).encode()
    try:
        answer = http.post(
            "chat/completions",
            content=(body[at : at + 65_536] for at in range(0, len(body), 65_536)) if chunked else body,
        )
    except httpx.TransportError:  # refused while it was still sent
        answer = None
    assert answer is None or answer.status_code == 413
    well(http)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "chat/completions", 405), ("POST", "nowhere", 404), ("GET", "models/x", 404), ("POST", "models", 405)],
)
def test_other_routes_are_refused_in_the_same_form(http, method, path, status):
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_another_model_is_not_served(http):
    answer = http.post("chat/completions", json=GOOD | {"model": "gpt-4"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_full_queue_asks_to_come_back(http):
    long = GOOD | {"n": 20, "max_tokens": 400, "stream": True}
    with http.stream("POST", "chat/completions", json=long) as running:
        next(line for line in running.iter_lines() if line and '"role"' not in line)
        answer = http.post("chat/completions", json=GOOD | {"n": 8})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    while http.post("chat/completions", json=GOOD).status_code == 429:
        time.sleep(0.01)
    well(http)


def test_a_connection_that_sends_half_a_request_harms_nobody(http):
    with socket.create_connection((http.base_url.host, http.base_url.port)) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n")
        half.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    well(http)


def test_an_error_while_streaming_is_the_streams_last_event(http, endless, monkeypatch):
    _, serving = endless
    step = serving.engine._batch.runner.step

    def broken(ids, rows):
        raise OSError("out of order")

    monkeypatch.setattr(serving.engine._batch.runner, "step", broken)
    text = http.post("chat/completions", json=GOOD | {"stream": True}).text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    assert "out of order" not in text  # what broke inside is for the log
    whole = http.post("chat/completions", json=GOOD)
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "internal_error")
    monkeypatch.setattr(serving.engine._batch.runner, "step", step)
    well(http)
