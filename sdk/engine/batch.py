"""Continuous batching: sequences join between two steps, all move on by a token, finished and cancelled ones leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stackloom.core.errors import EngineError
from stackloom.core.generation import Completion, Request
from stackloom.engine.runner import Runner
from stackloom.engine.sampling import choose, uniform
from stackloom.engine.text import GrowingText

PROMPT_TOKENS = 4096  # prompts computed together hold at most this many tokens, or are a single one


class Generation:
    """One request on its way to a completion. The stepping thread writes it; `cancel` may be called from any.

    Args:
        request: checked by `check_request`.
        end_tokens: ids that end it.
        room: most tokens to generate.
        tokenizer: decodes the text.
        on_piece: called with each piece of text as it becomes certain.
        on_done: called once, when `completion` or `error` is set.
    """

    def __init__(
        self,
        request: Request,
        *,
        end_tokens: frozenset[int],
        room: int,
        tokenizer: PreTrainedTokenizerBase,
        on_piece: Callable[[str], None] | None = None,
        on_done: Callable[[Generation], None] | None = None,
    ) -> None:
        self.request, self.room, self.end_tokens = request, room, end_tokens
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self._tokenizer, self._on_piece, self._on_done = tokenizer, on_piece, on_done
        self._text = GrowingText(tokenizer, request.sampling.stop)
        self._follows_text = on_piece is not None or bool(request.sampling.stop)

    @property
    def done(self) -> bool:
        """Whether there is a completion, an error or nobody who waits."""
        return self.completion is not None or self.error is not None or self.cancelled

    def cancel(self) -> None:
        """Give up; the row is free from the next step on."""
        self.cancelled = True

    def accept(self, token: int, logprob: float) -> None:
        """Take the next token."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if self._follows_text:
            self._tell(self._text.append(token))
        if self._text.stopped or token in self.end_tokens:
            self._complete("stop")
        elif len(self.token_ids) >= self.room:
            self._complete("length")

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.done:
            self.error = error
            if self._on_done is not None:
                self._on_done(self)

    def _complete(self, finish: Literal["stop", "length"]) -> None:
        if self._follows_text:
            self._tell(self._text.finish())
            text = self._text.text
            finish = "stop" if self._text.stopped else finish
        else:
            text = str(
                self._tokenizer.decode(self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
        self.completion = Completion(tuple(self.token_ids), tuple(self.logprobs), text, finish)
        if self._on_done is not None:
            self._on_done(self)

    def _tell(self, piece: str) -> None:
        if piece and self._on_piece is not None:
            self._on_piece(piece)


class Batch:
    """The sequences that are computed now, and those that wait for a row.

    Args:
        runner: holds the model and the memory.
        max_batch: most rows.
        deterministic: choose each row's token alone.
    """

    def __init__(self, runner: Runner, *, max_batch: int, deterministic: bool) -> None:
        self.runner, self.max_batch, self.deterministic = runner, max_batch, deterministic
        self.waiting: deque[Generation] = deque()
        self.active: list[Generation] = []  # row i of the runner belongs to active[i]

    @property
    def busy(self) -> bool:
        """Whether a sequence waits or holds a row."""
        return bool(self.active or self.waiting)

    def submit(self, generation: Generation) -> None:
        """Queue a sequence."""
        self.waiting.append(generation)

    def step(self) -> None:
        """Let sequences leave and join, then move all on by one token.

        An error ends every sequence, running or waiting, and leaves the batch empty and usable.
        """
        try:
            with torch.inference_mode():
                self.sweep()
                if joining := self._admit():
                    logits = self.runner.join([generation.request.input_ids for generation in joining])
                    self.active += joining
                    self._advance(joining, logits)
                    self.sweep()
                if self.active:
                    logits = self.runner.step([generation.token_ids[-1] for generation in self.active])
                    self._advance(self.active, logits)
                    self.sweep()
        except BaseException as error:
            self.fail(error if isinstance(error, Exception) else EngineError(f"stopped by {type(error).__name__}"))
            if not isinstance(error, Exception):
                raise

    def fail(self, error: BaseException) -> None:
        """End every sequence with an error and forget them."""
        stranded = [*self.active, *self.waiting]
        self.active.clear()
        self.waiting.clear()
        self.runner.clear()
        for generation in stranded:
            generation.fail(error)

    def _admit(self) -> list[Generation]:
        """Take waiting sequences, in order, as far as rows and PROMPT_TOKENS reach."""
        joining: list[Generation] = []
        tokens = 0
        while self.waiting and len(self.active) + len(joining) < self.max_batch:
            size = len(self.waiting[0].request.input_ids)
            if joining and tokens + size > PROMPT_TOKENS:
                break
            generation = self.waiting.popleft()
            if not generation.done:
                joining.append(generation)
                tokens += size
        return joining

    def sweep(self) -> None:
        """Let go of sequences that are finished or cancelled."""
        for row in reversed(range(len(self.active))):
            if self.active[row].done:
                self.runner.leave(row)
                self.active[row] = self.active[-1]
                self.active.pop()
        while self.waiting and self.waiting[0].done:
            self.waiting.popleft()

    def _advance(self, generations: Sequence[Generation], logits_NV: Tensor) -> None:
        draws = []
        for generation in generations:
            request, position = generation.request, len(generation.token_ids)
            drawn = request.sampling.temperature > 0
            draws.append((request.sampling, uniform(request.sampling.seed, request.key, position) if drawn else 0.0))
        ids, logprobs = choose(logits_NV, draws, one_by_one=self.deterministic)
        for generation, token, logprob in zip(generations, ids, logprobs, strict=True):
            generation.accept(token, logprob)
