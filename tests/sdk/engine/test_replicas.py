"""Engine replicas on Ray: the answers of one engine, spread calls, cancellation that arrives, and replicas that die."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import aclosing

import pytest

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatRequest, Reply, Sampling, ServerError
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.engine.replicas import open_replicas
from stackloom.engine.streaming import LocalModel
from stackloom.plugins.reasoner.heavy_thinking.config import HeavyThinkingConfig
from stackloom.plugins.reasoner.question import Question
from stackloom.testing import llama_shape, tiny_llama
from stackloom.thinking import answer, open_model

# not `importorskip`: the addresses that Ray listens on are settled when it is imported, by the replicas
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")]
ENDS = tuple(range(60, 258))  # most of what a random model says ends its reply
OPTIONS = {"deterministic": True, "max_batch": 8, "prefix_bytes": 0}
ASK = (Message("user", "Which?"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("replica")
    tiny_llama(llama_shape(vocab=260, max_positions=2048)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def thinking(width):
    return HeavyThinkingConfig(width=width, seed=3, max_tokens=60, min_answers=1).build()


def request(**sampling):
    return ChatRequest(ASK, sampling=Sampling(temperature=1.0, **sampling))


async def load(model):
    return [await actor.load.remote() for actor in model.actors]


async def until_idle(model):
    async with asyncio.timeout(30):
        while any(any(each.values()) for each in await load(model)):
            await asyncio.sleep(0.02)


def test_thinkers_on_two_replicas_answer_as_in_one_engine(folder, tokenizer):
    from transformers import AutoModelForCausalLM

    async def ask(model):
        return await answer(thinking(6), Question(ASK, model), lambda event: None)

    async def spread(model):
        thought = await ask(model)
        await until_idle(model)
        return thought

    with open_replicas(str(folder), 2, dtype="float32", end_tokens=ENDS, **OPTIONS) as model:
        found = asyncio.run(spread(model))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    with Engine(loaded, tokenizer, in_loop=True, end_tokens=ENDS, **OPTIONS) as engine:
        expected = asyncio.run(ask(LocalModel(engine, HFChatTokenizer(tokenizer))))
    assert found.message == expected.message
    assert [(one.answer, one.tokens, one.finish) for one in found.trajectories] == [
        (one.answer, one.tokens, one.finish) for one in expected.trajectories
    ]
    assert (found.tokens, found.prompt_tokens) == (expected.tokens, expected.prompt_tokens)


def test_calls_are_spread_cancelled_and_broken_off_with_their_replica(folder):
    """One cluster for all of it, since starting one takes seconds."""

    async def first(stream):
        return await anext(stream)

    async def run(model):
        import ray

        streams = [model.stream(request(max_tokens=1500, seed=place)) for place in range(4)]
        await asyncio.gather(*map(first, streams))
        assert [each["calls"] for each in await load(model)] == [2, 2]
        await streams[0].aclose()  # a caller that leaves
        streams.pop(0)
        async with asyncio.timeout(30):
            while sum(each["running"] for each in await load(model)) != 3:
                await asyncio.sleep(0.02)
        waiting = asyncio.create_task(_whole(model, request(max_tokens=1500)))
        await asyncio.sleep(0.2)
        waiting.cancel()  # a caller whose task is cancelled
        await asyncio.gather(waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
        await until_idle(model)

        begun = [model.stream(request(max_tokens=1500)) for _ in range(2)]
        await asyncio.gather(*map(first, begun))
        ray.kill(model.actors[0])
        with pytest.raises(ServerError, match="replica 0 died in the middle"):
            await _to_its_end(begun[0])
        await begun[1].aclose()
        assert model.alive == 1
        reply = await _whole(model, request(max_tokens=5))
        assert reply.tokens == 5
        ray.kill(model.actors[1])
        with pytest.raises(ServerError, match="no engine replica is left"):
            await _whole(model, request(max_tokens=5))

    with open_replicas(str(folder), 2, dtype="float32", end_tokens=(), **OPTIONS) as model:
        asyncio.run(run(model))


async def _to_its_end(stream):
    last = None
    async with aclosing(stream):
        async for piece in stream:
            last = piece
    return last


async def _whole(model, asked):
    reply = await _to_its_end(model.stream(asked))
    assert isinstance(reply, Reply)
    return reply


def test_bad_requests_and_models_are_told_as_what_they_are(folder, tmp_path):
    async def run(model):
        with pytest.raises(ConfigError, match="temperature"):
            await _whole(model, ChatRequest(ASK, sampling=Sampling(temperature=-1.0)))
        assert model.alive == 2

    with open_replicas(str(folder), 2, dtype="float32", **OPTIONS) as model:
        asyncio.run(run(model))
    with (
        pytest.raises(ConfigError, match="no-such-model"),
        open_replicas(str(tmp_path / "no-such-model"), 1),
    ):
        pass


async def _open(**options):
    async with open_model(**options) as model:
        return model


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint": "x", "executor": "dask"}, "'dask' does not go with a checkpoint"),
        ({"endpoints": ["http://127.0.0.1:1/v1"], "executor": "ray"}, "'ray' does not go with servers"),
    ],
)
def test_an_executor_that_does_not_fit_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        asyncio.run(_open(**options))


def test_less_than_one_replica_is_refused(folder):
    with pytest.raises(ConfigError, match="0 replicas"), open_replicas(str(folder), 0):
        pass
