"""An environment of ours as a `gymnasium.Env`: one message of the agent is one step, text in and text out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import gymnasium

from stackloom.core.chat import Message, parse_tool_calls
from stackloom.core.slots.environment import Environment, Episode, Split, Task, ToolError
from stackloom.environments.agent_loop import judge
from stackloom.environments.users import User

T = TypeVar("T")
MOST_CHARACTERS = 1_000_000
WORDS = ("yes", "no", "I", "the", "order", "done", "which", "thanks", "<tool_call>", "{}", "</tool_call>")


class Texts(gymnasium.Space[str]):
    """All texts up to a length; `sample` draws a few words."""

    def __init__(self, most_characters: int = MOST_CHARACTERS, seed: int | None = None) -> None:
        super().__init__(dtype=str, seed=seed)
        self.most_characters = most_characters

    @property
    def is_np_flattenable(self) -> bool:
        """Whether elements are arrays: they are not."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Return some words."""
        return " ".join(WORDS[i] for i in self.np_random.integers(len(WORDS), size=self.np_random.integers(1, 8)))

    def contains(self, x: Any) -> bool:
        """Return whether x is a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.most_characters

    def __eq__(self, other: object) -> bool:
        """Two such spaces are equal if they allow the same length."""
        return isinstance(other, Texts) and other.most_characters == self.most_characters

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show the length."""
        return f"Texts({self.most_characters})"


class AgentEnv(gymnasium.Env[str, str]):
    """Episodes of one environment.

    `reset(seed=s)` takes the task that s draws, `reset(options={"task": i})` the i-th one. An action is a whole
    message of the agent with its tool calls in text; the observation is what follows it: the tools' answers, or what
    the user says. A message without calls to which nobody replies is the answer and ends the episode with its reward;
    every reward before is 0. `info` holds the messages so far, the tools in the form of OpenAI (at a reset), who
    erred (`error_kind`: None, "agent" or "infra") and whether the reward counts (`valid`).

    Args:
        environment: any of ours.
        split: whose tasks.
        tasks: how many of them.
        turns: messages after which the episode is truncated, and judged.
        tool_format: how the agent writes calls (see core.chat).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - gymnasium's own name

    def __init__(
        self,
        environment: Environment,
        split: Split = "train",
        *,
        tasks: int = 100,
        turns: int = 16,
        tool_format: str = "hermes",
        render_mode: str | None = None,
    ) -> None:
        self.environment, self.turns, self.render_mode = environment, turns, render_mode
        self.observation_space, self.action_space = Texts(), Texts()
        self._format = tool_format
        self._tasks = environment.tasks(split, tasks)
        self._said: list[Message] = []
        self._task: Task | None = None
        self._episode: Episode | None = None
        self._left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a task; the observation is the conversation so far."""
        super().reset(seed=seed)
        index = int(self.np_random.integers(len(self._tasks)))
        if options and "task" in options:
            index = options["task"]
        self._task = self._tasks[index]
        self._episode, self._said, self._left = self.environment.start(self._task), [], self.turns
        info = self._info() | {"task": self._task.id, "tools": [tool.to_openai() for tool in self._task.tools]}
        return "\n\n".join(message.content for message in self._task.messages), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one message of the agent."""
        if self._episode is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        if self._left < 1:
            raise gymnasium.error.ResetNeeded("the episode is over; call reset")
        self._left -= 1
        parsed = parse_tool_calls(action, format=self._format)
        heard: list[Message] = []
        erred, failure = "agent" if parsed.errors else None, ""
        if parsed.calls or parsed.errors:
            self._said.append(Message("assistant", parsed.text, parsed.calls))
            for call in parsed.calls:
                try:
                    content = self._episode.call(call)
                except ToolError as refused:
                    content, erred = f"Error: {refused}", "agent"
                except Exception as cause:  # noqa: BLE001 - an environment's own code; whatever it raises masks
                    failure = f"tool {call.name!r} raised {type(cause).__name__}: {cause}"
                    break
                heard.append(Message("tool", content, tool_call_id=call.id, name=call.name))
            heard += [Message("tool", f"Error: {error}") for error in parsed.errors]
            ended = bool(failure)
        else:
            self._said.append(Message("assistant", action.strip()))
            user: User | None = getattr(self._episode, "user", None)
            reply = _now(user.reply(tuple(self._said))) if user else None
            heard, ended = ([Message("user", reply)], False) if reply is not None else ([], True)
        self._said += heard
        truncated = not ended and self._left == 0
        info = self._info(erred)
        reward = 0.0
        if failure:
            info |= {"error_kind": "infra", "valid": False, "reason": failure}
        elif ended or truncated:
            judged, _ = judge(self._episode, self._said)
            reward = judged.value
            info |= {"valid": judged.valid, "reason": judged.reason}
            info["error_kind"] = erred if judged.valid else "infra"
        if ended or truncated:
            self._left = 0
        return "\n\n".join(message.content for message in heard), reward, ended, truncated, info

    def _info(self, error_kind: str | None = None) -> dict[str, Any]:
        assert self._task
        said = [message.to_openai() for message in (*self._task.messages, *self._said)]
        return {"messages": said, "error_kind": error_kind, "valid": True, "reason": ""}

    def render(self) -> str | None:
        """Return the conversation, in mode "ansi"."""
        if self.render_mode != "ansi" or self._task is None:
            return None
        return "\n".join(f"{message.role}: {message.content}" for message in (*self._task.messages, *self._said))

    def close(self) -> None:
        """Let the episode go."""
        self._episode = None


def _now(waited: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(waited)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, waited).result()
