"""Calls that wait together are computed together; cancelling, failing and closing leave nothing behind."""

import asyncio
import gc
import threading

import pytest

from stackloom.core.errors import ConfigError
from stackloom.core.generation import Generator, Request, Sampling

from .tiny_models import endless, prompts


class Spy:
    """Counts the rows of every step of a runner, and breaks or waits when told to."""

    def __init__(self, runner):
        self.runner, self.joins, self.steps, self.broken = runner, [], [], False

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def join(self, given):
        self.joins.append(len(given))
        self.runner.join(given)

    def step(self, ids, rows):
        self.steps.append(len(ids))
        if self.broken:
            raise OSError("out of order")
        return self.runner.step(ids, rows)


@pytest.fixture(params=[False, True], ids=["own thread", "in loop"])
def engine(request, llama, tokenizer):
    engine = endless(llama, tokenizer, max_batch=4, in_loop=request.param)
    engine._batch.runner = Spy(engine._batch.runner)
    yield engine
    engine.close()


def requests(count=4, tokens=6):
    return [Request(prompt, Sampling(max_tokens=tokens)) for prompt in prompts(count)]


def ids(completions):
    """What does not depend on the batch; the last bits of a log-probability may, outside deterministic mode."""
    return [completion.token_ids for completion in completions]


def tasks():
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def settle(engine):
    """Wait until the engine has no work; its task then ends by itself."""
    for _ in range(2000):
        if not tasks():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the engine's task goes on")


def test_waiting_calls_share_their_steps(engine):
    async def main():
        generator: Generator = engine
        return await asyncio.gather(*(generator.generate(request) for request in requests()))

    found = asyncio.run(main())
    assert engine._batch.runner.joins == [4]
    assert engine._batch.runner.steps == [4] * 5
    assert ids(found) == ids(engine.generate_all(requests()))


def test_one_engine_serves_one_loop_after_another(engine):
    first, second = (asyncio.run(engine.generate(requests()[0])) for _ in range(2))
    assert first == second


def test_the_loop_stays_free_and_no_task_outlives_the_work(engine):
    async def main():
        ticks = 0
        call = asyncio.create_task(engine.generate(requests(tokens=40)[0]))
        while not call.done():
            ticks += 1
            await asyncio.sleep(0)
        await settle(engine)
        return ticks

    assert asyncio.run(main()) > 40
    assert engine._drivers == {}


def test_a_bad_request_fails_alone(engine):
    async def main():
        good, bad = requests(2)
        calls = [engine.generate(good), engine.generate(Request(())), engine.generate(bad)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, refused, second = asyncio.run(main())
    assert isinstance(refused, ConfigError)
    assert ids([first, second]) == ids(engine.generate_all(requests(2)))


def test_an_exception_reaches_every_waiter_and_the_engine_goes_on(engine):
    async def main():
        engine._batch.runner.broken = True
        found = await asyncio.gather(*(engine.generate(request) for request in requests(7)), return_exceptions=True)
        engine._batch.runner.broken = False
        return found, await engine.generate(requests()[0])

    broken, good = asyncio.run(main())
    assert [str(error) for error in broken] == ["out of order"] * 7
    assert engine._batch.runner.lengths == []
    assert good.token_ids == engine.generate_all(requests()[:1])[0].token_ids


def test_cancelling_a_call_frees_its_row(engine):
    async def main():
        long = asyncio.create_task(engine.generate(Request((1,), Sampling(max_tokens=90))))
        short = asyncio.create_task(engine.generate(requests()[0]))
        while not engine._batch.runner.steps:
            await asyncio.sleep(0.001)
        long.cancel()
        await asyncio.wait([long, short])
        await settle(engine)
        return long.cancelled(), short.result()

    cancelled, short = asyncio.run(main())
    assert cancelled
    assert short.token_ids == engine.generate_all(requests()[:1])[0].token_ids
    assert len(engine._batch.runner.steps) < 90
    assert (engine._batch.active, list(engine._batch.waiting), engine._batch.runner.lengths) == ([], [], [])


def test_a_call_cancelled_before_it_has_a_row_never_gets_one(engine):
    async def main():
        calls = [asyncio.create_task(engine.generate(request)) for request in requests(4)]
        late = asyncio.create_task(engine.generate(Request((9,), Sampling(max_tokens=50))))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.gather(*calls)
        await settle(engine)

    asyncio.run(main())
    assert sum(engine._batch.runner.joins) == 4


def test_a_callers_loop_that_ends_early_leaves_the_engine_usable(engine):
    async def impatient():
        await asyncio.wait_for(engine.generate(Request((1,), Sampling(max_tokens=90))), timeout=0.01)

    async def abandoned():
        asyncio.get_running_loop().create_task(engine.generate(Request((1,), Sampling(max_tokens=90))))
        await asyncio.sleep(0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    asyncio.run(abandoned())
    assert ids([asyncio.run(engine.generate(requests()[0]))]) == ids(engine.generate_all(requests()[:1]))
    assert engine._drivers == {}


def test_two_loops_in_two_threads_share_an_engine(engine):
    expected = engine.generate_all(requests(6))
    found = {}

    def serve(name, given):
        async def main():
            return await asyncio.gather(*(engine.generate(request) for request in given))

        found[name] = asyncio.run(main())

    threads = [threading.Thread(target=serve, args=(name, requests(6)[name::2])) for name in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [ids(found[name]) for name in (0, 1)] == [ids(expected[name::2]) for name in (0, 1)]


# --- streaming ------------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_text_in_pieces_and_then_the_completion(engine):
    request = requests(tokens=30)[0]

    async def main():
        stream = engine.stream(request)
        return [piece async for piece in stream], stream.completion

    pieces, completion = asyncio.run(main())
    assert "".join(piece.text for piece in pieces) == completion.text
    assert sum((piece.token_ids for piece in pieces), ()) == completion.token_ids
    assert sum((piece.logprobs for piece in pieces), ()) == completion.logprobs
    assert [completion] == engine.generate_all([request])
    assert len(pieces) > 1
    assert all(piece.text for piece in pieces[:-1])


def test_a_stop_string_cuts_stream_and_completion_alike(engine):
    (whole,) = engine.generate_all([Request((1, 2, 3), Sampling(max_tokens=40))])
    stop = next(whole.text[at : at + 3] for at in range(4, len(whole.text)) if whole.text[at : at + 3].isprintable())
    request = Request((1, 2, 3), Sampling(max_tokens=40, stop=(stop,)))

    async def main():
        stream = engine.stream(request)
        return [piece async for piece in stream], stream.completion

    pieces, completion = asyncio.run(main())
    assert "".join(piece.text for piece in pieces) == completion.text == whole.text[: whole.text.index(stop)]
    assert completion.finish == "stop"
    assert completion.token_ids == whole.token_ids[: len(completion.token_ids)]
    assert [completion] == engine.generate_all([request])


def test_a_special_token_named_as_stop_string_ends_the_sequence(engine, tokenizer):
    (whole,) = engine.generate_all([Request((1, 2, 3), Sampling(max_tokens=80))])
    sampling = Sampling(temperature=3.0, max_tokens=80, stop=("<|im_end|>",))
    found = engine.generate_all([Request((place,), sampling, key=str(place)) for place in range(12)])
    stopped = [completion for completion in found if completion.finish == "stop"]
    assert len(whole.token_ids) == 80
    assert stopped
    assert all(completion.token_ids.index(257) == len(completion.token_ids) - 1 for completion in stopped)


def test_dropping_a_stream_frees_its_row(engine):
    async def main():
        async for _ in engine.stream(Request((1,), Sampling(max_tokens=90))):
            break
        gc.collect()
        await settle(engine)

    asyncio.run(main())
    assert len(engine._batch.runner.steps) < 89
    assert engine._batch.runner.lengths == []


# --- closing --------------------------------------------------------------------------------------------------------


def test_closing_ends_every_waiter_and_leaves_no_task_or_thread(engine):
    before = threading.active_count()

    async def main():
        calls = [asyncio.create_task(engine.generate(request)) for request in requests(7, tokens=90)]
        while not engine._batch.runner.steps:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(engine.close)
        found = await asyncio.gather(*calls, return_exceptions=True)
        await settle(engine)
        return found

    found = asyncio.run(main())
    assert all(isinstance(error, ConfigError) for error in found)
    assert len(found) == 7
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stackloom-engine")]
    assert threading.active_count() <= before
    with pytest.raises(ConfigError, match="closed"):
        engine.generate_all(requests()[:1])
    with pytest.raises(ConfigError, match="closed"):
        asyncio.run(engine.generate(requests()[0]))
    engine.close()
