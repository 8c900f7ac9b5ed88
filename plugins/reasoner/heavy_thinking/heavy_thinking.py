"""Heavy Thinking: width by parallel thinkers, depth by a summary of their answers (arXiv 2601.16725, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stackloom.core.chat import Message
from stackloom.core.generation import ChatRequest, Sampling, ServerError
from stackloom.core.slots.reasoner import Attempts, Solution
from stackloom.plugins.reasoner.heavy_thinking.config import HeavyThinkingConfig
from stackloom.plugins.reasoner.parallel import ParallelThinking, ballots, make_attempts
from stackloom.plugins.reasoner.question import Ask, Question, Trajectory
from stackloom.plugins.reasoner.summary_prompt import summary_prompt, without_marks
from stackloom.plugins.reasoner.thinkers import Budget, Emit
from stackloom.plugins.reasoner.votes import winner

HURRY = """\
{problem}

Your time is up. These are the last of your own notes on the problem:

{notes}

Give your final answer now, in a few words, without further thinking."""
NOTES = 4000
"""Characters of a thinker's notes that it is reminded of."""


class HeavyThinking(ParallelThinking):
    """Thinkers answer alone; a summary reads their answers, never their reasoning, and answers in their place.

    Args:
        config: the plugin's options.

    Example:
        >>> question = Question((Message("user", "6 * 7?"),), model)
        >>> async for event in HeavyThinking(HeavyThinkingConfig(width=4)).think(question):
        ...     last = event
        >>> last.message.content
        '42'
    """

    def __init__(self, config: HeavyThinkingConfig) -> None:
        super().__init__(config, self)
        self.heavy = config

    def prompt(self, question: Question, answers: Sequence[Trajectory]) -> tuple[Message, ...]:
        """Return P(x, A) for thinkers of a later round."""
        return self._prompt(question, answers, question.thinker.context)

    def callable_tools(self, question: Question, number: int) -> frozenset[str]:
        """Names of the tools that thinkers run in their snapshots, by the tool policy."""
        if number > 0 or self.heavy.tool_policy == "propose":
            return frozenset()
        every = frozenset(tool.name for tool in question.tools)
        return every if self.heavy.tool_policy == "snapshot" else question.read_only & every

    async def aggregate(self, question: Question, trajectories: Sequence[Trajectory], ask: Ask) -> Message | int:
        """Write the answer from the trajectories' answers, or choose one where the options say so.

        Raises:
            NoExtractableAnswer: a vote without votes.
            FitError: the summarizer's context is too small.
            ServerError: the summary is empty or was cut.
        """
        if self.heavy.aggregator == "first":
            return 0
        if self.heavy.aggregator == "vote":
            return self.by_vote(trajectories)
        if (agreed := self._agreed(trajectories)) is not None:
            return agreed
        model = question.summarizer or question.thinker
        messages = self._prompt(question, trajectories, model.context)
        sampling = Sampling(
            temperature=self.heavy.summary_temperature,
            top_p=self.config.top_p,
            max_tokens=self.config.max_tokens,
            seed=self.config.seed + sum(self.config.rounds_made),
        )
        reply = await ask(ChatRequest(messages, question.tools, sampling))
        answer = replace(
            reply.message, content=without_marks(reply.message.content), tool_calls=reply.message.tool_calls[:1]
        )
        if reply.finish == "length" or not (answer.content or answer.tool_calls):
            raise ServerError(
                "the summary was cut" if reply.finish == "length" else "the summary is empty", where="summarizer"
            )
        return answer

    def _prompt(self, question: Question, answers: Sequence[Trajectory], context: int | None) -> tuple[Message, ...]:
        room = None if context is None else max(0, context - min(self.config.max_tokens, context // 2))
        return summary_prompt(question.messages, answers, seed=self.config.seed, shuffle=self.heavy.shuffle, room=room)

    def _agreed(self, trajectories: Sequence[Trajectory]) -> int | None:
        """The shortest member of the only class, where enough agree for the summary to be skipped."""
        wanted = self.heavy.skip_summary_on_unanimity
        votes = self.votes(trajectories)
        if not wanted or len(votes) != 1 or sum(votes.values()) < max(wanted, len(trajectories)):
            return None
        return min(range(len(trajectories)), key=lambda index: (trajectories[index].tokens, index))

    async def round(
        self,
        question: Question,
        number: int,
        messages: tuple[Message, ...],
        share: int,
        budget: Budget,
        emit: Emit,
    ) -> tuple[list[Trajectory], str]:
        """Run one round; at the deadline, ask those that have not ended for an answer at once."""
        width, salvage = self.config.rounds_made[number], self.heavy.salvage_s
        reserve = self.config.summary_reserve_s if self.config.aggregation_calls else 0.0
        made, why = await self.thinkers(question, number, messages, share).run(
            range(width), budget, emit, reserve=reserve + salvage, stop=self.stop(width), votes=self.votes
        )
        late = [one for one in made if one.finish == "deadline"]
        if late and salvage and self.config.deadline_s is not None:
            made = await self._salvage(question, messages, made, late, reserve, budget, emit)
        return made, self.told(made, why, emit)

    async def _salvage(
        self,
        question: Question,
        messages: tuple[Message, ...],
        made: Sequence[Trajectory],
        late: Sequence[Trajectory],
        reserve: float,
        budget: Budget,
        emit: Emit,
    ) -> list[Trajectory]:
        prompts = {}
        for one in late:
            hurry = HURRY.format(problem=messages[-1].content, notes=one.reasoning[-NOTES:] or "(none)")
            prompts[one.number] = (*messages[:-1], Message("user", hurry))
        hurried = replace(
            self.thinkers(question, late[0].round, messages, self.heavy.salvage_tokens),
            prompts=prompts,
            callable_tools=frozenset(),
        )
        saved, _ = await hurried.run(
            list(prompts), budget, emit, reserve=reserve, stop=lambda ended: False, votes=self.votes
        )
        by_number = {one.number: one for one in made}
        for one in saved:
            before = by_number[one.number]
            spent = {
                "tokens": before.tokens + one.tokens,
                "prompt_tokens": before.prompt_tokens + one.prompt_tokens,
                "reasoning": before.reasoning,
            }
            by_number[one.number] = replace(before if one.message is None else one, **spent)
        return [by_number[number] for number in sorted(by_number)]

    async def solve(self, attempt: Attempts) -> Solution:
        """Make attempts together, then those that read their answers; the last wins where it has an answer.

        Early stops, budgets and the summary's temperature are the evaluate stage's here: it owns the engine.
        """
        attempts = await make_attempts(attempt, range(self.config.rounds_made[0]))
        vote = winner(ballots(attempts), ties=self.config.ties, seed=self.config.seed, equal=self.equal)
        best = 0 if vote is None or self.heavy.aggregator == "first" else vote.number
        if self.heavy.aggregator != "summary":
            return Solution(best, tuple(attempts))
        for width in (*self.config.rounds_made[1:], 1):
            # `messages` of an attempt end with the answer; its tools' traces stay behind (page, section 2.2, step 2).
            answers = [
                Trajectory(0, number, 0, made.messages[-1], made.answer)
                for number, made in enumerate(attempts[-self._before(len(attempts)) :])
                if made.messages and made.messages[-1].content.strip()
            ]
            prompt = summary_prompt(
                attempt.question, answers, seed=self.config.seed, shuffle=self.heavy.shuffle, room=None
            )
            first = len(attempts)
            attempts += await make_attempts(attempt, range(first, first + width), prompt)
        return Solution(len(attempts) - 1 if attempts[-1].answer is not None else best, tuple(attempts))

    def _before(self, made: int) -> int:
        """Width of the newest round among `made` attempts."""
        for width in self.config.rounds_made:
            made -= width
            if made == 0:
                return width
        raise AssertionError("rounds are made in order")
