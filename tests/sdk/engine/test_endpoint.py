"""`ChatEndpoint` against a server on loopback: the agent loop plays a world through it."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ContextFull, Sampling
from stackloom.engine.endpoint import ChatEndpoint, EndpointError
from stackloom.environments.agent_loop import play_chat
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig


@pytest.fixture
def server():
    """Serve what `script` holds, one (status, body) per request; requests are kept."""

    class Handler(BaseHTTPRequestHandler):
        script, seen = [], []

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            self.seen.append((self.path, dict(self.headers), json.loads(self.rfile.read(length))))
            status, body = self.script[min(len(self.seen), len(self.script)) - 1]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{found.server_port}/v1"
    yield Handler
    found.shutdown()
    found.server_close()


def reply(message, finish="stop"):
    return 200, {
        "choices": [{"message": message.to_openai(), "finish_reason": finish}],
        "usage": {"completion_tokens": 7},
    }


def ask(server, **options):
    async def talk():
        async with ChatEndpoint(server.url, "small", api_key="secret", retries=1, **options) as model:
            return await model.chat([Message("user", "Hi")], (), Sampling(max_tokens=5, stop=("X",)), "k")

    return asyncio.run(talk())


def test_a_world_is_played_through_an_endpoint(server):
    environment = DomainGraphConfig(tools=4, low=2, high=3).build()
    task = environment.tasks("train", 1)[0]
    shown = environment.demonstration(task)
    server.script[:] = [reply(message) for message in shown if message.role == "assistant"]
    episode = environment.start(task)

    async def attempt():
        async with ChatEndpoint(server.url, "small") as model:
            return await play_chat(task, episode, model, sampling=Sampling(), turns=9, key="k")

    transcript = asyncio.run(attempt())
    assert transcript.finish == "answered"
    assert [message.content for message in transcript.messages] == [message.content for message in shown]
    assert transcript.attempt(episode).reward.value == 1.0
    path, _, body = server.seen[-1]
    assert path == "/v1/chat/completions"
    assert [tool["function"]["name"] for tool in body["tools"]] == [tool.name for tool in task.tools]
    assert body["messages"][-1]["role"] == "tool"


def test_a_request_says_how_to_sample_and_who_asks(server):
    server.script[:] = [reply(Message("assistant", "Hello"), finish="length")]
    found = ask(server)
    assert (found.message.content, found.finish, found.tokens) == ("Hello", "length", 7)
    _, headers, body = server.seen[0]
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["max_tokens"], body["stop"]) == ("small", 5, ["X"])
    assert "tools" not in body


def test_a_malformed_call_is_shown_to_the_model(server):
    call = {"id": "1", "type": "function", "function": {"name": "echo", "arguments": "{"}}
    answer = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}
    server.script[:] = [(200, answer)]
    assert "no JSON object" in ask(server).errors[0]


def test_a_server_that_stumbles_once_is_asked_again(server):
    server.script[:] = [(503, {}), reply(Message("assistant", "Hello"))]
    assert ask(server).message.content == "Hello"
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (503, {}, EndpointError, "status 503"),
        (200, b"<html>", EndpointError, "no JSON"),
        (200, {"choices": []}, EndpointError, "no chat completion"),
        (400, {"error": "maximum context length is 8 tokens"}, ContextFull, "maximum context"),
        (404, {"error": "no such model"}, ConfigError, "no such model"),
    ],
)
def test_what_a_server_refuses_is_told_apart(server, status, body, error, words):
    server.script[:] = [(status, body)]
    with pytest.raises(error, match=words):
        ask(server)


def test_a_server_that_is_not_there_is_nobodys_wrong_answer():
    async def talk():
        async with ChatEndpoint("http://127.0.0.1:9/v1", "small", retries=0) as model:
            await model.chat([Message("user", "Hi")], (), Sampling(), "k")

    with pytest.raises(EndpointError, match="no answer after 1 attempts"):
        asyncio.run(talk())
