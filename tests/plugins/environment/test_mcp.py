"""`environment.mcp`: the slot's laws over our own server, checks, faults of servers, and what it refuses."""

import json
import sys
from typing import ClassVar

import pytest

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import ToolError
from stackloom.testing import EnvironmentContract

pytest.importorskip("mcp")

from stackloom.environments.mcp_client import ServerLost
from stackloom.plugins.environment.mcp.config import MCPConfig
from stackloom.plugins.environment.mcp.sample import sample

SERVER = """
import sys, time
from mcp.server.mcpserver import MCPServer
server = MCPServer("kitchen")
state = {"lamp": "off"}
@server.tool()
def switch(to: str) -> str:
    "Switch the lamp."
    if to not in ("on", "off"): raise ValueError("on or off")
    state["lamp"] = to
    return "done"
@server.tool()
def look() -> str:
    "Look at the lamp."
    return "the lamp is " + state["lamp"]
@server.tool()
def wait() -> str:
    "Take long."
    time.sleep(30)
    return "late"
@server.tool()
def die() -> str:
    "Crash."
    import os
    os._exit(1)
server.run()
"""


class TestContract(EnvironmentContract):
    plugin = "environment.mcp"
    sample: ClassVar[int] = 3


@pytest.fixture
def kitchen(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)

    def build(*lines, **options):
        (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = (sys.executable, str(tmp_path / "server.py"))
        given = {"command": command, "tasks": str(tmp_path / "tasks.jsonl"), "held_out": 0.0}
        return MCPConfig(**(given | options)).build()

    return build


CHECKED = {
    "id": "1",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Light, please."}],
    "answer": "LIGHT is",
    "check": {"tool": "look", "contains": "is on"},
}


def said(text):
    return [Message("assistant", text)]


def test_an_attempt_is_judged_by_its_answer_and_by_the_server(kitchen):
    environment = kitchen(CHECKED)
    (task,) = environment.tasks("train", 1)
    assert [tool.name for tool in task.tools] == ["switch", "look", "wait", "die"]
    assert task.messages[0].content.startswith("Be kind.\n\nYou can call these tools:")
    episode = environment.start(task)
    assert episode.reward(said("The light  is on.")).value == 0
    assert episode.call(ToolCall("switch", {"to": "on"}, "1")) == "done"
    assert episode.reward(said("The light  is on.")).value == 1
    assert episode.reward(said("Done.")).value == 0
    other = environment.start(task)  # a server of its own
    assert other.call(ToolCall("look", {}, "1")) == "the lamp is off"


def test_errors_are_the_agents_or_the_servers(kitchen):
    environment = kitchen(CHECKED, seconds=3, only=("switch", "wait", "die"))
    (task,) = environment.tasks("train", 1)
    episode = environment.start(task)
    for call in (ToolCall("switch", {"to": "blue"}, "1"), ToolCall("switch", {}, "1"), ToolCall("look", {}, "1")):
        with pytest.raises(ToolError):
            episode.call(call)
    with pytest.raises(ServerLost):
        episode.call(ToolCall("wait", {}, "1"))
    with pytest.raises(ServerLost):
        environment.start(task).call(ToolCall("die", {}, "1"))


def test_a_world_of_ours_over_http(tmp_path):
    import socket
    import subprocess
    import time

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "stackloom", "env", "mcp", "banking", "--seed", "3", "--http", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        options = {key: value for key, value in sample(tmp_path).items() if key != "command"}
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.1)
        environment = MCPConfig(url=f"http://127.0.0.1:{port}/mcp", **options).build()
        task = environment.tasks("train", 1)[0]
        assert "finish_task" in {tool.name for tool in task.tools}
        verdict = environment.start(task).call(ToolCall("finish_task", {"message": "hm"}, "1"))
        assert verdict.startswith("reward 0")
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "no JSON"),
        ("[]", "no object with an id"),
        ('{"id": "1", "prompt": "x"}', "nothing could be right"),
        ('{"id": "1", "prompt": "x", "answer": "y", "reward": 1}', "no object with an id"),
        ('{"id": "1", "answer": "y"}', "needs a prompt"),
        ('{"id": "1", "messages": [{"role": "assistant", "content": "x"}], "answer": "y"}', "needs a prompt"),
        ('{"id": "1", "prompt": "x", "check": {"tool": "look"}}', "check needs"),
        ('{"id": "1", "prompt": "x", "answer": "y"}\n{"id": "1", "prompt": "x", "answer": "y"}', "comes twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, why):
    path = tmp_path / "tasks.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=why) as caught:
        MCPConfig(command=("x",), tasks=str(path)).build()
    assert f"{path}:" in str(caught.value)


def test_what_cannot_be_is_refused(kitchen, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        MCPConfig(command=("x",), tasks=str(tmp_path / "none")).build()
    with pytest.raises(ConfigError, match="cannot be used"):
        kitchen(CHECKED, command=("no-such-program",)).tasks("train", 1)
    with pytest.raises(ConfigError, match="cannot be used"):
        kitchen(CHECKED, command=(sys.executable, "-c", "print('hello')"), seconds=3).tasks("train", 1)
    with pytest.raises(ConfigError, match="no tool fly"):
        kitchen(CHECKED, only=("fly",)).tasks("train", 1)
    with pytest.raises(ConfigError, match="1 tasks for train, 2 are wanted"):
        kitchen(CHECKED).tasks("train", 2)
    with pytest.raises(FitError, match="no demonstrations"):
        kitchen(CHECKED).demonstration(None)
    for options in ({"command": (), "url": ""}, {"url": "http://x"}, {"command": (), "url": "ftp://x"}):
        with pytest.raises(ValueError, match=r"command or url|must begin"):
            MCPConfig(**({"command": ("x",), "tasks": "t"} | options))
