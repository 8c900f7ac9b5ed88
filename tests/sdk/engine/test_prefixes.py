"""Sharing what prompts begin with: the same logits, less computed, bounded memory."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.generation import Request, Sampling
from stackloom.engine import decoder as decoders
from stackloom.engine.decoder import Decoder
from stackloom.engine.engine import Engine
from stackloom.engine.prefixes import BLOCK, Prefixes

from .tiny_models import build

SYSTEM = tuple(range(3, 3 + 2 * BLOCK))


SHAPE = (1, 2, 1, 1)

sequences = st.lists(st.integers(0, 1).map(lambda bit: (bit,) * (BLOCK // 2)), max_size=8).map(
    lambda parts: tuple(token for part in parts for token in part)
)


def memory_of(tokens: tuple[int, ...]) -> torch.Tensor:
    """Keys and values that tell every beginning apart: a running value of the tokens so far."""
    values = [hash(tokens[: stop + 1]) % 10**6 for stop in range(len(tokens))]
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1, 1).expand(1, 2, 1, -1, 1)


@given(st.integers(0, 12), st.lists(sequences, max_size=12))
def test_what_is_taken_is_what_was_put_whatever_was_replaced(pages, known) -> None:
    prefixes = Prefixes(SHAPE, torch.float64, torch.device("cpu"), limit=pages * BLOCK * 16)
    assert prefixes.capacity == pages
    for tokens in known:
        row = torch.full((1, 2, 1, 64, 1), float("nan"), dtype=torch.float64)
        expected = prefixes.known(tokens)
        taken = prefixes.take(tokens, row)
        assert taken == expected
        assert torch.equal(row[:, :, :, :taken], memory_of(tokens)[:, :, :, :taken])
        prefixes.put(tokens, memory_of(tokens))
        assert len(prefixes) <= pages
        assert prefixes.known(tokens) == min(len(tokens), pages * BLOCK) // BLOCK * BLOCK


@given(st.lists(sequences, max_size=6), sequences)
def test_with_room_the_longest_shared_beginning_is_found(known, asked) -> None:
    prefixes = Prefixes(SHAPE, torch.float64, torch.device("cpu"), limit=2**20)
    for tokens in known:
        prefixes.put(tokens, memory_of(tokens))
    beginnings = {tokens[:stop] for tokens in known for stop in range(0, len(tokens) + 1, BLOCK)} | {()}
    assert prefixes.known(asked) == max(len(found) for found in beginnings if asked[: len(found)] == found)


@pytest.fixture
def wide():
    return build(dtype=torch.float64)


def logits_of(model, prompts: list[list[int]]) -> torch.Tensor:
    """Logits after each prompt, each computed whole and alone."""
    with torch.inference_mode():
        return torch.cat([Decoder(model, max_batch=1, deterministic=True).join([prompt]) for prompt in prompts])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass that computes prompts."""
    counts: list[int] = []
    plain = decoders.embedding

    def counting(ids, table):
        counts.append(len(ids))
        return plain(ids, table)

    monkeypatch.setattr(decoders, "embedding", counting)
    return counts


def test_prompts_of_one_call_share_and_keep_their_logits(wide, computed) -> None:
    prompts = [[*SYSTEM, 60], [*SYSTEM, 61, 62, 63], [5, 6], [*SYSTEM, 61, 62, 64, 65]]
    sharing = Decoder(wide, max_batch=4, deterministic=False, prefix_bytes=2**20)
    with torch.inference_mode():
        logits = sharing.join(prompts)
        passes = list(computed)
        after = sharing.step([1, 2, 3, 4])
    longer = [[*prompt, token] for prompt, token in zip(prompts, [1, 2, 3, 4], strict=True)]
    torch.testing.assert_close(logits, logits_of(wide, prompts), rtol=0, atol=1e-12)
    torch.testing.assert_close(after, logits_of(wide, longer), rtol=0, atol=1e-5)  # its softmax is in float32
    assert passes == [len(SYSTEM) + 1 + 2, 3 + 4]


def test_a_conversation_goes_on_from_what_was_kept(wide, computed) -> None:
    sharing = Decoder(wide, max_batch=4, deterministic=False, prefix_bytes=2**20)
    with torch.inference_mode():
        sharing.join([list(SYSTEM)])
        for token in range(BLOCK):
            sharing.step([token])
        sharing.leave(0)
        computed.clear()
        prompt = [*SYSTEM, *range(BLOCK), 8, 9]
        logits = sharing.join([prompt])
    assert computed == [2]
    torch.testing.assert_close(logits, logits_of(wide, [prompt]), rtol=0, atol=1e-12)


def test_tokens_rolled_back_are_not_shared(wide, computed) -> None:
    sharing = Decoder(wide, max_batch=4, deterministic=False, prefix_bytes=2**20)
    with torch.inference_mode():
        sharing.join([list(SYSTEM)])
        assert sharing.rollback(BLOCK) == 0
        sharing.step([60])
        sharing.join([list(SYSTEM)])
        computed.clear()
        logits = sharing.join([list(SYSTEM)])
    assert computed == [BLOCK]
    torch.testing.assert_close(logits, logits_of(wide, [list(SYSTEM)]), rtol=0, atol=1e-12)


def test_calls_of_many_tasks_make_the_same_batches_every_time(llama, tokenizer) -> None:
    """Batches decide the rounding: a run that is repeated must compute its sequences together as before."""

    async def converse(engine: Engine, number: int) -> list[int]:
        prompt = [*SYSTEM, number]
        for turn in range(3):
            sampling = Sampling(max_tokens=3 + (number + turn) % 5, temperature=0.8)
            done = await engine.generate(Request(tuple(prompt), sampling, key=f"{number}/{turn}"))
            prompt += [*done.token_ids, 7]
        return prompt

    async def nested(engine: Engine, number: int) -> list[list[int]]:
        return await asyncio.gather(*(converse(engine, 10 * number + part) for part in range(2)))

    def batches() -> list[int]:
        sizes: list[int] = []
        with Engine(llama, tokenizer, max_batch=4, end_tokens=()) as engine:
            step = engine._batch.runner.step
            engine._batch.runner.step = lambda tokens: (sizes.append(len(tokens)), step(tokens))[1]

            async def everything() -> None:
                await asyncio.gather(*(nested(engine, number) for number in range(5)))

            asyncio.run(everything())
        return sizes

    first = batches()
    assert max(first) == 4
    assert all(batches() == first for _ in range(5))
