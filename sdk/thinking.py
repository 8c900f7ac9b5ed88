"""Thinking about one question with any reasoner, on servers or on the local model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stackloom.core.chat import Message
from stackloom.core.errors import ConfigError, EngineError
from stackloom.core.generation import ChatModel
from stackloom.plugins.reasoner.question import Event, Question, Thought

if TYPE_CHECKING:
    from stackloom.registry import Registry

HEAVY = "reasoner.heavy-thinking"


@asynccontextmanager
async def open_model(
    endpoints: Sequence[str] = (),
    *,
    model: str | None = None,
    checkpoint: str | None = None,
    api_key: str = "",
    registry: Registry | None = None,
    http: str = "httpx2",
    context: int | None = None,
    executor: str = "local",
    replicas: int = 2,
    address: str | None = None,
) -> AsyncIterator[ChatModel]:
    """Open the model that is asked: behind servers, or a checkpoint on this machine.

    Args:
        endpoints: URLs of OpenAI-compatible servers with the same model.
        model: its name there; None asks the first server.
        checkpoint: as `opening.open_checkpoint` takes it; needs stackloom[train].
        api_key: of the servers.
        registry: where `model.hf` is found.
        http: implementation of the transport, see `client.transport`.
        context: tokens of prompt and reply together on the servers, if known.
        executor: "local" computes a checkpoint in this process, "ray" in `replicas` engines, each a Ray actor.
        replicas, address: of executor ray; see `engine.replicas.open_replicas`.

    Raises:
        ConfigError: neither or both are given, or something is not installed.
        ServerError: the first server does not say which model it has.
    """
    if bool(endpoints) == bool(checkpoint):
        raise ConfigError(
            "give either a server or a checkpoint", where="--endpoint", fix="--endpoint URL, or --checkpoint NAME"
        )
    if executor not in ("local", "ray") or (executor == "ray" and endpoints):
        raise ConfigError(
            f"executor {executor!r} does not go with {'servers' if endpoints else 'a checkpoint'}",
            where="executor",
            fix="local or ray for a checkpoint; servers compute by themselves",
        )
    if endpoints:
        from stackloom.client.openai_compatible import OpenAICompatible
        from stackloom.client.transport import make_http

        client = make_http(http)
        try:
            asked = OpenAICompatible(endpoints, model, api_key=api_key, http=client, context=context)
            if model is None:
                asked.model = next(iter(await asked.models()), "default")
            yield asked
        finally:
            await client.aclose()
        return
    assert registry is not None
    assert checkpoint is not None
    if executor == "ray":
        if find_spec("ray") is None:
            raise ConfigError("ray is not installed", where="executor", fix="pip install 'stackloom[ray]'")
        from stackloom.engine.replicas import open_replicas

        with open_replicas(checkpoint, replicas, address=address) as spread:
            yield spread
        return
    try:
        from stackloom.engine.chat_tokenizer import HFChatTokenizer
        from stackloom.engine.engine import Engine
        from stackloom.engine.streaming import LocalModel
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train]'") from None
    from stackloom.opening import open_checkpoint

    _, loaded, tokenizer = open_checkpoint(checkpoint, registry)
    with Engine(loaded, tokenizer, in_loop=True) as engine:
        yield LocalModel(engine, HFChatTokenizer(tokenizer))


def make_reasoner(registry: Registry, plugin: str, options: Mapping[str, Any]) -> Any:
    """Build a reasoner that answers questions.

    Raises:
        ConfigError: it is not installed, is no reasoner, or options are bad.
    """
    from stackloom.repro.context import resolve

    if not plugin.startswith("reasoner."):
        raise ConfigError(f"{plugin} is no reasoner", where="--reasoner", fix="`stackloom search --slot reasoner`")
    return resolve(registry, plugin, options).build()


async def answer(reasoner: Any, question: Question, tell: Callable[[Event], None]) -> Thought:
    """Let a reasoner answer a question and pass its events on; leaving early cancels every call.

    Raises:
        StackloomError: whatever the reasoner raises.
        EngineError: it ended without a thought.
    """
    async with AsyncExitStack() as stack:
        events = reasoner.think(question)
        stack.push_async_callback(events.aclose)
        async for event in events:
            tell(event)
            if isinstance(event, Thought):
                return event
    raise EngineError("the reasoner ended without an answer")


def remember(messages: Sequence[Message], thought: Thought) -> tuple[Message, ...]:
    """Return the conversation after a turn: what was asked, and the final answer alone."""
    return (*messages, thought.message)


def think(
    question: str,
    *,
    endpoints: Sequence[str] = (),
    model: str | None = None,
    checkpoint: str | None = None,
    api_key: str = "",
    executor: str = "local",
    replicas: int = 2,
    address: str | None = None,
    reasoner: str = HEAVY,
    tell: Callable[[Event], None] | None = None,
    **options: Any,
) -> Thought:
    """Ask one question and wait for the answer; for code that runs no event loop.

    Args:
        question: what to ask.
        endpoints, model, checkpoint, api_key, executor, replicas, address: the model; see `open_model`.
        reasoner: who answers.
        tell: called with every event.
        options: of the reasoner.

    Raises:
        StackloomError: whatever stands in the way.

    Example:
        >>> think("6 * 7?", endpoints=["http://127.0.0.1:8000/v1"], width=4).message.content
        '42'
    """
    from stackloom.registry import open_registry

    async def run() -> Thought:
        with open_registry() as registry:
            made = make_reasoner(registry, reasoner, options)
            async with open_model(
                endpoints,
                model=model,
                checkpoint=checkpoint,
                api_key=api_key,
                registry=registry,
                executor=executor,
                replicas=replicas,
                address=address,
            ) as asked:
                return await answer(made, Question((Message("user", question),), asked), tell or (lambda event: None))

    return asyncio.run(run())
