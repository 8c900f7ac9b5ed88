"""Continuous batching: sequences join between two steps, all move on by a token, finished and cancelled ones leave.

Where memory ends, the sequence that came last gives its own back and is computed again later, to the same tokens.
"""

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

PROMPT_TOKENS = 4096  # of prompts that one step computes while no sequence waits for its next token
CHUNK_TOKENS = 512  # of prompts that one step computes beside sequences that do


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
        self.versions: list[int] = []
        self.arrival = self.fed = 0  # place in the order of joining; how many generated tokens the runner knows
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

    def accept(self, chosen: Chosen, version: int) -> None:
        """Take the next token, which weights of that version chose.

        Raises:
            EngineError: its grammar cannot go on.
        """
        token = chosen.token
        self.token_ids.append(token)
        self.logprobs.append(chosen.logprob)
        self.versions.append(version)
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
        self.completion = Completion(
            tuple(self.token_ids), tuple(self.logprobs), text, finish, tuple(self.likeliest), tuple(self.versions)
        )
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
        deterministic: choose each row's token alone, and compute again what was computed exactly as it was.

    Attributes:
        version: of the runner's weights.
        preempted: how often a sequence gave its memory back before its end.
    """

    def __init__(self, runner: Runner, *, max_batch: int, deterministic: bool) -> None:
        self.runner, self.max_batch, self.deterministic = runner, max_batch, deterministic
        self.waiting: deque[Generation] = deque()
        self.active: list[Generation] = []  # row i of the runner belongs to active[i]
        self.version = self.preempted = self._arrivals = 0

    @property
    def busy(self) -> bool:
        """Whether a sequence waits or holds a row."""
        return bool(self.active or self.waiting)

    def submit(self, generation: Generation) -> None:
        """Queue a sequence."""
        self.waiting.append(generation)

    def step(self) -> None:
        """Let sequences leave and join, compute prompts, then move all on by one token.

        An error ends every sequence, running or waiting, and leaves the batch empty and usable.
        """
        try:
            with torch.inference_mode():
                self.sweep()
                self._admit()
                filling = self.runner.filling
                if filling:
                    self._fill(CHUNK_TOKENS if len(filling) < len(self.active) else PROMPT_TOKENS)
                    self.sweep()
                if rows := self._reserve():
                    logits = self.runner.step([self._next_fed(self.active[row]) for row in rows], rows)
                    self._advance([self.active[row] for row in rows], logits)
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

    def replace(self, runner: Runner) -> None:
        """Go on with other weights: what was read and generated so far is computed again with them."""
        self.sweep()
        while self.active:
            self._preempt(count=False)
        self.runner = runner
        self.version += 1

    def sweep(self) -> None:
        """Let go of sequences that are finished or cancelled."""
        for row in reversed(range(len(self.active))):
            if self.active[row].done:
                self._leave(row)
        while self.waiting and self.waiting[0].done:
            self.waiting.popleft()

    def _leave(self, row: int) -> Generation:
        leaving = self.active[row]
        self.runner.leave(row)
        self.active[row] = self.active[-1]
        self.active.pop()
        return leaving

    def _preempt(self, *, count: bool = True) -> None:
        """Take the row of the sequence that joined last, and put it before all that wait."""
        row = max(range(len(self.active)), key=lambda row: self.active[row].arrival)
        self.waiting.appendleft(self._leave(row))
        self.preempted += count

    def _admit(self) -> None:
        """Take waiting sequences, in order, as far as rows and memory reach."""
        joining: list[Generation] = []
        prompts: list[tuple[int, ...]] = []
        room = self.runner.room
        while self.waiting and len(self.active) + len(joining) < self.max_batch:
            if self.waiting[0].done:
                self.waiting.popleft()
                continue
            prompt = self._prompt(self.waiting[0])
            if room is not None:
                if len(prompt) >= room and (self.active or joining):
                    break
                room -= len(prompt) + 1
            joining.append(self.waiting.popleft())
            prompts.append(prompt)
        if joining:
            self.runner.join(prompts)
        for generation in joining:
            generation.arrival = self._arrivals = self._arrivals + 1
            generation.fed = 0 if self.deterministic else len(generation.token_ids)
        self.active += joining

    def _prompt(self, generation: Generation) -> tuple[int, ...]:
        """Return what a sequence begins with: where it was computed before, what it has generated is part of it.

        A deterministic batch feeds that one by one instead, as it did the first time.
        """
        read = generation.request.input_ids
        return read if self.deterministic else (*read, *generation.token_ids)

    def _fill(self, tokens: int) -> None:
        """Compute prompts; the sequences whose prompt is whole get their first token."""
        before = sum(self.runner.lengths)
        found = self.runner.fill(tokens)
        if sum(self.runner.lengths) == before and len(self.runner.filling) == len(self.active):
            self._make_room()
        if found:
            self._advance([self.active[row] for row in found], torch.stack(list(found.values())))

    def _make_room(self) -> None:
        """Have the sequence that joined last give its memory back.

        Raises:
            EngineError: it is the only one, which always fits.
        """
        if len(self.active) == 1:
            raise EngineError("memory for keys and values has run out under a single sequence")
        self._preempt()

    def _reserve(self) -> list[int]:
        """Return the rows that move on, all of which have memory for one more token."""
        while self.active:
            filling = set(self.runner.filling)
            rows = [row for row in range(len(self.active)) if row not in filling]
            if self.runner.reserve(rows):
                return rows
            self._make_room()
        return []

    def _next_fed(self, generation: Generation) -> int:
        generation.fed += 1
        return generation.token_ids[generation.fed - 1]

    def _advance(self, generations: Sequence[Generation], logits_NV: Tensor) -> None:
        """Give each sequence its next token, unless it has it; one whose grammar breaks ends alone."""
        news = [place for place, one in enumerate(generations) if one.fed == len(one.token_ids)]
        if len(news) < len(generations):
            generations, logits_NV = [generations[place] for place in news], logits_NV[news]
        choices = []
        for generation in generations:
            try:
                choices.append(generation.choice())
            except EngineError as error:
                generation.fail(error)
                choices.append(Choice(generation.request.sampling))
        if not choices:
            return
        chosen = choose(logits_NV, choices, one_by_one=self.deterministic)
        for generation, one in zip(generations, chosen, strict=True):
            if not generation.done:
                try:
                    generation.accept(one, self.version)
                except EngineError as error:
                    generation.fail(error)
