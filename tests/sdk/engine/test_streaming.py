"""The local engine as a streaming model: the same text as the engine's, and thinkers on it."""

import asyncio

import pytest

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError
from stackloom.core.generation import ChatRequest, Reply, Request, Sampling
from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.engine.streaming import LocalModel
from stackloom.plugins.reasoner.heavy_thinking.config import HeavyThinkingConfig
from stackloom.plugins.reasoner.parallel import InsufficientTrajectories
from stackloom.plugins.reasoner.question import Ended, Question

ASK = (Message("user", "ab"),)


def asked(llama, tokenizer, work):
    async def run():
        with Engine(llama, tokenizer) as engine:
            return await work(engine, LocalModel(engine, HFChatTokenizer(tokenizer)))

    return asyncio.run(run())


def test_streamed_reply_is_what_the_engine_generates(llama, tokenizer):
    sampling = Sampling(temperature=1.0, max_tokens=8, seed=3)

    async def work(engine, model):
        pieces = [piece async for piece in model.stream(ChatRequest(ASK, sampling=sampling, top_logprobs=1))]
        ids = HFChatTokenizer(tokenizer).render(ASK, reply=True)
        return pieces, await engine.generate(Request(tuple(ids), sampling))

    pieces, whole = asked(llama, tokenizer, work)
    assert isinstance(pieces[-1], Reply)
    assert "".join(piece.text + piece.reasoning for piece in pieces[:-1]) == whole.text
    assert (pieces[-1].message.content, pieces[-1].tokens) == (whole.text, len(whole.token_ids))
    assert sum((piece.logprobs for piece in pieces[:-1]), ()) == whole.logprobs


def test_likeliest_tokens_are_reported_and_too_many_refused(llama, tokenizer):
    async def work(engine, model):
        request = ChatRequest(ASK, sampling=Sampling(max_tokens=4), top_logprobs=3)
        pieces = [piece async for piece in model.stream(request)]
        with pytest.raises(ConfigError, match="top_logprobs"):
            await anext(model.stream(ChatRequest(ASK, top_logprobs=21)))
        return pieces

    pieces = asked(llama, tokenizer, work)
    likeliest = [found for piece in pieces[:-1] for found in piece.top_logprobs]
    assert [len(found) for found in likeliest] == [3] * 4
    assert [found[0] for found in likeliest] == [logprob for piece in pieces[:-1] for logprob in piece.logprobs]


def test_thinkers_run_on_the_engine_together_and_tell_that_they_were_cut(llama, tokenizer):
    """A tiny random model does not end its replies, so every thinker is cut: each was generated on the engine."""
    config = HeavyThinkingConfig(width=3, max_tokens=6, aggregator="first")

    ended: list[int] = []

    async def listen(model):
        async for event in config.build().think(Question(ASK, model)):
            if isinstance(event, Ended):
                ended.append(event.trajectory.tokens)

    async def work(engine, model):
        with pytest.raises(InsufficientTrajectories, match="none of 3 thinkers answered: cut"):
            await listen(model)

    asked(llama, tokenizer, work)
    assert ended == [6, 6, 6]
