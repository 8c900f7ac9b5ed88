"""`Engine`: continues token sequences with a causal language model; calls that wait together are computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackloom.core.errors import ConfigError
from stackloom.core.generation import Completion, ContextFull, Request
from stackloom.engine.batch import Batch, Generation, Piece
from stackloom.engine.decoder import Decoder, supports
from stackloom.engine.grammar import Grammars
from stackloom.engine.requests import check_request
from stackloom.engine.runner import RowByRow, Runner

SETTLE = 8  # turns of the event loop in which callers that a step has answered may ask again, before the next step


class Engine:
    """Fulfils `core.generation.Generator` for a model of transformers.

    Llama, Mistral and Qwen models without sliding windows, with or without attention plugins, run layer by layer on the
    engine's own memory; any other causal language model runs its own forward pass row by row. Weights are copied:
    call `refresh` after changing them.

    Args:
        model: a causal language model; put into eval mode.
        tokenizer: its tokenizer.
        max_batch: most sequences computed at once; others wait.
        deterministic: a sequence gets the same bits alone and in any batch, at a cost in speed. Without it, the
            same calls in the same order still give the same bits.
        cache_bytes: most memory for keys and values; where it ends, the sequences that came last wait and are computed
            again later. A CPU takes it as it is needed, a GPU at once.
        prefix_bytes: how much of it what earlier sequences computed may keep, for prompts that begin alike.
        in_loop: compute in the thread of the event loop that asks, which stands still for a step, instead of in a
            thread of the engine's own. On a CPU that is up to twice as fast, since the OpenMP workers of two threads
            outnumber the cores, and libgomp then lets them sleep between operations.
        paged, graphs: how single steps attend and run on a GPU; see `decoder.Decoder`.
        end_tokens: ids that end a sequence; None takes the model's generation config's, or else the tokenizer's.

    Raises:
        ConfigError: max_batch below 1, cache_bytes below one page, or an end token that the model does not have.

    Example:
        >>> engine = Engine(model, tokenizer)
        >>> engine.generate_all([Request((1, 2, 3), Sampling(max_tokens=5))])[0].finish
        'length'
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch: int = 32,
        deterministic: bool = False,
        cache_bytes: int = 4 * 1024**3,
        prefix_bytes: int = 256 * 1024**2,
        in_loop: bool = False,
        paged: bool | None = None,
        graphs: bool = True,
        end_tokens: Iterable[int] | None = None,
    ) -> None:
        if type(max_batch) is not int or max_batch < 1:
            raise ConfigError(f"max_batch is {max_batch!r}", where="max_batch", fix="a whole number, at least 1")
        self.model = cast(Any, model)
        self.model.eval()
        self.tokenizer = tokenizer
        self.max_batch, self.deterministic = max_batch, deterministic
        self.cache_bytes, self.prefix_bytes = cache_bytes, prefix_bytes
        self._in_loop, self._paged, self._graphs = in_loop, paged, graphs
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.end_tokens = _end_tokens(self.model, tokenizer) if end_tokens is None else frozenset(end_tokens)
        if unknown := [token for token in self.end_tokens if not 0 <= token < self.vocabulary]:
            raise ConfigError(f"{unknown[0]} is no token id of this model", where="end_tokens")
        self._grammars = Grammars(tokenizer, self.vocabulary, self.end_tokens)
        self._batch = Batch(self._runner(), max_batch=max_batch, deterministic=deterministic)
        if self._batch.runner.capacity == 0:
            raise ConfigError(f"{cache_bytes} bytes hold no page", where="cache_bytes", fix="give at least some MiB")
        self._stepping = Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._drivers: dict[asyncio.AbstractEventLoop, _Driver] = {}
        self._closed = False

    @property
    def running(self) -> int:
        """Sequences that are computed now."""
        return len(self._batch.active)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a row."""
        return len(self._batch.waiting)

    @property
    def preempted(self) -> int:
        """How often a sequence gave its memory back before its end."""
        return self._batch.preempted

    @property
    def version(self) -> int:
        """How often weights were read anew."""
        return self._batch.version

    @property
    def pages(self) -> tuple[int, int, int]:
        """Pages of memory that are in use, that are kept for prompts that begin alike, and that there are."""
        pages = self._batch.runner.pages if isinstance(self._batch.runner, Decoder) else None
        return (0, 0, 0) if pages is None else (pages.used - pages.idle, pages.idle, pages.capacity)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be computed; from any thread.

        Raises:
            ConfigError: as `generate` does.
        """
        self._generation(request)

    async def generate(self, request: Request) -> Completion:
        """Continue one sequence, together with all others that wait. Cancelling the call frees its row.

        Raises:
            ConfigError: an empty prompt, one that leaves no room in the context, sampling options out of range, or a
                closed engine.
        """
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()

        def wake(_: Generation) -> None:
            _call(loop, lambda: None if finished.done() else finished.set_result(None))

        generation = self._generation(request, on_done=wake)
        self._submit(generation, loop)
        try:
            await finished
        finally:
            generation.cancel()
        return _result(generation)

    def stream(self, request: Request) -> TextStream:
        """Return an async iterator over the pieces of one sequence; see `TextStream`. To be called in a running loop.

        Raises:
            ConfigError: as `generate` does.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        generation = self._generation(
            request,
            on_piece=lambda piece: _call(loop, lambda: pieces.put_nowait(piece)),
            on_done=lambda _: _call(loop, lambda: pieces.put_nowait(None)),
        )
        self._submit(generation, loop)
        return TextStream(generation, pieces)

    def generate_all(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """Continue all sequences and return their completions in order. Blocks.

        Args:
            requests: any number; at most `max_batch` are computed at once.
            progress: called with (finished, all) whenever some have finished.

        Raises:
            ConfigError: a bad request, found before anything is computed, or a closed engine.
        """
        generations = [self._generation(request, where=f"requests[{place}]") for place, request in enumerate(requests)]
        with self._stepping:
            self._check_open()
            for generation in generations:
                self._batch.submit(generation)
        told = 0
        try:
            while (finished := sum(generation.done for generation in generations)) < len(generations):
                if progress is not None and finished > told:
                    progress(told := finished, len(generations))
                self._step()
        finally:
            for generation in generations:
                generation.cancel()
        if progress is not None and generations and told < len(generations):
            progress(len(generations), len(generations))
        return [_result(generation) for generation in generations]

    def refresh(self) -> None:
        """Read the model's weights anew, between two steps.

        Sequences that are under way go on with the new weights, which first read what there is of them; each token of a
        completion names the version of the weights that chose it.
        """
        with self._stepping:
            self._batch.replace(self._runner())

    def close(self) -> None:
        """End what runs or waits with an error and stop the engine's thread. Closing twice does nothing."""
        with self._stepping:
            self._closed = True
            self._batch.fail(_closed())
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _runner(self) -> Runner:
        if supports(self.model):
            return Decoder(
                self.model,
                max_batch=self.max_batch,
                deterministic=self.deterministic,
                cache_bytes=self.cache_bytes,
                prefix_bytes=self.prefix_bytes,
                paged=self._paged,
                graphs=self._graphs,
            )
        return RowByRow(self.model)

    def _generation(
        self,
        request: Request,
        *,
        where: str = "request",
        on_piece: Callable[[Piece], None] | None = None,
        on_done: Callable[[Generation], None] | None = None,
    ) -> Generation:
        check_request(request, vocabulary=self.vocabulary, context=self.context, where=where)
        added = self.tokenizer.get_added_vocab()
        ends = {added[stop] for stop in request.sampling.stop if stop in added}
        room, schema = request.sampling.max_tokens, request.sampling.json_schema
        for limit in (self.context, self._batch.runner.capacity):
            if limit is not None:
                room = min(room, limit - len(request.input_ids))
        if room < 1:
            tokens = len(request.input_ids)
            raise ContextFull(
                f"a prompt of {tokens} tokens does not fit into {self.cache_bytes} bytes of keys and values",
                where=f"{where}.input_ids",
                fix="shorten the prompt, or raise cache_bytes",
            )
        return Generation(
            request,
            end_tokens=self.end_tokens | ends,
            room=room,
            tokenizer=self.tokenizer,
            grammar=self._grammars.follow(schema, where=f"{where}.sampling.json_schema") if schema else None,
            on_piece=on_piece,
            on_done=on_done,
        )

    def _submit(self, generation: Generation, loop: asyncio.AbstractEventLoop) -> None:
        """Queue a sequence and see to it that a task of this loop steps the batch until it is done."""
        self._check_open()
        self._batch.submit(generation)
        if loop not in self._drivers:
            driver = self._drivers[loop] = _Driver()
            driver.task = loop.create_task(self._drive(loop, driver.waiting), name="stackloom-engine")
        self._drivers[loop].waiting.append(generation)

    async def _drive(self, loop: asyncio.AbstractEventLoop, waiting: list[Generation]) -> None:
        """Step while this loop waits for anything; between two steps its tasks go on; no task goes on idle."""
        try:
            while waiting and not self._closed:
                if self._in_loop:
                    self._step()
                else:
                    if self._thread is None:
                        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stackloom-engine")
                    await loop.run_in_executor(self._thread, self._step)
                for _ in range(SETTLE):
                    await asyncio.sleep(0)
                waiting[:] = [generation for generation in waiting if not generation.done]
        finally:
            self._drivers.pop(loop, None)
            for generation in waiting:  # left early, by close() or by the loop's own end: nobody may wait for ever
                generation.fail(_closed())
            with self._stepping:
                self._batch.sweep()

    def _step(self) -> None:
        with self._stepping:
            if not self._closed:
                self._batch.step()

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


@dataclass
class _Driver:
    """The task of one event loop that steps the batch, and the sequences that this loop waits for."""

    waiting: list[Generation] = field(default_factory=list)
    task: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly


class TextStream:
    """Pieces of one sequence, as their text becomes certain; together they hold every token.

    Leaving the loop early and dropping the stream frees its row. `completion` is set once the pieces are over.

    Example:
        >>> async for piece in engine.stream(request):
        ...     print(piece.text, end="")
    """

    def __init__(self, generation: Generation, pieces: asyncio.Queue[Piece | None]) -> None:
        self._generation, self._pieces = generation, pieces
        self.completion: Completion | None = None
        self._over = False

    def __aiter__(self) -> TextStream:
        return self

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        try:
            piece = await self._pieces.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if piece is None:
            self._over = True
            self.completion = _result(self._generation)
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Give up; the row is free from the next step on."""
        self._over = True
        self._generation.cancel()

    def __del__(self) -> None:
        self._generation.cancel()


def _result(generation: Generation) -> Completion:
    if generation.error is not None:
        raise generation.error
    if generation.completion is None:
        raise _closed()
    return generation.completion


def _closed() -> ConfigError:
    return ConfigError("the engine is closed", fix="make a new one")


def _call(loop: asyncio.AbstractEventLoop, action: Callable[[], object]) -> None:
    """Run `action` in the loop; one that was closed meanwhile has nobody left to tell."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(action)


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)
