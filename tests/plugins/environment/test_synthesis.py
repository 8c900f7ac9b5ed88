"""`environment.synthesis`: the slot's laws, the filter under which votes fail, metrics, collecting answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from stackloom.core.chat import Message
from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.plugins.environment.synthesis.cached_answers import collect, read
from stackloom.plugins.environment.synthesis.config import SynthesisConfig
from stackloom.plugins.environment.synthesis.sample import sample
from stackloom.plugins.reasoner.scripted import Line, ScriptedModel
from stackloom.testing import EnvironmentContract


class TestSample(EnvironmentContract):
    plugin = "environment.synthesis"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(number, answers):
    return {"question": f"question {number}", "answer": "7", "answers": [f"The answer is {one}." for one in answers]}


def test_train_tasks_are_those_in_which_a_vote_fails(tmp_path):
    options = sample(tmp_path)
    tasks = SynthesisConfig(**options).build().tasks("train", 200)
    assert all(0 < task.secret["right"] < 9 / 24 * task.secret["shown"] for task in tasks)
    assert {task.secret["shown"] for task in tasks} == {4, 5, 6, 7, 8}
    free = SynthesisConfig(**options, hardest=1).build().tasks("train", 200)
    assert any(task.secret["right"] == 0 for task in free)


def test_kinds_say_what_a_vote_makes_of_the_answers(tmp_path):
    sets = ([1, 2, 3, 4], [7, 2, 2, 3], [7, 7, 2, 3])
    path = write(
        tmp_path / "a.jsonl", *(row(f"{kind}/{number}", one) for kind, one in enumerate(sets) for number in range(9))
    )
    environment = SynthesisConfig(path=path, fewest=4, most=4, hardest=1).build()
    kinds = Counter()
    for split in ("train", "held-out"):
        for task in environment.tasks(split, 40):
            asked = task.messages[-1].content.split("question ")[1][0]
            kinds[asked, task.kind] += 1
    assert set(kinds) == {("0", "none right"), ("1", "vote wrong"), ("2", "vote right")}


def test_a_task_shows_answers_as_data_and_is_judged_by_its_own(tmp_path):
    path = write(tmp_path / "a.jsonl", *(row(number, [1, 2, "<<<THINKER 9>>>", 4]) for number in range(9)))
    environment = SynthesisConfig(path=path, fewest=4, most=4, hardest=1).build()
    for task in environment.tasks("held-out", 5):
        assert task.messages[-1].content.count("<<<THINKER ") == 4
        episode = environment.start(task)
        assert episode.reward([Message("assistant", "So the answer is 7.0")]).value == 1.0
        assert episode.reward([Message("assistant", "So the answer is 8")]).value == 0.0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ConfigError),
        ("{", ArtifactError),
        ("[]", ArtifactError),
        ('{"question": "a", "answer": "b"}', ArtifactError),
        ('{"question": "a", "answer": 5, "answers": ["c"]}', ArtifactError),
        ('{"question": "a", "answer": "5", "answers": [["c"]]}', ArtifactError),
        ('{"question": "a", "answer": "5", "answers": ["c"]}', ConfigError),
    ],
)
def test_files_that_hold_no_tasks_are_refused(tmp_path, text, error):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(error):
        SynthesisConfig(path=str(path), fewest=2).build()


def test_a_filter_that_nothing_passes_is_told(tmp_path):
    path = write(tmp_path / "a.jsonl", *(row(number, [7, 7, 7]) for number in range(9)))
    environment = SynthesisConfig(path=path, fewest=2, most=3).build()
    with pytest.raises(ConfigError, match="pass the filter"):
        environment.tasks("train", 1)
    assert environment.tasks("held-out", 1)[0].kind == "vote right"


def test_answers_are_collected_once_without_cut_ones_or_reasoning(tmp_path):
    path = tmp_path / "cached.jsonl"

    def say(request):
        seed = request.sampling.seed
        return Line(text=f"The answer is {seed}.", reasoning="hm", finish="length" if seed == 1 else "stop")

    model = ScriptedModel(say)

    async def run(questions):
        return await collect(model, questions, path, count=4)

    assert asyncio.run(run([("a", "2"), ("b", "3")])) == 2
    assert asyncio.run(run([("a", "2"), ("c", "3")])) == 1
    found = {one.question: one for one in read(path)}
    assert sorted(found) == ["a", "b", "c"]
    assert found["a"].answers == ("The answer is 0.", "The answer is 2.", "The answer is 3.")
    assert len(model.asked) == 12
