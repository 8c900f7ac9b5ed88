"""A sequence alone equals the same sequence in any batch: bit for bit in deterministic mode, by draw in every mode."""

import asyncio
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from stackloom.core.generation import Request, Sampling
from stackloom.engine.decoder import Decoder

from .test_engine import with_attention_plugin
from .tiny_models import build, endless

REQUESTS = st.lists(
    st.builds(
        Request,
        st.lists(st.integers(0, 255), min_size=1, max_size=24).map(tuple),
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 0.7, 1.5]),
            top_p=st.sampled_from([1.0, 0.8]),
            top_k=st.sampled_from([0, 7]),
            max_tokens=st.integers(1, 12),
            seed=st.integers(0, 3),
        ),
        st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=9,
)
LONGER = st.lists(
    st.builds(
        Request,
        st.one_of(st.just(tuple(range(40))), st.lists(st.integers(0, 255), min_size=1, max_size=50).map(tuple)),
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 1.5]),
            max_tokens=st.integers(1, 45),
            seed=st.integers(0, 3),
            presence_penalty=st.sampled_from([0.0, 0.5]),
        ),
        top_logprobs=st.sampled_from([0, 2]),
    ),
    min_size=2,
    max_size=8,
)
THREADS = 2  # products split over threads must treat rows alike as well
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["fp32", "bf16", "bf16-plugin", "fp32-rows-alone"])
def engine(request, tokenizer, tmp_path_factory, threads):
    if request.param == "bf16-plugin":
        model = with_attention_plugin(tmp_path_factory.mktemp("model"), tokenizer, "bfloat16")
    else:
        model = build(dtype=torch.bfloat16 if request.param == "bf16" else torch.float32)
    engine = endless(model, tokenizer, max_batch=5, deterministic=True)
    if request.param == "fp32-rows-alone":  # what a machine gets whose matrix products treat rows differently
        engine._batch.runner._padded = False
    return engine


async def arrive(engine, requests, waits):
    """Requests come in over time, in the order given, each some turns of the loop after the one before."""

    async def one(request, turns):
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        return await engine.generate(request)

    return await asyncio.gather(*(one(request, wait) for request, wait in zip(requests, waits, strict=True)))


@FEW
@given(requests=REQUESTS, data=st.data())
def test_alone_equals_batched_bit_for_bit_whatever_arrives_when(engine, requests, data):
    waits = data.draw(st.lists(st.integers(0, 20), min_size=len(requests), max_size=len(requests)))
    alone = [engine.generate_all([request])[0] for request in requests]
    together = asyncio.run(arrive(engine, requests, waits))
    assert together == alone  # ids, text and the exact bits of every log-probability


PAGE = 3 * 2 * 2 * 8 * 16  # elements of a page of the tiny model: layers, keys and values, heads, width, tokens


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp32-free", "bf16-plugin"])
def narrow(request, tokenizer, threads, tmp_path_factory):
    """An engine whose memory holds two long sequences or so; "free" is not deterministic, a plugin is not preempted."""
    dtype = torch.bfloat16 if request.param.startswith("bf16") else torch.float32
    if request.param == "bf16-plugin":
        model = with_attention_plugin(tmp_path_factory.mktemp("model"), tokenizer, "bfloat16")
    else:
        model = build(dtype=dtype)
    pages = 7 * PAGE * dtype.itemsize
    options = {"max_batch": 4, "deterministic": request.param != "fp32-free", "cache_bytes": pages}
    return endless(model, tokenizer, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=LONGER, seed=st.integers(0, 2**32))
def test_arrivals_cancellations_and_preemptions_change_nothing_and_lose_no_page(narrow, requests, seed):
    """Now and then the weights are read anew, the same ones, which takes every row; only the versions tell of it."""
    chance = random.Random(seed)
    alone = [narrow.generate_all([request])[0] for request in requests]
    batch, before, capacity = narrow._batch, narrow.preempted, narrow.pages[2]
    generations = [narrow._generation(request) for request in requests]
    waiting = list(generations)
    while waiting or batch.busy:
        for _ in range(chance.randrange(3)):
            if waiting:
                batch.submit(waiting.pop())
        if chance.random() < 1 / 30:
            chance.choice(generations).cancel()
        if chance.random() < 1 / 40:
            narrow.refresh()
        batch.step()
        assert narrow.pages[0] <= narrow.pages[2] == capacity
    for generation, expected in zip(generations, alone, strict=True):
        assert generation.error is None
        if generation.completion is None:
            assert generation.cancelled
        elif narrow.deterministic:  # ids, text and the exact bits of every log-probability
            assert replace(generation.completion, versions=()) == replace(expected, versions=())
        else:
            assert generation.completion.token_ids == expected.token_ids
    assert narrow.pages[0] == 0
    batch.runner.pages.forget()
    assert narrow.pages == (0, 0, capacity)
    event("preempted" if narrow.preempted > before else "not preempted")


def test_sequences_that_do_not_fit_together_take_turns(narrow):
    if narrow.pages[2] > 7:
        pytest.skip("sequences with a plugin always fit")
    requests = [Request((place, 2, 3), Sampling(max_tokens=60, temperature=1.0)) for place in range(5)]
    alone = [narrow.generate_all([request])[0] for request in requests]
    before = narrow.preempted
    together = narrow.generate_all(requests)
    assert narrow.preempted > before
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert narrow.pages[0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_machines_matrix_products_treat_rows_alike(dtype):
    assert Decoder(build(dtype=dtype), max_batch=32, deterministic=True)._padded


def test_the_check_of_rows_notices_a_product_that_depends_on_the_row(llama, monkeypatch):
    decoder = Decoder(llama, max_batch=4, deterministic=True)
    honest = decoder._head

    def tilted(x):
        result = honest(x).clone()
        result[-1] += 1e-6
        return result

    decoder._head = tilted
    assert not decoder._rows_are_alike()


def test_a_sample_depends_on_seed_key_and_place_and_not_on_neighbours(llama, tokenizer):
    engine = endless(llama, tokenizer, max_batch=8)
    mine = Request((1, 2, 3), Sampling(temperature=1.0, max_tokens=10, seed=5), key="mine")
    others = [Request((4 + place,), Sampling(temperature=1.0, max_tokens=3 + place)) for place in range(6)]
    (alone,) = engine.generate_all([mine])
    among = engine.generate_all([*others[:3], mine, *others[3:]])[3]
    assert among.token_ids == alone.token_ids
    reseeded = Request(mine.input_ids, Sampling(temperature=1.0, max_tokens=10, seed=6), key="mine")
    renamed = Request(mine.input_ids, mine.sampling, key="yours")
    found = engine.generate_all([mine, reseeded, renamed])
    assert found[0].token_ids == alone.token_ids
    assert len({completion.token_ids for completion in found}) == 3
