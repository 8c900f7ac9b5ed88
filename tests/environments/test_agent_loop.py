"""The agent loop: exact tokens, tool calls, limits, and faults that are masked."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.chat import Message, Tool, ToolCall, render_call
from stackloom.core.errors import ConfigError, EngineError, FitError
from stackloom.core.generation import ContextFull, Sampling
from stackloom.core.slots.environment import Reward, Task, ToolError
from stackloom.core.slots.reasoner import Attempt
from stackloom.environments.agent_loop import judge, play
from stackloom.testing import ByteChat, ScriptedGenerator, tiny_tokenizer

ECHO = Tool("echo", "say it", {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]})
TASK = Task("t", "k", (Message("system", "Be brief."), Message("user", "Go.")), (ECHO,))
END = "<|im_end|>"


class Echoes:
    """An episode that records its calls; the right answer is "done"."""

    def __init__(self, crash=None, verdict=None):
        self.heard, self._crash, self._verdict = [], crash, verdict

    def call(self, call):
        if self._crash:
            raise self._crash
        if call.name != "echo":
            raise ToolError(f"no tool {call.name}")
        self.heard.append(call.arguments["text"])
        return f"<{call.arguments['text']}>"

    def reward(self, transcript):
        if isinstance(self._verdict, Exception):
            raise self._verdict
        if self._verdict is not None:
            return self._verdict
        return Reward(float(bool(transcript) and transcript[-1].content == "done"))

    def answer(self, transcript):
        return transcript[-1].content if transcript and transcript[-1].role == "assistant" else None


def call(text, name="echo"):
    return render_call(ToolCall(name, {"text": text}))


def attempt(script, *, task=TASK, episode=None, chat=None, max_tokens=500, turns=4, **options):
    """Return (transcript, episode, generator, chat)."""
    chat, episode = chat or ByteChat(), episode or Echoes()
    generator = ScriptedGenerator(script, chat)
    sampling = Sampling(max_tokens=max_tokens, temperature=0.5, seed=3)
    transcript = asyncio.run(
        play(task, episode, generator, chat, sampling=sampling, turns=turns, key="task/0", **options)
    )
    return transcript, episode, generator, chat


def said(transcript, chat):
    """What the loss mask lies on, decoded."""
    pairs = zip(transcript.token_ids, transcript.loss_mask, strict=True)
    return chat.tokenizer.decode([token for token, trained in pairs if trained])


def test_answer_without_calls_ends_the_attempt():
    transcript, episode, generator, chat = attempt(["done"])
    assert transcript.finish == "answered"
    assert transcript.messages == (Message("assistant", "done"),)
    assert chat.tokenizer.decode(transcript.token_ids) == (
        f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\nGo.{END}\n<|im_start|>assistant\ndone{END}"
    )
    assert said(transcript, chat) == f"done{END}"
    assert transcript.attempt(episode) == Attempt("done", transcript.messages, 5, Reward(1.0), logprob=-0.5)
    assert len(generator.requests) == 1


def test_conversation_with_tools_is_the_one_that_the_template_renders():
    transcript, episode, _, chat = attempt([f"Hm.\n{call('a')}", call("b"), "done"])
    assert episode.heard == ["a", "b"]
    whole = chat.render([*TASK.messages, *transcript.messages], reply=False)
    assert list(transcript.token_ids) == whole[:-1]  # the line break behind the last message is the template's
    assert said(transcript, chat) == f"Hm.\n{call('a')}{END}{call('b')}{END}done{END}"


def test_each_prompt_starts_with_the_prompt_and_the_reply_before_it():
    transcript, _, generator, _ = attempt([call("a"), call("b"), "done"])
    prompts = [request.input_ids for request in generator.requests]
    for shorter, longer in zip(prompts, [*prompts[1:], transcript.token_ids], strict=True):
        assert longer[: len(shorter)] == shorter
        assert transcript.loss_mask[len(shorter)]


def test_odd_tokenization_of_the_models_own_text_is_kept():
    """The model may spell a text in tokens that the tokenizer would not choose; they are read back as they were."""

    class Whole(ByteChat):
        def __init__(self):
            super().__init__()
            self.tokenizer.add_tokens(["echo"])

    chat = Whole()

    class Letters(ScriptedGenerator):
        async def generate(self, request):
            completion = await super().generate(request)
            apart = [
                piece
                for token in completion.token_ids
                for piece in ([tiny.convert_tokens_to_ids(letter) for letter in "echo"] if token == merged else [token])
            ]
            return replace(completion, token_ids=tuple(apart), logprobs=(-1.0,) * len(apart))

    tiny, merged = tiny_tokenizer(), chat.tokenizer.convert_tokens_to_ids("echo")
    generator = Letters([call("a"), "done"], chat)
    transcript = asyncio.run(play(TASK, Echoes(), generator, chat, sampling=Sampling(max_tokens=500), turns=3, key="k"))
    assert merged not in transcript.token_ids
    assert merged in chat.render([*TASK.messages, *transcript.messages], reply=False)
    assert generator.requests[1].input_ids == transcript.token_ids[: len(generator.requests[1].input_ids)]


def test_message_that_stopped_without_its_end_token_gets_one_that_is_not_trained():
    class Unended(ScriptedGenerator):
        async def generate(self, request):
            completion = await super().generate(request)
            return replace(completion, token_ids=completion.token_ids[:-1], logprobs=completion.logprobs[:-1])

    chat = ByteChat()
    generator = Unended([call("a"), "done"], chat)
    transcript = asyncio.run(play(TASK, Echoes(), generator, chat, sampling=Sampling(max_tokens=500), turns=3, key="k"))
    assert list(transcript.token_ids) == chat.render([*TASK.messages, *transcript.messages], reply=False)[:-2]
    assert said(transcript, chat) == f"{call('a')}done"


def test_several_calls_of_one_message_run_in_order_and_errors_come_last():
    bad = "<tool_call>{</tool_call>"
    transcript, episode, _, _ = attempt([f"{call('a')}{bad}{call('b', 'shout')}{call('c')}", "done"])
    assert episode.heard == ["a", "c"]
    assert [message.content for message in transcript.messages[1:-1]] == [
        "<a>",
        "Error: no tool shout",
        "<c>",
        "Error: the text inside <tool_call> is not JSON",
    ]
    assert [message.tool_call_id for message in transcript.messages[1:4]] == ["call_0", "call_1", "call_2"]


def test_malformed_call_is_shown_to_the_agent_which_goes_on():
    transcript, _, generator, chat = attempt(['<tool_call>{"name"', "done"])
    assert transcript.finish == "answered"
    assert "not closed with </tool_call>" in chat.tokenizer.decode(generator.requests[1].input_ids)


def test_task_without_tools_reads_any_message_as_an_answer():
    transcript, episode, _, _ = attempt([call("a")], task=replace(TASK, tools=()))
    assert transcript.finish == "answered"
    assert episode.heard == []
    assert transcript.messages == (Message("assistant", call("a")),)


def test_other_tool_format():
    text = render_call(ToolCall("echo", {"text": "a"}), format="json")
    transcript, episode, _, _ = attempt([text, "done"], chat=ByteChat(tool_format="json"), tool_format="json")
    assert (transcript.finish, episode.heard) == ("answered", ["a"])


def test_turns_end_an_attempt_whose_last_calls_still_run():
    transcript, episode, generator, _ = attempt([call("a"), call("b")], turns=2)
    assert transcript.finish == "turns"
    assert episode.heard == ["a", "b"]
    assert len(generator.requests) == 2
    assert transcript.messages[-1].content == "<b>"
    assert transcript.loss_mask[-1]


def test_message_that_is_cut_ends_the_attempt_and_its_calls_do_not_run():
    transcript, episode, _, _ = attempt([call("a") + "x" * 500], max_tokens=100)
    assert transcript.finish == "tokens"
    assert episode.heard == []
    assert transcript.tokens == 100


def test_tokens_bound_the_whole_attempt():
    first = len(call("a")) + 1
    transcript, _, generator, _ = attempt([call("a"), "x" * 50], tokens=first + 10)
    assert [request.sampling.max_tokens for request in generator.requests] == [first + 10, 10]
    assert (transcript.finish, transcript.tokens) == ("tokens", first + 10)
    exhausted, _, asked, _ = attempt([call("a"), "done"], tokens=first)
    assert (exhausted.finish, exhausted.tokens, len(asked.requests)) == ("tokens", first, 1)


def test_full_context_ends_the_attempt():
    full = ContextFull("no room in the context")
    transcript, episode, _, _ = attempt([call("a"), full])
    assert transcript.finish == "context"
    assert transcript.attempt(episode).reward == Reward(0.0)

    overlong, episode, _, _ = attempt([full])
    assert (overlong.finish, overlong.messages) == ("context", ())
    assert overlong.attempt(episode).reward == Reward(0.0)

    class Short(ScriptedGenerator):
        async def generate(self, request):
            return replace(await super().generate(request), finish="length")

    chat = ByteChat()
    cut = asyncio.run(play(TASK, Echoes(), Short(["do"], chat), chat, sampling=Sampling(), turns=1, key="k"))
    assert cut.finish == "context"


def test_what_the_generator_refuses_otherwise_is_raised():
    for script in ([], [call("a")]):
        with pytest.raises(ConfigError, match="temperature"):
            attempt([*script, ConfigError("temperature out of range")])


def test_fault_of_the_generator_is_raised():
    with pytest.raises(EngineError, match="lost"):
        attempt([call("a"), EngineError("lost")])


@pytest.mark.parametrize("options", [{"turns": 0}, {"tokens": 0}, {"tool_format": "yaml"}])
def test_bad_limits_and_formats_are_refused(options):
    with pytest.raises(ConfigError):
        attempt(["done"], **options)


def test_tool_that_raises_masks_the_attempt():
    transcript, episode, generator, _ = attempt([call("a"), "done"], episode=Echoes(crash=OSError("disk full")))
    assert transcript.finish == "failed"
    assert len(generator.requests) == 1
    made = transcript.attempt(episode)
    assert (made.reward.value, made.reward.valid, made.answer) == (0.0, False, None)
    assert "tool 'echo' raised OSError: disk full" in made.reward.reason


def test_tool_that_returns_no_text_masks_the_attempt():
    class Numbers(Echoes):
        def call(self, call):
            return 3

    transcript, episode, _, _ = attempt([call("a")], episode=Numbers())
    assert not transcript.attempt(episode).reward.valid
    assert "returned int" in transcript.failure


@pytest.mark.parametrize(
    "verdict", [KeyError("answer"), ToolError("no"), Reward(float("nan")), Reward(1.5), Reward(-0.1), 1.0, "yes"]
)
def test_verifier_that_fails_masks_the_attempt(verdict):
    transcript, episode, _, _ = attempt(["done"], episode=Echoes(verdict=verdict))
    made = transcript.attempt(episode)
    assert (made.reward.value, made.reward.valid, made.answer) == (0.0, False, None)
    assert "verifier" in made.reward.reason


def test_answer_that_cannot_be_read_masks_the_attempt():
    class Mute(Echoes):
        def answer(self, transcript):
            raise IndexError("nothing")

    reward, answer = judge(Mute(), [Message("assistant", "done")])
    assert (reward.valid, answer) == (False, None)


def test_requests_name_the_message_and_pass_the_sampling_on():
    _, _, generator, _ = attempt([call("a"), "done"])
    assert [request.key for request in generator.requests] == ["task/0/0", "task/0/1"]
    assert {(request.sampling.temperature, request.sampling.seed) for request in generator.requests} == {(0.5, 3)}


def test_template_that_rewrites_what_was_read_is_refused():
    class Forgetful(ByteChat):
        def render(self, messages, *, reply):
            return super().render(messages if len(messages) == 2 else messages[1:], reply=reply)

    with pytest.raises(FitError, match="already read"):
        attempt([call("a"), "done"], chat=Forgetful())


def test_attempts_play_side_by_side():
    async def both():
        chat, generators = ByteChat(), []
        for script in (["done"], [call("a"), "done"]):
            generators.append(ScriptedGenerator(script, chat))
        return await asyncio.gather(
            *(
                play(TASK, Echoes(), generator, chat, sampling=Sampling(max_tokens=99), turns=3, key="k")
                for generator in generators
            )
        )

    assert [len(transcript.messages) for transcript in asyncio.run(both())] == [1, 3]


texts = st.text(
    alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="<>"), min_size=1, max_size=20
)


@given(st.lists(st.one_of(texts, st.lists(texts, min_size=1, max_size=3)), max_size=3), texts, st.integers(1, 5))
@settings(max_examples=50)
def test_tokens_are_counted_and_masked_whatever_is_said(turns, final, limit):
    script = ["".join(call(text) for text in turn) if isinstance(turn, list) else call(turn) for turn in turns]
    transcript, _, generator, chat = attempt([*script, final], turns=limit, max_tokens=4096)
    played = [*script, final][:limit]
    assert len(generator.requests) == len(played)
    assert said(transcript, chat) == "".join(text + END for text in played)
    assert transcript.tokens == len(transcript.logprobs) == sum(transcript.loss_mask)
    assert len(transcript.loss_mask) == len(transcript.token_ids)
    assert transcript.finish == ("answered" if len(played) == len(script) + 1 else "turns")
