"""Weights that change under way: tokens before are the old weights', those after the new ones', and each says so."""

from __future__ import annotations

import asyncio

import pytest
import torch

from stackloom.core.errors import ConfigError
from stackloom.core.generation import ContextFull, Request, Sampling
from stackloom.engine.engine import Engine

from .tiny_models import build, continue_alone, endless

REQUESTS = [Request(tuple(range(start, start + 20)), Sampling(max_tokens=24)) for start in (1, 3, 50)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_sequences_under_way_go_on_as_if_the_new_weights_had_read_them(tokenizer, deterministic):
    model, old, other = (build(dtype=torch.float64, seed=seed) for seed in (0, 0, 1))
    engine = endless(model, tokenizer, max_batch=2, deterministic=deterministic)
    generations = [engine._generation(request) for request in REQUESTS]
    for generation in generations:
        engine._batch.submit(generation)
    for _ in range(6):
        engine._batch.step()
    before = [list(generation.token_ids) for generation in generations]
    model.load_state_dict(other.state_dict())
    engine.refresh()
    assert (engine.version, engine.running, engine.waiting, engine.preempted) == (1, 0, 3, 0)
    while engine._batch.busy:
        engine._batch.step()
    for request, generation, known in zip(REQUESTS, generations, before, strict=True):
        found = generation.completion
        after = 24 - len(known)
        assert list(found.token_ids[: len(known)]) == known
        assert tuple(known) == continue_alone(old, request.input_ids, max(1, len(known)))[: len(known)]
        assert found.token_ids[len(known) :] == continue_alone(other, (*request.input_ids, *known), after)
        assert found.versions == (0,) * len(known) + (1,) * after
        for version, judge in ((0, old), (1, other)):
            with torch.inference_mode():
                ids = torch.tensor([[*request.input_ids, *found.token_ids]])
                expected = judge(ids).logits[0, len(request.input_ids) - 1 : -1].double().log_softmax(-1)
            for place, token in enumerate(found.token_ids):
                if found.versions[place] == version:
                    # the choice is made in float32, on logits of some tens
                    assert found.logprobs[place] == pytest.approx(float(expected[place, token]), abs=1e-5)
    engine._batch.runner.pages.forget()
    assert engine.pages[0] == engine.pages[1] == 0


def test_weights_change_while_a_loop_waits(tokenizer):
    model = build()
    engine = endless(model, tokenizer)

    async def main():
        call = asyncio.create_task(engine.generate(Request((1, 2), Sampling(max_tokens=80))))
        while not engine.running:
            await asyncio.sleep(0)
        await asyncio.to_thread(engine.refresh)
        return await call

    with engine:
        assert set(asyncio.run(main()).versions) <= {0, 1}


def test_what_was_kept_of_old_weights_is_not_shared_with_new_ones(tokenizer):
    model = build()
    engine = endless(model, tokenizer)
    engine.generate_all(REQUESTS)
    assert engine.pages[1] > 0
    model.load_state_dict(build(seed=1).state_dict())
    engine.refresh()
    assert engine.pages[1] == 0
    (found,) = engine.generate_all(REQUESTS[:1])
    assert found.token_ids == continue_alone(build(seed=1), REQUESTS[0].input_ids, 24)


def test_memory_bounds_prompts_and_answers_alike(llama, tokenizer):
    bytes_of_a_page = 3 * 2 * 2 * 8 * 16 * 4
    engine = endless(llama, tokenizer, cache_bytes=3 * bytes_of_a_page)
    (found,) = engine.generate_all([Request((1,) * 40, Sampling(max_tokens=90))])
    assert (len(found.token_ids), found.finish) == (8, "length")
    with pytest.raises(ContextFull, match="does not fit"):
        engine.generate_all([Request((1,) * 48)])
    with pytest.raises(ConfigError, match="cache_bytes"):
        Engine(llama, tokenizer, cache_bytes=bytes_of_a_page - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_a_training_forward_pass(tokenizer, dtype):
    """Through chunks, shared prompts and preemptions, within twice that pass' own distance from float64.

    Root mean square over all tokens, in nats: two computations that round alike and independently differ by sqrt(2)
    times what each differs from the exact one.
    """
    model, exact = build(dtype=dtype), build(dtype=dtype).double()
    pages = 8 * 3 * 2 * 2 * 8 * 16 * dtype.itemsize
    engine = endless(model, tokenizer, max_batch=6, cache_bytes=pages)
    prompts = [tuple(range(30)), tuple(range(30)), (*range(16), 7, 8), (5,), (6, 7), tuple(range(40))]
    sampling = [Sampling(temperature=1.0, max_tokens=40, seed=seed) for seed in range(len(prompts))]
    found = engine.generate_all([Request(*both) for both in zip(prompts, sampling, strict=True)])
    assert engine.preempted
    model.train()

    def logprobs(judge):
        told = []
        for prompt, completion in zip(prompts, found, strict=True):
            logits = judge(torch.tensor([[*prompt, *completion.token_ids]]), use_cache=False).logits.double()
            chosen = torch.tensor(completion.token_ids)[:, None]
            told.append(logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, chosen)[:, 0].detach())
        return torch.cat(told)

    ours = torch.tensor([logprob for completion in found for logprob in completion.logprobs], dtype=torch.float64)
    trained = logprobs(model)
    gap = (ours - trained).square().mean().sqrt()
    assert 0 < gap < 2 * (trained - logprobs(exact)).square().mean().sqrt()
