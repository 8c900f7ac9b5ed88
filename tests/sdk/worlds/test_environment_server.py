"""`stackloom env serve` and `environment.remote`: one environment on both sides, leases, faults, bad input."""

import json
import subprocess
import sys
import threading
import time

import httpx
import pytest

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Reward, ToolError
from stackloom.environments.agent_loop import judge
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig
from stackloom.plugins.environment.remote.config import RemoteConfig
from stackloom.plugins.environment.remote.remote import Lost


def world(**options):
    return DomainGraphConfig(tools=6, low=1, high=2, **options).build()


def follow(environment, episode, task):
    """Act out the demonstration of the environment itself in an episode, user and all; return the messages."""
    said = []
    for message in environment.demonstration(task):
        if message.role == "user":
            continue
        if message.role == "assistant":
            said.append(message)
            for call in message.tool_calls:
                said.append(Message("tool", episode.call(call), tool_call_id=call.id, name=call.name))
    return said


@pytest.mark.parametrize("build", [lambda: world(), lambda: ArithmeticConfig().build()], ids=["worlds", "arithmetic"])
def test_tasks_calls_and_verdicts_are_those_of_the_environment(serve, build):
    environment = build()
    with serve(environment) as (leases, url):
        remote = RemoteConfig(url=url).build()
        for split in ("train", "held-out"):
            ours, theirs = environment.tasks(split, 3), remote.tasks(split, 3)
            for mine, other in zip(ours, theirs, strict=True):
                assert (other.id, other.kind, other.messages, other.tools) == (
                    mine.id,
                    mine.kind,
                    mine.messages,
                    mine.tools,
                )
                assert set(other.secret) == {"split", "index"}
                episode = remote.start(other)
                assert episode.reward(()).value == 0
                said = follow(environment, episode, mine)
                assert episode.reward(said).value == 1
                assert episode.answer(said) is not None
                episode.close()
        assert (leases.held, leases.opened, leases.ended) == (0, 6, 6)


def test_reward_and_answer_are_one_judgement_until_the_next_call(serve, monkeypatch):
    environment = ArithmeticConfig().build()
    (task,) = environment.tasks("train", 1)
    judged = []
    episode_class = type(environment.start(task))
    asked = episode_class.reward
    monkeypatch.setattr(episode_class, "reward", lambda self, said: judged.append(said) or asked(self, said))
    with serve(environment) as (_, url):
        remote = RemoteConfig(url=url).build()
        episode = remote.start(remote.tasks("train", 1)[0])
        said = follow(environment, episode, task)
        reward, answer = judge(episode, said)
        assert (reward.value, answer) == (1.0, environment.start(task).answer(said))
        assert len(judged) == 1
        assert episode.answer(said[:-1]) is None
        assert len(judged) == 2
        follow(environment, episode, task)
        assert episode.answer(said) == answer
        assert len(judged) == 3
        episode.close()


def test_what_a_task_keeps_secret_never_leaves(serve):
    environment = world()
    (task,) = environment.tasks("train", 1)
    with serve(environment) as (_, url):
        told = httpx.get(f"{url}/tasks", params={"split": "train", "count": 1}).text
        told += httpx.post(f"{url}/leases", json={"split": "train", "index": 0}).text
    assert "secret" not in told
    assert task.secret["digest"] not in told


def test_a_user_answers_from_there(serve):
    import asyncio

    environment = world(withheld=1.0)
    with serve(environment) as (_, url):
        remote = RemoteConfig(url=url).build()
        for mine, other in zip(environment.tasks("train", 4), remote.tasks("train", 4), strict=True):
            asked = [
                m for m in environment.demonstration(mine) if m.role in ("assistant", "user") and not m.tool_calls
            ][:1]
            ours, theirs = environment.start(mine), remote.start(other)
            assert (theirs.user is None) == (ours.user is None)
            if ours.user is not None:
                assert asyncio.run(theirs.user.reply(asked)) == asyncio.run(ours.user.reply(tuple(asked)))


def test_errors_are_the_agents_or_the_servers(serve):
    environment = world()
    with serve(environment) as (leases, url):
        remote = RemoteConfig(url=url).build()
        (task,) = remote.tasks("train", 1)
        episode = remote.start(task)
        with pytest.raises(ToolError, match="there is no tool"):
            episode.call(ToolCall("fly", {}, "1"))
        held = next(iter(leases._held.values())).episode
        held.call = lambda call: 1 / 0
        with pytest.raises(Lost, match="raised ZeroDivisionError"):
            episode.call(ToolCall(task.tools[0].name, {}, "1"))
        held.reward = lambda transcript: 1 / 0
        reward = episode.reward([Message("assistant", "done")])
        assert (reward.value, reward.valid) == (0.0, False)


def test_a_call_that_hangs_ends_its_attempt_and_no_other(serve):
    with serve(world(), call_seconds=0.5) as (leases, url):
        remote = RemoteConfig(url=url).build()
        (task,) = remote.tasks("train", 1)
        stuck, fine = remote.start(task), remote.start(task)
        leases._held[stuck.lease].episode.call = lambda call: time.sleep(2)
        with pytest.raises(Lost, match=r"longer than 0\.5 s"):
            stuck.call(ToolCall("x", {}, "1"))
        with pytest.raises(Lost, match="over"):
            stuck.call(ToolCall("x", {}, "1"))
        assert fine.reward(()) == Reward(0.0, True, fine.reward(()).reason)


def test_an_unused_lease_is_taken_back_and_a_beating_one_is_not(serve):
    with serve(world(), seconds=0.6) as (leases, url):
        remote = RemoteConfig(url=url).build()
        (task,) = remote.tasks("train", 1)
        kept = remote.start(task)
        forgotten = httpx.post(f"{url}/leases", json={"split": "train", "index": 0}).json()["lease"]
        time.sleep(1.6)
        assert (leases.held, leases.expired) == (1, 1)
        assert httpx.post(f"{url}/leases/{forgotten}/heartbeat").status_code == 410
        assert kept.reward(()).valid
        del kept
        assert leases.held == 0


def test_leases_run_out_and_one_that_ends_makes_room(serve):
    with serve(world(), most=2) as (_, url):
        remote = RemoteConfig(url=url, patience=0.3).build()
        (task,) = remote.tasks("train", 1)
        first, second = remote.start(task), remote.start(task)
        with pytest.raises(Lost, match="all 2 leases are out"):
            remote.start(task)
        threading.Timer(0.3, first.close).start()
        patient = RemoteConfig(url=url, patience=10).build()
        assert patient.start(task).reward(()).valid
        second.close()


def test_a_token_is_needed_where_one_is_set(serve, monkeypatch):
    with serve(world(), token="right") as (_, url):
        assert httpx.get(f"{url}/health").status_code == 200
        with pytest.raises(ConfigError, match="a valid bearer token is needed"):
            RemoteConfig(url=url).build().tasks("train", 1)
        monkeypatch.setenv("STACKLOOM_ENV_TOKEN", "right")
        assert RemoteConfig(url=url).build().tasks("train", 1)


def test_a_server_that_is_not_there_masks():
    remote = RemoteConfig(url="http://127.0.0.1:1").build()
    with pytest.raises(Lost, match="cannot be reached"):
        remote.tasks("train", 1)
    with pytest.raises(FitError, match="no demonstrations"):
        remote.demonstration(None)
    with pytest.raises(ValueError, match="must begin with http"):
        RemoteConfig(url="127.0.0.1")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/leases", b"", 400),
        ("/leases", b"{", 400),
        ("/leases", {"split": "test", "index": 0}, 400),
        ("/leases", {"split": "train", "index": -1}, 400),
        ("/leases", {"split": "train", "index": 2**63}, 400),
        ("/leases", {"split": "train", "index": float("nan")}, 400),
        ("/leases", {"split": "train", "index": 0, "secret": 1}, 400),
        ("/leases/none/calls", {"name": "x", "arguments": {}}, 410),
        ("/leases/none/verdict", {"messages": []}, 410),
        ("/leases/none/heartbeat", None, 410),
        ("/leases/LEASE/calls", {"name": "x" * 200}, 400),
        ("/leases/LEASE/calls", {"name": "x", "arguments": []}, 400),
        ("/leases/LEASE/verdict", {"messages": [{"role": "ghost"}]}, 400),
        ("/leases/LEASE/verdict", {"messages": [{"role": "user", "content": 3}]}, 400),
        ("/leases/LEASE/verdict", {"messages": [{}] * 3000}, 400),
        ("/leases/LEASE/verdict", b"x" * 400_000, 413),
        ("/nowhere", {}, 404),
    ],
)
def test_bad_requests_are_4xx_and_the_server_goes_on(serve, path, body, status):
    with serve(world(), max_body=300_000) as (_, url):
        lease = httpx.post(f"{url}/leases", json={"split": "train", "index": 0}).json()["lease"]
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = httpx.post(
            url + path.replace("LEASE", lease), content=given, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert httpx.post(f"{url}/leases/{lease}/verdict", json={"messages": []}).status_code == 200


def test_the_command_serves_and_ends():
    command = [sys.executable, "-m", "stackloom", "env", "serve", "environment.arithmetic", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert line.startswith("environment.arithmetic at http://127.0.0.1:")
        remote = RemoteConfig(url=line.split()[2]).build()
        assert remote.start(remote.tasks("train", 1)[0]).reward(()).value == 0
    finally:
        process.terminate()
    assert process.wait(20) == 0
    assert "ended; 1 attempts" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["environment.nothing"], "environment.nothing"),
        (["optimizer.adamw"], "is no environment"),
        (["environment.arithmetic", "--option", "x"], "no name=value"),
        (["environment.arithmetic", "--option", "levels=3"], "levels"),
        (["environment.arithmetic", "--host", "0.0.0.0"], "set a token"),
    ],
)
def test_the_command_refuses_what_cannot_be(arguments, says):
    ran = subprocess.run(
        [sys.executable, "-m", "stackloom", "env", "serve", *arguments], capture_output=True, text=True
    )
    assert ran.returncode != 0
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
