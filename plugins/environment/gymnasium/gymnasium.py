"""Any Gymnasium environment: each reset a task, each action a call, the return a reward."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from stackloom.core.chat import Message, Tool, ToolCall, tool_prompt
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.environment import Reward, Split, Task, ToolError
from stackloom.plugins.environment.gymnasium.config import GymnasiumConfig

WHERE = "environment.gymnasium"
HIGHLIGHTED = re.compile(r"\x1b\[[\d;]*m([^\x1b]*)\x1b\[0m")  # by a terminal's colours
ACT = "act"


class Gymnasium:
    """Tasks of one registered environment, told apart by their seeds. Spaces may be discrete, boxes, or texts.

    Args:
        config: the plugin's options.

    Raises:
        ConfigError: gymnasium is missing, there is no such environment, or it refuses its options.
        FitError: its action space is not one that a tool call can fill.

    Example:
        >>> environment = Gymnasium(GymnasiumConfig(id="FrozenLake-v1", options={"is_slippery": False}))
        >>> environment.tasks("train", 1)[0].tools[0].signature()
        'act(action: integer) - Take one of the actions 0 to 3'
    """

    def __init__(self, config: GymnasiumConfig) -> None:
        self.config = config
        try:
            self._package = importlib.import_module("gymnasium")  # not this module, which has its name
        except ModuleNotFoundError:
            raise ConfigError("gymnasium is not installed", where=WHERE, fix="pip install gymnasium") from None
        made = self._make()
        try:
            self._tool = _tool_of(made.action_space, self._package.spaces)
            self._text = "ansi" in made.metadata.get("render_modes", ())
        finally:
            made.close()

    def _make(self, **options: Any) -> Any:
        config = self.config
        try:
            return self._package.make(config.id, max_episode_steps=config.steps, **config.options, **options)
        except (self._package.error.Error, TypeError, ImportError, ValueError, AssertionError) as cause:
            raise ConfigError(f"{config.id} cannot be made: {cause}", where=WHERE) from None

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split: even seeds train, odd ones are held out.

        Raises:
            ConfigError: no such split.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where=WHERE, fix="train or held-out")
        return [self._task(2 * index + (split == "held-out")) for index in range(count)]

    def _task(self, number: int) -> Task:
        config = self.config
        seed = 2 * config.seed + number
        head = f"{config.instructions}\n\n" if config.instructions else ""
        begun = GymnasiumEpisode(self._open(), seed, config)
        opening = begun.seen
        begun.close()
        return Task(
            id=f"gymnasium/{config.id}/{seed}",
            kind=config.id,
            messages=(
                Message("system", head + tool_prompt([self._tool], compact=True)),
                Message("user", f"Play game {seed}. You see:\n{opening}"),
            ),
            tools=(self._tool,),
            secret={"seed": seed},
        )

    def _open(self) -> Any:
        return self._make(render_mode="ansi") if self._text else self._make()

    def start(self, task: Task) -> GymnasiumEpisode:
        """Begin an attempt in an environment of its own."""
        return GymnasiumEpisode(self._open(), task.secret["seed"], self.config)

    def demonstration(self, task: Task) -> list[Message]:
        """Raise: Gymnasium's environments show none."""
        raise FitError("has no demonstrations", where=WHERE)


class GymnasiumEpisode:
    """Fulfils `core.slots.environment.Episode`.

    Attributes:
        seen: what the agent reads of the last observation.
        total: the return so far.
    """

    def __init__(self, environment: Any, seed: int, config: GymnasiumConfig) -> None:
        self._environment, self._config = environment, config
        self.total, self._over, self._acted = 0.0, False, False
        self.seen = self._show(environment.reset(seed=seed)[0])

    def _show(self, observation: Any) -> str:
        drawn = self._environment.render() if self._environment.render_mode == "ansi" else None
        if isinstance(drawn, str):
            return re.sub(r"\x1b\[[\d;]*m", "", HIGHLIGHTED.sub(r"[\1]", drawn)).strip("\n")
        return observation if isinstance(observation, str) else json.dumps(_plain(observation))

    def call(self, call: ToolCall) -> str:
        """Take an action.

        Raises:
            ToolError: another tool, an action outside the space, or a game that is over.
        """
        if call.name != ACT:
            raise ToolError(f"there is no tool {call.name[:60]!r}; there is {ACT}")
        if self._over:
            raise ToolError("the game is over")
        if set(call.arguments) != {"action"}:
            raise ToolError("act takes action, and nothing else")
        space = self._environment.action_space
        action = _fitted(call.arguments["action"], space)
        if action is None or not space.contains(action):
            raise ToolError(f"{json.dumps(call.arguments['action'])[:200]} is no action of {space}")
        observation, reward, terminated, truncated, _ = self._environment.step(action)
        self.total, self._acted = self.total + float(reward), True
        self._over = terminated or truncated
        ending = f"\nThe game is over, your score is {self.total:g}." if self._over else ""
        return f"{self._show(observation)}\nreward {float(reward):g}{ending}"

    def reward(self, transcript: Sequence[Message]) -> Reward:
        """The return so far between `low` and `high`; 0 before the first action."""
        config = self._config
        if not self._acted:
            return Reward(0.0, reason="nothing was done")
        if not math.isfinite(self.total):
            return Reward(0.0, valid=False, reason=f"the return is {self.total}")
        value = (self.total - config.low) / (config.high - config.low)
        return Reward(min(1.0, max(0.0, value)), reason=f"return {self.total:g}")

    def answer(self, transcript: Sequence[Message]) -> str | None:
        """Return the score, by which attempts vote together; None before the first action."""
        return f"{self.total:g}" if self._acted else None

    def close(self) -> None:
        """Let the environment go."""
        self._environment.close()


def _tool_of(space: Any, spaces: Any) -> Tool:
    """The tool whose argument is an action."""
    if isinstance(space, spaces.Discrete):
        first, last = int(space.start), int(space.start + space.n - 1)
        schema, words = {"type": "integer", "minimum": first, "maximum": last}, f"one of the actions {first} to {last}"
    elif isinstance(space, spaces.Text):
        schema, words = {"type": "string", "maxLength": int(space.max_length)}, "an action in words"
    elif isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)) and len(space.shape) == 1:
        kind = "number" if isinstance(space, spaces.Box) else "integer"
        length = int(space.shape[0])
        schema = {"type": "array", "items": {"type": kind}, "minItems": length, "maxItems": length}
        words = f"an action of {length} numbers, {space}"
    else:
        raise FitError(
            f"no tool call can fill {space}", where=WHERE, fix="wrap it into a discrete, text or one-dimensional space"
        )
    return Tool(
        ACT,
        f"Take {words}",
        {"type": "object", "properties": {"action": schema}, "required": ["action"], "additionalProperties": False},
    )


def _fitted(value: Any, space: Any) -> Any:
    """A JSON value as an element of the space's dtype, or None."""
    import numpy as np

    if isinstance(value, bool) or (space.shape and not isinstance(value, list)):
        return None
    if isinstance(value, list):
        try:
            array = np.asarray(value, dtype=space.dtype)
        except (TypeError, ValueError, OverflowError):
            return None
        return array if array.shape == space.shape and np.all(array == np.asarray(value, dtype=float)) else None
    return value


def _plain(value: Any) -> Any:
    """Arrays and their like as JSON, four digits each."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return round(value, 4) if isinstance(value, float) else value
