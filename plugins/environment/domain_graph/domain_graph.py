"""Tasks from the factory of `stackloom.environments`, with worlds to attempt them in and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError
from stackloom.core.slots.environment import Split, Task, ToolError
from stackloom.environments.acceptance import as_call
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.episodes import WorldEpisode, scripted
from stackloom.environments.factory import BuiltTask, Factory, Recipe
from stackloom.environments.users import scripted_reply
from stackloom.environments.wording import Request, question_for, report, system
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig

KEPT = 256  # built tasks; one takes some milliseconds to build again


class DomainGraph:
    """Tool worlds in which a user wants several things done.

    Task `i` of a split is a pure function of the options and `i`. Users of the two splits are different people,
    whatever the seed: a hash of what they say of themselves decides who belongs where.

    Args:
        config: the plugin's options.

    Raises:
        ConfigError: an unknown domain, or one with fewer tools than asked for.

    Example:
        >>> environment = DomainGraph(DomainGraphConfig(tools=4, low=2, high=3))
        >>> task = environment.tasks("train", 1)[0]
        >>> environment.start(task).reward(environment.demonstration(task)[-1:]).value
        0.0
    """

    def __init__(self, config: DomainGraphConfig) -> None:
        self.config = config
        for name in config.domains + config.unseen_domains:
            if name not in domain_names():
                find_domain(name)  # raises with the names that there are
        self._factories: dict[tuple[str, Split], Factory] = {}
        self._build = lru_cache(maxsize=KEPT)(self._build_now)

    def tasks(self, split: Split, count: int) -> Sequence[Task]:
        """Return the first `count` tasks of a split, its domains in turn.

        Raises:
            ConfigError: no such split.
        """
        if split not in ("train", "held-out"):
            raise ConfigError(f"unknown split {split!r}", where="environment.domain-graph", fix="train or held-out")
        return [self._task(split, index) for index in range(count)]

    def start(self, task: Task) -> WorldEpisode:
        """Begin an attempt in a world of its own."""
        built = self.built(task)
        return WorldEpisode(built, scripted(built))

    def demonstration(self, task: Task) -> list[Message]:
        """Return a correct attempt: questions for what was left out, the golden chain, and a report.

        With `recovery`, some calls are made wrongly first; what they answer begins with "Error:".
        """
        built = self.built(task)
        rng = Random(f"{task.id}/demonstration")
        fails = rng.randrange(len(built.golden)) if rng.random() < self.config.recovery else -1
        messages: list[Message] = []
        user = scripted(built)
        for known in built.request.withheld:
            messages.append(Message("assistant", question_for(known)))
            reply = scripted_reply(user.script, messages) if user else None
            if reply is not None:
                messages.append(Message("user", reply))
        episode = WorldEpisode(built)
        for place, step in enumerate(built.golden):
            made = as_call(built, step)
            if place == fails:
                messages += _called(episode, ToolCall(made.tool, _slip(made.arguments, rng), "call_0"))
            messages += _called(episode, ToolCall(made.tool, made.arguments, "call_0"))
        episode.close()
        return [*messages, Message("assistant", report(built.wishes, built.statements))]

    def request(self, task: Task) -> Request:
        """Return what the user of a task says and knows."""
        return self.built(task).request

    def built(self, task: Task) -> BuiltTask:
        """Return what the factory made for a task; it is built again from the task's secret.

        Raises:
            KeyError, ConfigError: a task without its secret, or whose secret is of other files.
        """
        secret = task.secret
        built = self._build(secret["domain"], secret["split"], secret["seed"])
        if built.digest != secret["digest"]:
            raise ConfigError("the task was made by other files or options", where=task.id, fix="make the tasks again")
        return built

    def _build_now(self, domain: str, split: Split, seed: str) -> BuiltTask:
        return self._factory(domain, split).build(seed)

    def _factory(self, domain: str, split: Split) -> Factory:
        if (domain, split) not in self._factories:
            config = self.config
            recipe = Recipe(
                tools=config.tools,
                low=config.low,
                high=config.high,
                tau=config.tau,
                complexity=config.complexity,
                attempts=config.attempts,
                breadth=config.breadth,
                withheld=config.withheld,
                half=split,
            )
            self._factories[domain, split] = Factory(find_domain(domain), recipe)
        return self._factories[domain, split]

    def _task(self, split: Split, index: int) -> Task:
        domains = self.config.domains if split == "train" else self.config.domains + self.config.unseen_domains
        name = domains[index % len(domains)]
        built = self._build(name, split, f"{self.config.seed}/{split}/{index}")
        tools = tuple(tool.shown for tool in built.tools.values())
        return Task(
            id=f"domain-graph/{self.config.seed}/{split}/{index}",
            kind=f"{'trained' if name in self.config.domains else 'unseen'}/{name}",
            messages=(
                system(built.domain, tools, compact=self.config.compact),
                Message("user", built.request.opening),
            ),
            tools=tools,
            secret={"domain": name, "split": split, "seed": built.seed, "digest": built.digest},
        )


def _called(episode: WorldEpisode, call: ToolCall) -> list[Message]:
    """Return a call and what the agent loop answers it."""
    try:
        text = episode.call(call)
    except ToolError as refused:
        text = f"Error: {refused}"
    return [Message("assistant", "", (call,)), Message("tool", text, tool_call_id=call.id, name=call.name)]


def _slip(arguments: dict[str, object], rng: Random) -> dict[str, object]:
    """Return arguments as a hasty agent writes them: one misnamed."""
    name = rng.choice(list(arguments))
    return {("value" if key == name else key): value for key, value in arguments.items()}
