"""Continuous batching: sequences join between two steps, all move on by a token, finished and cancelled ones leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stackloom.core.errors import EngineError
from stackloom.core.generation import Completion, Request
from stackloom.engine.grammar import Grammar
from stackloom.engine.runner import Runner
from stackloom.engine.sampling import Choice, Chosen, choose, uniform
from stackloom.engine.text import GrowingText

PROMPT_TOKENS = 4096  # prompts computed together hold at most this many tokens, or are a single one


@dataclass(frozen=True)
class Piece:
    """Text that has become certain, and the tokens since the piece before it.

    Attributes:
        text: whole characters, never part of a stop string; may be empty at the end.
        token_ids, logprobs, top_logprobs: as in `core.generation.Completion`.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]


class Generation:
    """One request on its way to a completion. The stepping thread writes it; `cancel` may be called from any.

    Args:
        request: checked by `check_request`.
        end_tokens: ids that end it.
        room: most tokens to generate.
        tokenizer: decodes the text.
        grammar: what its text follows; None for free text.
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
        grammar: Grammar | None = None,
        on_piece: Callable[[Piece], None] | None = None,
        on_done: Callable[[Generation], None] | None = None,
    ) -> None:
        self.request, self.room, self.end_tokens = request, room, end_tokens
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.likeliest: list[tuple[tuple[int, float], ...]] = []
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self._tokenizer, self._on_piece, self._on_done = tokenizer, on_piece, on_done
        self._grammar, self._told = grammar, 0
        self._text = GrowingText(tokenizer, request.sampling.stop)
        self._follows_text = on_piece is not None or bool(request.sampling.stop)

    @property
    def done(self) -> bool:
        """Whether there is a completion, an error or nobody who waits."""
        return self.completion is not None or self.error is not None or self.cancelled

    def cancel(self) -> None:
        """Give up; the row is free from the next step on."""
        self.cancelled = True

    def choice(self) -> Choice:
        """Return how its next token is chosen.

        Raises:
            EngineError: its grammar allows none.
        """
        request, sampling = self.request, self.request.sampling
        number = uniform(sampling.seed, request.key, len(self.token_ids)) if sampling.temperature > 0 else 0.0
        allowed = None if self._grammar is None else self._grammar.allowed()
        return Choice(sampling, number, request.input_ids, self.token_ids, allowed, request.top_logprobs)

    def accept(self, chosen: Chosen) -> None:
        """Take the next token.

        Raises:
            EngineError: its grammar cannot go on.
        """
        token = chosen.token
        self.token_ids.append(token)
        self.logprobs.append(chosen.logprob)
        if self.request.top_logprobs:
            self.likeliest.append(chosen.likeliest)
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._follows_text and (text := self._text.append(token)):
            self._tell(text)
        over = self._grammar is not None and self._grammar.complete
        if over or self._text.stopped or token in self.end_tokens:
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
            text, untold = self._text.finish(), self._told < len(self.token_ids)
            if text or untold:
                self._tell(text)
            text = self._text.text
            finish = "stop" if self._text.stopped else finish
        else:
            text = str(
                self._tokenizer.decode(self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
        likeliest = tuple(self.likeliest)
        self.completion = Completion(tuple(self.token_ids), tuple(self.logprobs), text, finish, likeliest)
        if self._on_done is not None:
            self._on_done(self)

    def _tell(self, text: str) -> None:
        if self._on_piece is not None:
            new = slice(self._told, len(self.token_ids))
            self._told = len(self.token_ids)
            self._on_piece(
                Piece(text, tuple(self.token_ids[new]), tuple(self.logprobs[new]), tuple(self.likeliest[new]))
            )


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
        """Give each sequence its next token; one whose grammar breaks ends alone."""
        choices = []
        for generation in generations:
            try:
                choices.append(generation.choice())
            except EngineError as error:
                generation.fail(error)
                choices.append(Choice(generation.request.sampling))
        for generation, chosen in zip(
            generations, choose(logits_NV, choices, one_by_one=self.deterministic), strict=True
        ):
            if not generation.done:
                try:
                    generation.accept(chosen)
                except EngineError as error:
                    generation.fail(error)
