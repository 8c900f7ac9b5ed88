"""`environment.noise`: the slot's laws under each level, what each kind does, and that every task stays solvable."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from stackloom.core.chat import Message, ToolCall
from stackloom.core.errors import ConfigError, EngineError
from stackloom.core.slots.environment import ToolError
from stackloom.environments.agent_loop import judge
from stackloom.environments.chains import Known
from stackloom.environments.distortions import altered, cut_list, leaves, left_out, mistyped, renamed, without, wrapped
from stackloom.environments.tape import CATALOGUE, LONGEST_BURST, TYPES, InjectedFault, Tape
from stackloom.environments.users import UNCLEAR, Script, scripted_reply
from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig
from stackloom.plugins.environment.noise.config import NoiseConfig
from stackloom.plugins.environment.noise.episode import REST, SnapshotNoisyEpisode
from stackloom.plugins.environment.noise.noise import Noise, clean, tape_of
from stackloom.testing import EnvironmentContract

WORLDS: dict[str, Any] = {"tools": 6, "low": 2, "high": 3}
ALL = tuple(CATALOGUE)


class TestNoiseOverWorlds(EnvironmentContract):
    plugin = "environment.noise"
    options: ClassVar = {"base": {"use": "environment.domain-graph", **WORLDS}, "level": 4}
    sample = 5


class TestNoiseOverArithmetic(EnvironmentContract):
    plugin = "environment.noise"
    options: ClassVar = {"base": {"use": "environment.arithmetic"}, "level": 3}
    sample = 5


def noise(level: int = 4, base: Any = None, **options: Any) -> Noise:
    return Noise(NoiseConfig(base=base or DomainGraphConfig(**WORLDS), level=level, **options))


def tape_with(kind: str, level: int = 4, tries: int = 500, **wanted: Any) -> Tape:
    """A tape that has a kind at the opening, or at the call `at`."""
    for number in range(tries):
        tape = Tape(level, (kind,), f"t/{number}")  # type: ignore[arg-type]
        if kind in tape.user() or ("at" in wanted and tape.tool(wanted["at"]) == kind):
            return tape
    raise AssertionError(f"no tape has {kind}")


@pytest.mark.parametrize("level", range(5))
def test_a_level_has_its_number_of_kinds_and_its_rate(level: int) -> None:
    tapes = [Tape(level, ALL, str(number)) for number in range(300)]
    assert {len(tape.active) for tape in tapes} == {TYPES[level]}
    noisy = [tape.tool("call") is not None for tape in tapes if set(tape.active) & {"T1", "T2", "T3", "T4", "T5", "T6"}]
    rate = (0.0, 0.05, 0.1, 0.2, 0.3)[level]
    if noisy:
        assert sum(noisy) / len(noisy) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / len(noisy)) ** 0.5)
    assert tapes[0].tool("call") == Tape(level, ALL, "0").tool("call")


def test_without_noise_a_task_is_the_base_task() -> None:
    made = noise(0)
    for task in made.tasks("train", 4):
        base = clean(task)
        assert (task.messages, task.tools, task.id, task.kind) == (base.messages, base.tools, base.id, base.kind)
        episode = made.start(task)
        assert made.demonstration(task) == made.base.demonstration(base)
        assert episode.met == []


@pytest.mark.parametrize("level", range(5))
def test_every_task_can_be_solved_within_the_turns(level: int) -> None:
    made = noise(level)
    for task in made.tasks("train", 12):
        proof = made.prove(task)
        assert proof.passed, (task.id, proof.reason)
        assert proof.turns <= made.config.turns


def test_noise_that_leaves_too_few_turns_is_refused() -> None:
    with pytest.raises(EngineError, match="solvable in 2 messages"):
        noise(4, turns=2).tasks("train", 3)


def test_an_unresolved_base_and_kinds_named_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="not resolved"):
        Noise(NoiseConfig(base={"use": "environment.domain-graph"}))
    with pytest.raises(ValueError, match="named twice: T1"):
        NoiseConfig(kinds=("T1", "T1"))


def test_a_fault_is_injected_at_most_three_times_in_a_row_and_the_call_is_not_made() -> None:
    made = noise(4, kinds=("T1",))
    bursts = []
    for task in made.tasks("train", 30):
        episode = made.start(task)
        before = episode.base.world.digest()  # type: ignore[attr-defined]
        for message in made.base.demonstration(clean(task)):
            for call in message.tool_calls:
                failed = 0
                while True:
                    try:
                        episode.call(call)
                        break
                    except InjectedFault as fault:
                        assert "nothing was changed" in str(fault)
                        assert failed or before == episode.base.world.digest()  # type: ignore[attr-defined]
                        failed += 1
                bursts.append(failed)
                before = episode.base.world.digest()  # type: ignore[attr-defined]
    assert max(bursts) == LONGEST_BURST
    assert min(bursts) == 0


def test_a_fault_of_the_infrastructure_keeps_its_kind() -> None:
    """What breaks inside the base is no injected fault, whatever the tape says: the agent loop masks it."""
    made = noise(4, kinds=("T6",))
    task = made.tasks("train", 1)[0]
    episode = made.start(task)

    def broken(call: ToolCall) -> str:
        raise OSError("the disk is gone")

    episode.base.call = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="disk"):
        episode.call(ToolCall("find", {}))
    assert not issubclass(OSError, ToolError)


@pytest.mark.parametrize("kind", ["T2", "T3"])
def test_what_an_answer_leaves_out_is_read_with_a_reference(kind: str) -> None:
    made = noise(4, kinds=(kind,), base=DomainGraphConfig(tools=12))
    seen = 0
    for task in made.tasks("train", 30):
        assert REST in task.tools
        assert "read_rest(reference: string)" in task.messages[0].content
        episode = made.start(task)
        base = made.base.start(clean(task))
        for message in made.base.demonstration(clean(task)):
            for call in message.tool_calls:
                noisy, plain = json.loads(episode.call(call)), json.loads(base.call(call))
                if "rest" in noisy:
                    seen += 1
                    rest = json.loads(episode.call(ToolCall(REST.name, {"reference": noisy["rest"]})))
                    assert leaves(plain) <= leaves(noisy) | leaves(rest)
                    assert not leaves(plain) <= leaves(noisy)
                else:
                    assert noisy == plain
        with pytest.raises(ToolError, match="nothing was left out"):
            episode.call(ToolCall(REST.name, {"reference": "rest-99"}))
        for arguments in ({}, {"reference": 1}, {"reference": "rest-1", "more": 1}):
            with pytest.raises(ToolError, match="takes one argument"):
                episode.call(ToolCall(REST.name, arguments))
    assert seen


def test_a_stale_answer_is_what_was_true_before_the_newest_change_and_says_so() -> None:
    made = noise(4, kinds=("T5",), base=DomainGraphConfig(tools=12))
    seen = 0
    for task in made.tasks("train", 40):
        episode = made.start(task)
        calls = [call for message in made.base.demonstration(clean(task)) for call in message.tool_calls]
        for call in calls * 4:
            try:
                noisy = episode.call(call)
                if json.loads(noisy).get("cached"):
                    seen += 1
                    again = json.loads(episode.call(call))
                    assert "cached" not in again
                    assert again != json.loads(noisy)
            except ToolError:
                continue
    assert seen


def test_other_calls_do_not_change_the_noise_of_a_call() -> None:
    made = noise(4)
    for task in made.tasks("train", 8):
        calls = [call for message in made.base.demonstration(clean(task)) for call in message.tool_calls]
        one, two = made.start(task), made.start(task)
        with pytest.raises(ToolError):
            two.call(ToolCall("no_such_tool", {}))
        assert [_heard(one, call) for call in calls] == [_heard(two, call) for call in calls]


def _heard(episode: Any, call: ToolCall) -> str:
    try:
        return str(episode.call(call))
    except ToolError as refused:
        return f"Error: {refused}"


def test_a_snapshot_holds_the_noise_too() -> None:
    made = noise(4)
    for task in made.tasks("train", 8):
        calls = [call for message in made.base.demonstration(clean(task)) for call in message.tool_calls]
        episode = made.start(task)
        assert isinstance(episode, SnapshotNoisyEpisode)
        half = len(calls) // 2
        for call in calls[:half]:
            _heard(episode, call)
        taken = episode.snapshot()
        first = [_heard(episode, call) for call in calls[half:]]
        met = list(episode.met)
        episode.restore(taken)
        assert [_heard(episode, call) for call in calls[half:]] == first
        assert episode.met == met
    plain = noise(2, base=ArithmeticConfig())
    assert not hasattr(plain.start(plain.tasks("train", 1)[0]), "snapshot")


KNOWN = Known("order.id", "RO-48213", "order number", "RO-48213")
OPENING = (
    "Hi, I am Ada Lovelace. My order number is RO-48213. Could you please cancel the order and tell me the refund?"
)


def test_typing_errors_leave_names_values_and_numbers_alone() -> None:
    texts = {mistyped(OPENING, Tape(4, ("U2",), str(number)), ["RO-48213"]) for number in range(30)}
    assert len(texts) > 10
    for text in texts:
        assert "Ada Lovelace" in text
        assert "RO-48213" in text
        assert len(text.split()) == len(OPENING.split())


def test_a_detail_is_left_out_as_a_sentence_or_by_a_mark() -> None:
    assert without(OPENING, KNOWN) == OPENING.replace(" My order number is RO-48213.", "")
    assert without("Cancel RO-48213 now", KNOWN) == "Cancel (ask me for the order number) now"
    assert without("RO-48213 or RO-48213", KNOWN) is None
    assert without("Cancel it", KNOWN) is None


def test_a_wrong_detail_differs_in_its_last_digit_alone() -> None:
    for number in range(20):
        wrong = altered(KNOWN, Tape(4, ("U4",), str(number)))
        assert wrong is not None
        assert wrong[:-1] == KNOWN.text[:-1]
        assert wrong != KNOWN.text
    assert altered(Known("a.b", "damaged", "reason", "damaged"), Tape(4, ("U4",), "0")) is None


def test_who_must_be_asked_by_name_tells_nothing_else() -> None:
    script = Script(withheld=(KNOWN,), strict=True)
    assert scripted_reply(script, [Message("assistant", "How can I help?")]) == UNCLEAR
    assert (
        scripted_reply(script, [Message("assistant", "What is the order number?")]) == "The order number is RO-48213."
    )
    loose = Script(withheld=(KNOWN,))
    assert scripted_reply(loose, [Message("assistant", "How can I help?")]) == "The order number is RO-48213."


def test_distorted_answers_lose_no_value() -> None:
    rows = {"orders": [{"id": "A", "city": "Oslo"}, {"id": "B", "city": "Rome"}, {"id": "C", "city": "Bern"}]}
    one = {"id": "A", "due_on": "2026-01-02", "city": "Oslo"}
    for number in range(20):
        tape = Tape(4, ALL, str(number))
        cut = cut_list(rows, "rest-1", tape, "c")
        assert cut is not None
        shown, rest = cut
        assert shown["orders"] + rest["orders"] == rows["orders"]
        assert rest["orders"]
        out = left_out(one, "rest-1", tape, "c")
        assert out is not None
        assert {**out[0], **out[1], "rest": 0} == {**one, "rest": 0}
        assert out[1]
        assert leaves(one) <= leaves(renamed(one, tape, "c"))
        assert set(renamed(one, tape, "c")) >= {"idValue", "dueOn", "cityValue"}
        assert wrapped(one, tape, "c")["result"] == one
        assert len(wrapped(one, tape, "c")) > 4
    assert cut_list(one, "r", tape, "c") is None
    assert left_out({"id": "A"}, "r", tape, "c") is None


def test_an_agent_that_repairs_nothing_is_judged_not_masked() -> None:
    made = noise(4, kinds=("T1",))
    lost = 0
    for task in made.tasks("train", 20):
        episode, demonstration = made.start(task), made.base.demonstration(clean(task))
        for message in demonstration:
            for call in message.tool_calls:
                _heard(episode, call)
        reward, _ = judge(episode, demonstration)
        assert reward.valid
        lost += reward.value == 0.0
    assert lost


def test_every_attempt_at_a_task_meets_the_same_noise() -> None:
    one, two = noise(4), noise(4)
    for first, second in zip(one.tasks("held-out", 6), two.tasks("held-out", 6), strict=True):
        assert tape_of(first) == tape_of(second)
        assert one.demonstration(first) == two.demonstration(second)
