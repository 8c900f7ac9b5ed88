"""Draws word problems, runs the calculator and judges answers exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from random import Random

from stackloom.core.chat import Message, ToolCall, tool_prompt
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.plugins.environment.arithmetic.calculator import CALCULATOR, calculate, exact, last_number, show
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig
from stackloom.plugins.environment.arithmetic.problems import KINDS, Problem

MAX_DRAWS = 1000
INSTRUCTION = "Solve the problem with the calculator. End with: The answer is <number>.\n"


class Arithmetic:
    """Word problems that take one or two calls of a calculator.

    Task `i` of a split is a pure function of the options and `i`. The numbers of a problem decide which split may have
    it, so no problem is in both, whoever it is about and whatever the seed.

    Args:
        config: the plugin's options.

    Example:
        >>> environment = Arithmetic(ArithmeticConfig())
        >>> task = environment.tasks("train", 1)[0]
        >>> environment.demonstration(task)[-1].content
        'The answer is 69.'
    """

    def __init__(self, config: ArithmeticConfig) -> None:
        self.config = config
        self._system = Message("system", INSTRUCTION + tool_prompt([CALCULATOR], compact=True))

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split, its kinds in turn.

        Raises:
            ConfigError: no such split, or `largest` leaves a kind no problem for it.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where="environment.arithmetic", fix="train or held-out")
        return [self._task(split, index) for index in range(count)]

    def start(self, task: Task) -> ArithmeticEpisode:
        """Begin an attempt."""
        return ArithmeticEpisode(task)

    def demonstration(self, task: Task) -> list[Message]:
        """Return the calls that solve the task, their results, and the answer in a sentence."""
        steps, messages = _work(task.secret["steps"]), []
        for index, (expression, result) in enumerate(steps):
            call = ToolCall(CALCULATOR.name, {"expression": expression}, "call_0")
            thought = f"Step {index + 1}." if len(steps) > 1 else ""
            messages += [
                Message("assistant", thought, (call,)),
                Message("tool", result, tool_call_id=call.id, name=call.name),
            ]
        return [*messages, Message("assistant", f"The answer is {task.secret['answer']}.")]

    def _task(self, split: Split, index: int) -> Task:
        rng = Random(f"{self.config.seed}/{split}/{index}")
        trained = self.config.kinds
        kinds = trained if split == "train" else trained + self.config.unseen_kinds
        kind = kinds[index % len(kinds)]
        problem = _draw(kind, rng, self.config.largest, (split,) if kind in trained else ("train", "held-out"))
        return Task(
            id=f"arithmetic/{self.config.seed}/{split}/{index}",
            kind=f"{'trained' if kind in trained else 'unseen'}/{kind}",
            messages=(self._system, Message("user", problem.question)),
            tools=(CALCULATOR,),
            secret={"answer": _work(problem.steps)[-1][1], "steps": problem.steps},
        )


def home(kind: str, numbers: Sequence[int]) -> Split:
    """Return the one split that may have a problem: the parity of a hash of its kind and its numbers in any order."""
    digest = hashlib.sha256(f"{kind}:{','.join(map(str, sorted(numbers)))}".encode()).digest()
    return "held-out" if digest[0] % 2 else "train"


def _draw(kind: str, rng: Random, largest: int, homes: Sequence[Split]) -> Problem:
    for _ in range(MAX_DRAWS):
        problem = KINDS[kind](rng, largest)
        if home(kind, problem.numbers) in homes:
            return problem
    raise ConfigError(
        f"found no {homes[0]} problem of kind {kind!r} with numbers up to {largest}",
        where="environment.arithmetic",
        fix="raise largest",
    )


def _work(steps: Sequence[str]) -> list[tuple[str, str]]:
    """Return (expression, result) of each step."""
    return [(step, show(calculate(step))) for step in steps]


class ArithmeticEpisode:
    """One attempt. The calculator keeps no state, so there is nothing an agent could change.

    Args:
        task: what is attempted.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def call(self, call: ToolCall) -> str:
        """Run the calculator.

        Raises:
            ToolError: another tool, arguments other than one text `expression`, or an expression that it refuses.
        """
        if call.name != CALCULATOR.name:
            raise ToolError(f"there is no tool {call.name[:40]!r}; call {CALCULATOR.name}")
        if set(call.arguments) != {"expression"} or not isinstance(call.arguments["expression"], str):
            raise ToolError('calculator takes one text: {"expression": "(12 + 3) * 4"}')
        return show(calculate(call.arguments["expression"]))

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """1 if the last number of the final message equals the answer exactly, otherwise 0."""
        expected = Fraction(self._task.secret["answer"])
        found = _final_number(transcript)
        if found is None:
            return Reward(0.0, reason="no final message with a number")
        if found != expected:
            return Reward(0.0, reason=f"answered {exact(found) or found}, expected {exact(expected)}")
        return Reward(1.0, reason="exact")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the last number of the final message, equal numbers in one spelling."""
        found = _final_number(transcript)
        return None if found is None else exact(found) or str(found)


def _final_number(transcript: Sequence[Message]) -> Fraction | None:
    if not transcript or transcript[-1].role != "assistant" or transcript[-1].tool_calls:
        return None
    return last_number(transcript[-1].content)
