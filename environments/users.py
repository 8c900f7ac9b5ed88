"""Users: who the agent talks to. One follows a script, one is a language model; the agent cannot tell which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from stackloom.core.chat import Message
from stackloom.core.generation import ChatModel, ChatRequest, Reply, Sampling, ServerError
from stackloom.environments.chains import Known
from stackloom.environments.wording import Request as Wording
from stackloom.environments.wording import reply_with

ALL_SAID = "That is all I know."
UNCLEAR = "What would you like to know? I can tell you if you say which detail you need."
GOODBYE = "[DONE]"
CHATTER = (
    "Sorry for the trouble, it has been one of those weeks.",
    "By the way, it is pouring here today.",
    "My sister had the same thing last month and it was quickly sorted.",
    "I am on the train, so the line may drop for a moment.",
    "No rush, I am just having my coffee.",
    "Thanks for being so quick, last time I waited for ages.",
)
STOP_WORDS = {"the", "new", "your", "of", "for", "a", "an"}


class User(Protocol):
    """Answers the agent's messages."""

    async def reply(self, messages: Sequence[Message]) -> str | None:
        """Return what the user says to the conversation so far; None when there is nothing left to say.

        Args:
            messages: what was said after the user's opening, the agent's newest message last.
        """
        ...


@dataclass(frozen=True)
class Script:
    """How a scripted user behaves.

    Attributes:
        withheld: details that the user tells only when asked.
        wrong: a detail that the opening gets wrong, with the wrong text; corrected at the first chance.
        chats: whether the user also says what does not matter.
        strict: whether a question must name a detail to be told it.
        seed: decides which chatter.
    """

    withheld: tuple[Known, ...] = ()
    wrong: tuple[Known, str] | None = None
    chats: bool = False
    strict: bool = False
    seed: str = ""


class ScriptedUser:
    """Tells withheld details when the agent asks for them, corrects what was wrong, chats, and otherwise lets it work.

    Which detail a question asks for is decided by the words of its noun; a question that names none of them is answered
    with the next one. A message that asks nothing ends the conversation, unless something has to be corrected first.

    Args:
        script: what to tell when.

    Example:
        >>> user = ScriptedUser(Script(withheld=(Known("order.reason", "damaged", "reason", "damaged"),)))
        >>> asyncio.run(user.reply([Message("assistant", "What is the reason?")]))
        'The reason is damaged.'
    """

    def __init__(self, script: Script) -> None:
        self.script = script

    async def reply(self, messages: Sequence[Message]) -> str | None:
        """Reply to the last message. The user's state is a pure function of the messages."""
        return scripted_reply(self.script, messages)


def scripted_reply(script: Script, messages: Sequence[Message]) -> str | None:
    """Return what a scripted user says; see `ScriptedUser`."""
    said = [message.content for message in messages if message.role == "user"]
    last = messages[-1].content if messages and messages[-1].role == "assistant" else ""
    parts: list[str] = []
    if script.wrong and not any("I got that wrong" in text for text in said):
        known, wrong = script.wrong
        parts.append(f"Oh, I got that wrong: the {known.noun} is {known.text}, not {wrong}.")
    elif "?" not in last:
        return None
    waiting = [known for known in script.withheld if not any(reply_with(known) in text for text in said)]
    if "?" in last:
        asked = [known for known in waiting if _asks_for(last, known)]
        if waiting and not asked and script.strict:
            parts.append(UNCLEAR)
        parts += [reply_with(known) for known in asked or ([] if script.strict else waiting[:1])]
        parts = parts or [ALL_SAID]
    if script.chats:
        parts.append(Random(f"{script.seed}/{len(said)}").choice(CHATTER))
    return " ".join(parts)


def _asks_for(text: str, known: Known) -> bool:
    words = set(re.findall(r"[a-z]+", known.noun.lower())) - STOP_WORDS
    return bool(words & set(re.findall(r"[a-z]+", text.lower())))


def opened(request: Wording, script: Script) -> str:
    """Return the opening that a scripted user gives: with its wrong detail and its chatter."""
    text = request.opening
    if script.wrong:
        known, wrong = script.wrong
        text = f"{text.replace(known.text, wrong, 1)} Please check with me before you change anything."
    if script.chats:
        text = f"{text} {Random(script.seed).choice(CHATTER)}"
    return text


class ModelUser:
    """A user whom a language model plays: the local model or one behind a server.

    Args:
        model: plays the user.
        request: what the user wants and knows.
        sampling: of each reply.
        key: names the conversation for its random draws.

    Example:
        >>> user = ModelUser(model, built.request, sampling=Sampling(max_tokens=60), key=task.id)
        >>> transcript = await play(task, episode, engine, chat, sampling=Sampling(), turns=8, key=task.id, user=user)
    """

    def __init__(self, model: ChatModel, request: Wording, *, sampling: Sampling, key: str) -> None:
        self._model, self._sampling, self._key = model, sampling, key
        facts = "\n".join(f"- {known.noun}: {known.text}" for known in request.known)
        self._system = Message(
            "system",
            "You are a customer who writes to a service agent. Stay in that role, write one or two plain sentences, "
            f"and never offer to help. You asked: {request.opening}\nYou know:\n{facts}\n"
            "Tell a detail when you are asked for it and make nothing up. When the agent says that all is done, write "
            f"{GOODBYE}.",
        )

    async def reply(self, messages: Sequence[Message]) -> str | None:
        """Let the model reply; None when it says goodbye or nothing.

        Raises:
            ContextFull, ConfigError, ServerError: as the model.
        """
        mirrored = [
            replace(message, role="user" if message.role == "assistant" else "assistant")
            for message in messages
            if message.role in ("user", "assistant") and message.content.strip() and not message.tool_calls
        ]
        heard = (self._system, *mirrored)
        reply = await whole_reply(
            self._model, ChatRequest(heard, sampling=self._sampling, key=f"{self._key}/{len(messages)}")
        )
        text = reply.message.content.strip()
        return None if not text or GOODBYE in text else text


async def whole_reply(model: ChatModel, request: ChatRequest) -> Reply:
    """Return a model's reply once it is whole.

    Raises:
        ContextFull, ConfigError, ServerError: as the model; ServerError also for a reply that breaks off.
    """
    reply = None
    async for piece in model.stream(request):
        reply = piece if isinstance(piece, Reply) else None
    if reply is None:
        raise ServerError("the reply broke off", where="model")
    return reply
