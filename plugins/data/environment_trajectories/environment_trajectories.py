"""Renders an environment's demonstrations into examples with loss masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stackloom.core.chat import Message, render_call, render_result
from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.data import Example, Tokenizer
from stackloom.core.slots.environment import Environment, Task
from stackloom.plugins.data.chat_masking import MaskingError, mask_assistant, render_ids
from stackloom.plugins.data.environment_trajectories.config import EnvironmentTrajectoriesConfig

WHERE = "data.environment-trajectories"
ERROR = "Error:"  # how the agent loop begins what a refused call answers


class EnvironmentTrajectories:
    """One example per task: its messages and a correct attempt, with the loss on the assistant's own tokens.

    A message whose call was refused ("Error: ...") stays in the context and out of the loss.

    One task of each kind is rendered when the object is made, so that a template that cannot show tool results is
    found before the first step. Examples are rendered on access.

    Args:
        config: the plugin's options, `environment` resolved to a config.
        tokenizer: of the model that is trained.

    Raises:
        ConfigError: the environment is still a reference, or has no task.
        FitError: it has no demonstrations, or the model's chat template cannot show them.

    Example:
        >>> data = EnvironmentTrajectories(EnvironmentTrajectoriesConfig(environment=environment, count=8), tokenizer)
        >>> tokenizer.decode([token for token, trained in zip(*data[0]) if trained][-6:])
        'is 69.<|im_end|>'
    """

    def __init__(self, config: EnvironmentTrajectoriesConfig, tokenizer: Tokenizer) -> None:
        self.config, self._tokenizer = config, tokenizer
        if not isinstance(config.environment, ComponentConfig):
            raise ConfigError(
                f"{config.environment.use} is a reference, not its config",
                where=f"{WHERE}.environment",
                fix="give a config object, or run the stack through its plan, which resolves references",
            )
        self._environment: Environment = config.environment.build()
        self._tasks = self._environment.tasks(config.split, config.count)
        if not self._tasks:
            raise ConfigError(f"the environment has no {config.split} tasks", where=f"{WHERE}.environment")
        self._tool_role = _tool_role(tokenizer)
        for task in {task.kind: task for task in reversed(self._tasks)}.values():
            self._example(task)

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self._tasks)

    def __getitem__(self, index: int) -> Example:
        """Return example `index`, counted from 0.

        Raises:
            IndexError: no such example.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._example(self._tasks[index])

    def problems(self) -> tuple[str, ...]:
        """Return nothing: an environment's tasks are all good, or building the data fails."""
        return ()

    def _example(self, task: Task) -> Example:
        messages = [*task.messages, *self._environment.demonstration(task)]
        plain = [self._plain(message) for message in messages]
        try:
            tokens, mask = mask_assistant(
                plain, None, self._tokenizer, start=len(task.messages), skip=_failed(messages)
            )
        except MaskingError as problem:
            raise FitError(
                f"task {task.id}: {problem}", where=WHERE, fix="use a model whose template appends messages"
            ) from None
        return Example(tokens, mask)

    def _plain(self, message: Message) -> dict[str, Any]:
        """Write calls and results into the text, the way the model writes and reads them in the agent loop."""
        if message.role == "tool":
            content = render_result(message.name, message.content, format=self.config.tool_format)
            return {"role": self._tool_role, "content": content}
        calls = [render_call(call, format=self.config.tool_format) for call in message.tool_calls]
        return {"role": message.role, "content": "\n".join([*([message.content] if message.content else []), *calls])}


def _failed(messages: Sequence[Message]) -> frozenset[int]:
    """Return the places of messages whose calls were refused: they are shown with what came of them, never imitated."""
    found, calling = set(), -1
    for place, message in enumerate(messages):
        if message.role == "assistant":
            calling = place
        elif message.role == "tool" and message.content.startswith(ERROR):
            found.add(calling)
    return frozenset(found)


def _tool_role(tokenizer: Tokenizer) -> str:
    """Return the role of a tool's answer: "user" for a template that refuses "tool"."""
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        render_ids(tokenizer, [*asked, {"role": "tool", "content": "c"}], None)
    except MaskingError:
        return "user"
    return "tool"
