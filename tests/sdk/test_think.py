"""`stackloom think` from the command line, against a server on the loopback."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest
from rich.console import Console
from typer.testing import CliRunner

from stackloom.cli import make_app
from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError, ErrorGroup
from stackloom.core.generation import ServerError
from stackloom.plugins.reasoner.question import Ended, Summarizing, Thinking, Thought, Trajectory
from stackloom.testing.fake_server import Answer, FakeServer
from stackloom.thinking_view import Watching, save


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", "")


@contextmanager
def served(answer):
    """A fake server in a thread of its own; yields it."""
    loop, ready, server = asyncio.new_event_loop(), threading.Event(), FakeServer(answer)
    done = asyncio.Event()

    async def serve():
        async with server:
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def reply(number, body):
    if "THINKERS START" in body["messages"][-1]["content"]:
        return Answer(words=("It ", "is ", "42."))
    return Answer(words=("The answer is ", "42." if body["seed"] % 2 else "<b>41</b>."))


def think(*arguments, **options):
    result = CliRunner().invoke(make_app(), ["think", *arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_answer_goes_to_standard_output_and_the_rest_to_standard_error():
    with served(reply) as server:
        result = think("6 * 7?", "-e", server.url, "--width", "3", "--system", "Be brief.")
    assert result.stdout == "It is 42.\n"
    assert "thinker 3: done" in result.stderr
    assert "3 of 3 thinkers answered" in result.stderr
    assert all(body["messages"][0] == {"role": "system", "content": "Be brief."} for body in server.requests)


def test_conversation_remembers_answers_alone():
    with served(reply) as server:
        think("-e", server.url, "--width", "2", input="first\nsecond\n\n")
    last = server.requests[3]["messages"]
    assert [message["content"] for message in last] == ["first", "It is 42.", "second"]


def test_json_holds_everything_and_adds_up():
    with served(reply) as server:
        found = json.loads(think("6 * 7?", "-e", server.url, "--rounds", "3,2", "--json").stdout)
    assert found["message"]["content"] == "It is 42."
    assert sum(made["tokens"] for made in found["trajectories"]) + found["summary_tokens"] == found["tokens"]
    assert len(found["trajectories"]) == 5


def test_transcript_escapes_what_models_say_and_loads_nothing(tmp_path):
    with served(reply) as server:
        think("<script>x</script>", "-e", server.url, "--width", "2", "--save", str(tmp_path / "a" / "page.html"))
    page = (tmp_path / "a" / "page.html").read_text()
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;41&lt;/b&gt;" in page
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_other_reasoners_answer_too():
    with served(reply) as server:
        for reasoner in ("reasoner.single", "reasoner.self-consistency", "reasoner.genselect"):
            assert "41" in think("6 * 7?", "-e", server.url, "--reasoner", reasoner).stdout


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["hi"], ConfigError, "either a server or a checkpoint"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "--checkpoint", "x"], ConfigError, "either"),
        (["hi", "-e", "http://127.0.0.1:9/v1"], ServerError, "cannot list its models"),
        (["hi", "-e", "nonsense"], ConfigError, "no server's URL"),
        (["", "-e", "http://127.0.0.1:9/v1"], ConfigError, "empty question"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "--width", "0"], ErrorGroup, "width"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "--rounds", "8,x"], ConfigError, "no list of widths"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "--deadline", "1"], ErrorGroup, "summary_reserve_s"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "-o", "width"], ConfigError, "NAME=VALUE"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "--reasoner", "optimizer.adamw"], ConfigError, "no reasoner"),
        (["--json", "-e", "http://127.0.0.1:9/v1"], ConfigError, "cannot be JSON"),
        (["hi", "-e", "http://127.0.0.1:9/v1", "--http", "urllib"], ConfigError, "httpx2"),
    ],
)
def test_mistakes_are_told(arguments, error, says):
    with pytest.raises(error) as caught:
        think(*arguments)
    assert says in str(caught.value)


def test_live_view_has_a_line_per_thinker_votes_and_the_summary():
    console = Console(force_terminal=True, width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    watching = Watching(console)
    made = Trajectory(0, 0, 0, Message("assistant", "The answer is 42."), "42", finish="stop", tokens=5)
    for event in (
        Thinking(0, 1, "", "hm", 3),
        Ended(made, {"42": 1}),
        Summarizing("So ", "", 1),
        Summarizing("it is", "", 2),
    ):
        watching.tell(event)
    console.print(watching.view.render())
    text = console.export_text()
    assert [word in text for word in ("thinks", "done", "42: 1", "So it is", "10 tokens")] == [True] * 5


def test_saving_several_turns_numbers_them(tmp_path):
    made = Trajectory(0, 0, 0, None, finish="failed", error="refused <i>")
    thought = Thought(Message("assistant", "a"), (made,), {}, 1, 1, 0, "width", "choice")
    turns = [(Message("user", "q"), thought, 0.1)] * 2
    save(tmp_path / "page.html", turns, reasoner="reasoner.single", model="m")
    page = (tmp_path / "page.html").read_text()
    assert "Question 2" in page
    assert "refused &lt;i&gt;" in page
