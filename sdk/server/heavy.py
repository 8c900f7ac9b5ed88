"""Heavy Thinking over the served model: thinkers side by side, and one answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from stackloom.engine.streaming import LocalModel
from stackloom.plugins.reasoner.question import (
    EarlyStop,
    Ended,
    Notice,
    Question,
    Summarizing,
    ThinkingReasoner,
    Thought,
)
from stackloom.server.bodies import ChatBody
from stackloom.server.chatting import delta_of, messages_of, shown_tools
from stackloom.server.formats import DONE, call, envelope, event, usage
from stackloom.server.refusals import Refused
from stackloom.server.serving import Serving


class HeavyChatting:
    """One request with `heavy`.

    What thinkers write is `reasoning_content`, `content` the answer alone. A stream carries the summary as it is
    written. Where that is not the answer in the end (it was cut, or failed, and a thinker's stands in), the answer
    follows after an empty line and `heavy.replaced` is true. Usage counts all calls, `heavy` in the answer says what
    became of each.

    Args:
        serving: the model.
        body: what is asked; its sampling options are the thinkers', unless `heavy` has its own.
    """

    def __init__(self, serving: Serving, body: ChatBody) -> None:
        self._serving, self._body = serving, body
        self._reasoner: ThinkingReasoner | None = None
        self._question: Question | None = None

    async def prepare(self) -> None:
        """Check everything that can be checked before the answer begins.

        Raises:
            StackloomError: what is wrong with the request.
            Refused: the server does not take it.
        """
        serving, body = self._serving, self._body
        assert body.heavy is not None
        if serving.reasoner is None:
            raise Refused(400, "reasoner.heavy-thinking is not installed here", param="heavy")
        wanted = body.max_tokens or body.max_completion_tokens
        given = body.model_fields_set & {"temperature", "top_p"}
        options: dict[str, Any] = {name: getattr(body, name) for name in given} | {
            "max_tokens": serving.sampling(body, wanted).max_tokens
        }
        if body.seed is not None:
            options["seed"] = body.seed
        options |= body.heavy
        reasoner: Any = serving.reasoner(options)
        serving.admit(body, reasoner.config.rounds_made[0])
        if reasoner.config.max_tokens > serving.limits.max_tokens:
            raise Refused(400, f"max_tokens is at most {serving.limits.max_tokens} here", param="heavy.max_tokens")
        self._reasoner = reasoner
        model = LocalModel(serving.engine, serving.chat)
        self._question = Question(messages_of(body), model, tools=shown_tools(body))

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        reasoning, thought = [], None
        async with aclosing(self._events()) as events:
            async for found in events:
                if isinstance(found, Thought):
                    thought = found
                elif isinstance(found, str):
                    reasoning.append(found)
        assert thought is not None
        message = thought.message.to_openai() | {"reasoning_content": "".join(reasoning)}
        finish = "tool_calls" if thought.message.tool_calls else "stop"
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        head = envelope("chat.completion", self._serving.name)
        return head | {"choices": [choice], "usage": _usage(thought), "heavy": _report(thought)}

    async def events(self) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece: each thinker's when it ends, the summary as it is written."""
        head, written = envelope("chat.completion.chunk", self._serving.name), ""

        def chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return event(head | {"choices": [choice]} | fields)

        yield chunk({"role": "assistant", "content": ""})
        async with aclosing(self._events()) as events:
            async for found in events:
                if isinstance(found, str):
                    yield chunk(delta_of("", found))
                    continue
                if isinstance(found, Summarizing):
                    written += found.text
                    if delta := delta_of(found.text, found.reasoning):
                        yield chunk(delta)
                    continue
                calls, answer = found.message.tool_calls, found.message.content
                rest, replaced = _rest(answer, written)
                delta = delta_of(rest, "")
                if calls:
                    delta["tool_calls"] = [call(made, place) for place, made in enumerate(calls)]
                if delta:
                    yield chunk(delta)
                yield chunk({}, "tool_calls" if calls else "stop", heavy=_report(found) | {"replaced": replaced})
                if self._body.stream_options and self._body.stream_options.include_usage:
                    yield event(head | {"choices": [], "usage": _usage(found)})
        yield DONE

    async def _events(self) -> AsyncGenerator[str | Summarizing | Thought, None]:
        """Yield lines of what happens, pieces of the summary, and last the thought."""
        assert self._reasoner is not None
        assert self._question is not None
        async with aclosing(self._reasoner.think(self._question)) as events:  # type: ignore[type-var]
            async for found in events:
                if isinstance(found, Ended):
                    made = found.trajectory
                    said = made.message.content if made.message else made.error or made.finish
                    yield f"[thinker {made.round + 1}.{made.number + 1}] {said}\n"
                elif isinstance(found, EarlyStop):
                    yield f"[stopped: {found.rule}, {found.done} of {found.width}]\n"
                elif isinstance(found, Notice):
                    yield f"[{found.text}]\n"
                elif isinstance(found, Summarizing):
                    yield found
                elif isinstance(found, Thought):
                    self._serving.count(found.prompt_tokens, found.tokens)
                    yield found


def _rest(answer: str, written: str) -> tuple[str, bool]:
    """Return what a stream still has to carry of an answer, and whether what it carried so far is not part of it."""
    if answer == written.strip():
        return "", False
    if answer.startswith(written):
        return answer[len(written) :], False
    return f"\n\n{answer}", True


def _usage(thought: Thought) -> dict[str, Any]:
    return usage(thought.prompt_tokens, thought.tokens, thought.tokens - thought.summary_tokens)


def _report(thought: Thought) -> dict[str, Any]:
    return {
        "stopped_by": thought.stopped_by,
        "aggregated_by": thought.aggregated_by,
        "votes": dict(thought.votes),
        "summary_tokens": thought.summary_tokens,
        "trajectories": [
            {
                "round": one.round,
                "number": one.number,
                "answer": one.answer,
                "finish": one.finish,
                "tokens": one.tokens,
                "error": one.error,
            }
            for one in thought.trajectories
        ],
    }
