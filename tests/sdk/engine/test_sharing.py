"""Sharing what prompts begin with: the same logits, less computed, bounded memory."""

from __future__ import annotations

import asyncio

import pytest
import torch

from stackloom.core.generation import Request, Sampling
from stackloom.engine import decoder as decoders
from stackloom.engine.decoder import ALIGNED, Decoder
from stackloom.engine.engine import Engine
from stackloom.engine.pages import BLOCK

from .tiny_models import build, fed, filled

SYSTEM = tuple(range(3, 3 + 2 * BLOCK))


@pytest.fixture
def wide():
    return build(dtype=torch.float64)


def sharing(model, **options):
    return Decoder(model, max_batch=4, **{"deterministic": False, "prefix_bytes": 2**20} | options)


def logits_of(model, prompts):
    """Logits after each prompt, each computed whole and alone."""
    with torch.inference_mode():
        return torch.cat([filled(Decoder(model, max_batch=1, deterministic=True), [prompt]) for prompt in prompts])


@pytest.fixture
def computed(monkeypatch):
    """Tokens of each pass that computes prompts."""
    counts = []
    plain = decoders.embedding

    def counting(ids, table):
        counts.append(len(ids))
        return plain(ids, table)

    monkeypatch.setattr(decoders, "embedding", counting)
    return counts


def test_prompts_of_one_call_share_and_keep_their_logits(wide, computed):
    prompts = [[*SYSTEM, 60], [*SYSTEM, 61, 62, 63], [5, 6], [*SYSTEM, 61, 62, 64, 65]]
    runner = sharing(wide)
    with torch.inference_mode():
        logits = filled(runner, prompts)
        passes = list(computed)
        after = fed(runner, [1, 2, 3, 4])
    longer = [[*prompt, token] for prompt, token in zip(prompts, [1, 2, 3, 4], strict=True)]
    torch.testing.assert_close(logits, logits_of(wide, prompts), rtol=0, atol=1e-12)
    torch.testing.assert_close(after, logits_of(wide, longer), rtol=0, atol=1e-5)  # its softmax is in float32
    assert passes == [len(SYSTEM) + 1 + 2, 3 + 4]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("prefix_bytes", [0, 2**20])
def test_equal_prompts_are_computed_once_and_then_part_ways(wide, computed, deterministic, prefix_bytes):
    prompt = [*SYSTEM, 60, 61, 62]
    runner = sharing(wide, deterministic=deterministic, prefix_bytes=prefix_bytes)
    with torch.inference_mode():
        logits = filled(runner, [prompt] * 4)
        assert computed == [len(prompt)]
        assert runner.pages.used == 3
        after = fed(runner, [1, 2, 3, 4])
        assert runner.pages.used == 2 + 4  # the last page of each is its own now
        again = fed(runner, [5, 5, 5, 5])
    assert torch.equal(logits, logits[:1].expand_as(logits))
    torch.testing.assert_close(after, logits_of(wide, [[*prompt, t] for t in (1, 2, 3, 4)]), rtol=0, atol=1e-5)
    torch.testing.assert_close(again, logits_of(wide, [[*prompt, t, 5] for t in (1, 2, 3, 4)]), rtol=0, atol=1e-5)
    for _ in range(4):
        runner.leave(0)
    runner.pages.forget()
    assert runner.pages.used == 0


def test_a_conversation_goes_on_from_what_was_kept(wide, computed):
    runner = sharing(wide)
    with torch.inference_mode():
        filled(runner, [list(SYSTEM)])
        for token in range(BLOCK):
            fed(runner, [token])
        runner.leave(0)
        computed.clear()
        prompt = [*SYSTEM, *range(BLOCK), 8, 9]
        logits = filled(runner, [prompt])
    assert computed == [2]
    torch.testing.assert_close(logits, logits_of(wide, [prompt]), rtol=0, atol=1e-12)


def test_tokens_rolled_back_are_not_shared(wide, computed):
    runner = sharing(wide)
    with torch.inference_mode():
        filled(runner, [list(SYSTEM)])
        assert runner.rollback(BLOCK) == 0
        fed(runner, [60])
        computed.clear()
        logits = filled(runner, [list(SYSTEM)])
        assert computed == [BLOCK]
    torch.testing.assert_close(logits, logits_of(wide, [list(SYSTEM)]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 7, BLOCK, 50])
def test_a_prompt_in_chunks_is_the_whole_prompt(wide, budget):
    prompts = [list(range(70)), [*SYSTEM, 1], list(range(5))]
    runner = sharing(wide)
    found = {}
    with torch.inference_mode():
        runner.join(prompts)
        rounds = 0
        while runner.filling:
            before = sum(runner.lengths)
            found |= runner.fill(budget)
            rounds += 1
            assert sum(runner.lengths) - before <= budget
    assert rounds >= 108 // budget - 1
    logits = torch.stack([found[row] for row in range(3)])
    torch.testing.assert_close(logits, logits_of(wide, prompts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 300, 10_000])
def test_chunks_of_a_deterministic_decoder_do_not_depend_on_the_budget(budget):
    model = build(dtype=torch.bfloat16, max_position_embeddings=2048)
    prompt = [token % 250 for token in range(2 * ALIGNED + 40)]
    with torch.inference_mode():
        runner = sharing(model, deterministic=True)
        runner.join([[1, 2], prompt])
        found = {}
        while runner.filling:
            found |= runner.fill(budget)
    assert torch.equal(found[1][None], logits_of(model, [prompt]))


def test_calls_of_many_tasks_make_the_same_batches_every_time(llama, tokenizer):
    """Batches decide the rounding: a run that is repeated must compute its sequences together as before."""

    async def converse(engine, number):
        prompt = [*SYSTEM, number]
        for turn in range(3):
            sampling = Sampling(max_tokens=3 + (number + turn) % 5, temperature=0.8)
            done = await engine.generate(Request(tuple(prompt), sampling, key=f"{number}/{turn}"))
            prompt += [*done.token_ids, 7]
        return prompt

    async def nested(engine, number):
        return await asyncio.gather(*(converse(engine, 10 * number + part) for part in range(2)))

    def batches():
        sizes = []
        with Engine(llama, tokenizer, max_batch=4, end_tokens=()) as engine:
            step = engine._batch.runner.step
            engine._batch.runner.step = lambda tokens, rows: (sizes.append(len(tokens)), step(tokens, rows))[1]

            async def everything():
                await asyncio.gather(*(nested(engine, number) for number in range(5)))

            asyncio.run(everything())
        return sizes

    first = batches()
    assert max(first) == 4
    assert all(batches() == first for _ in range(5))
