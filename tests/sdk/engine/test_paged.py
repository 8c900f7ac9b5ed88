"""Single steps over pages where they lie, and as captured graphs: the same tokens as with pages copied side by side."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
import torch

from stackloom.core.generation import Request, Sampling
from stackloom.engine.decoder import Decoder
from stackloom.engine.graphs import FEWEST_PAGES, StepGraphs

from .tiny_models import build, endless, prompts

COUNTS = (30, 3, 17, 9, 24, 1, 12, 40)


def requests():
    return [
        Request(prompt, Sampling(max_tokens=count, temperature=place % 2), key=str(place))
        for place, (prompt, count) in enumerate(zip(prompts(len(COUNTS), longest=40), COUNTS, strict=True))
    ]


class Replayed:
    """Stands for a capture: what is replayed reads the static arguments and writes the result where it lay."""

    def __init__(self):
        self.captured, self.replays = [], 0

    def __call__(self, step, static):
        result = step(*static)
        self.captured.append(tuple(tuple(each.shape) for each in static))

        def replay():
            self.replays += 1
            result.copy_(step(*static))

        return replay, result


def with_graphs(engine):
    """Give a CPU engine graphs; returns what stands for the capture."""
    capture = Replayed()
    runner = engine._batch.runner
    runner._graphs = StepGraphs(capture)
    return capture


@pytest.mark.parametrize("graphs", [False, True])
def test_pages_where_they_lie_give_the_tokens_of_pages_side_by_side(tokenizer, graphs):
    model = build(dtype=torch.float64)
    with endless(model, tokenizer, max_batch=5) as plain, endless(model, tokenizer, max_batch=5, paged=True) as paged:
        capture = with_graphs(paged) if graphs else None
        expected, found = plain.generate_all(requests()), paged.generate_all(requests())
    for one, two in zip(expected, found, strict=True):
        assert one.token_ids == two.token_ids
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)  # the choice is made in float32
    if capture:
        rows = {shapes[0][0] for shapes in capture.captured}
        assert rows <= {1, 2, 4, 5}
        assert {shapes[4][1] for shapes in capture.captured} == {FEWEST_PAGES}
        assert len(capture.captured) == len(set(capture.captured)) < capture.replays
        assert paged._batch.runner._graphs.shapes == len(capture.captured)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_shared_beginning_is_left_as_it_was(tokenizer, graphs):
    """Rows that share pages, and empty rows of a captured step, change nobody's keys and values."""
    model, beginning = build(dtype=torch.float64), tuple(range(40))
    asked = [Request((*beginning, 50 + place), Sampling(max_tokens=20)) for place in range(3)]
    with endless(model, tokenizer, max_batch=5) as plain, endless(model, tokenizer, max_batch=5, paged=True) as paged:
        if graphs:
            with_graphs(paged)
        for _ in range(2):
            expected, found = plain.generate_all(asked), paged.generate_all(asked)
            assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_new_weights_have_new_graphs(tokenizer):
    model, other = build(dtype=torch.float64), build(dtype=torch.float64, seed=1)
    with endless(model, tokenizer, paged=True) as engine:
        with_graphs(engine)
        engine.generate_all(requests())
        model.load_state_dict(other.state_dict())
        engine.refresh()
        assert engine._batch.runner._graphs is None  # those of the old weights are gone; a GPU makes new ones
        found = engine.generate_all(requests())
    with endless(other, tokenizer) as plain:
        assert [one.token_ids for one in found] == [one.token_ids for one in plain.generate_all(requests())]


def test_a_decoder_with_graphs_is_let_go_of_at_once(tokenizer):
    """No cycle keeps old weights and pages until the garbage collector comes by."""
    gc.disable()
    try:
        with endless(build(), tokenizer, paged=True) as engine:
            # as on a GPU, what is replayed knows nothing of the step; tokens after the first mean nothing here
            engine._batch.runner._graphs = StepGraphs(lambda step, static: (lambda: None, step(*static)))
            engine.generate_all(requests())
            assert engine._batch.runner._graphs.shapes
            old = weakref.ref(engine._batch.runner)
            engine.refresh()
            assert old() is None
    finally:
        gc.enable()


def test_a_sequence_that_is_cancelled_frees_its_pages(tokenizer):
    async def main():
        with endless(build(), tokenizer, max_batch=4, paged=True, prefix_bytes=0) as engine:
            with_graphs(engine)
            calls = [asyncio.create_task(engine.generate(request)) for request in requests()]
            while not engine.running:
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            async with asyncio.timeout(10):
                while engine.pages[0]:  # the next step lets go of what was cancelled
                    await asyncio.sleep(0.001)

    asyncio.run(main())


def test_a_deterministic_engine_copies_pages(tokenizer):
    with endless(build(), tokenizer, deterministic=True, paged=True) as engine:
        runner = engine._batch.runner
        assert isinstance(runner, Decoder)
        assert not runner._paged


def test_a_cpu_copies_pages_unless_it_is_told_otherwise(tokenizer):
    with endless(build(), tokenizer) as engine:
        assert not engine._batch.runner._paged
        assert engine._batch.runner._graphs is None


@pytest.mark.parametrize(
    ("rows", "pages", "most", "shape"),
    [(1, 1, 32, (1, FEWEST_PAGES)), (3, 9, 32, (4, 16)), (32, 16, 32, (32, 16)), (20, 40, 24, (24, 64))],
)
def test_shapes_are_the_next_powers_of_two(rows, pages, most, shape):
    assert StepGraphs(Replayed()).shape(rows, pages, most) == shape


def test_a_shape_is_captured_once_and_replayed_on_new_arguments():
    capture = Replayed()
    graphs = StepGraphs(capture)
    for value in range(3):
        assert graphs(torch.add, torch.full((2,), float(value)), torch.ones(2)).tolist() == [value + 1.0] * 2
    assert graphs(torch.add, torch.ones(3), torch.ones(3)).tolist() == [2.0] * 3
    assert graphs(torch.add, *[torch.ones(2, dtype=torch.float64)] * 2).dtype == torch.float64
    assert (graphs.shapes, len(capture.captured)) == (3, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_captured_steps_give_the_tokens_of_plain_ones(tokenizer, dtype):
    model = build(dtype=dtype).cuda()
    options = {"max_batch": 5}
    with (
        endless(model, tokenizer, paged=False, **options) as plain,
        endless(model, tokenizer, graphs=False, **options) as eager,
        endless(model, tokenizer, **options) as captured,
    ):
        expected = plain.generate_all(requests())
        one, two = eager.generate_all(requests()), captured.generate_all(requests())
        assert captured._batch.runner._graphs.shapes > 0
    assert [each.token_ids for each in one] == [each.token_ids for each in two]
    if dtype == torch.float32:
        assert [each.token_ids for each in two] == [each.token_ids for each in expected]
