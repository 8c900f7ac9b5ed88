"""Domains that a model writes: what the checks find, what the loop repairs, and that its code stays in the sandbox."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stackloom.client.openai_compatible import OpenAICompatible
from stackloom.core.errors import ArtifactError, ConfigError, PluginError
from stackloom.environments import writing
from stackloom.environments.acceptance import accept
from stackloom.environments.domains import find_domain
from stackloom.environments.factory import Factory, Recipe
from stackloom.environments.sandbox import SandboxRefused, open_sandbox
from stackloom.environments.writing import rules as rules_module
from stackloom.environments.writing.rules import misfit
from stackloom.environments.writing.sheet import DomainSheet, read_sheet
from stackloom.environments.writing.trials import problems
from stackloom.environments.writing.writer import NotWritten, instructions, read_reply, write_domain
from stackloom.testing.fake_server import Answer, FakeServer

EXAMPLE = Path(writing.__file__).parent / "example.json"
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture(scope="module")
def sandbox():
    return open_sandbox()


def sheet(change=lambda data: None):
    data = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    change(data)
    return DomainSheet.model_validate(data)


def code(number, text):
    def change(data):
        data["actions"][number]["code"] = text

    return change


def test_the_example_passes_every_check(sandbox):
    assert problems(sheet(), sandbox) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (code(1, "def run(db, given):\n    return {'hours': 4}"), "the post-condition of tool 'cancel_booking'"),
        (code(1, "def run(db, given):\n    return {'hours': 1 / 0}"), "line 2: ZeroDivisionError"),
        (code(1, "def run(db, given):\n    while True: pass"), "took over"),
        (code(1, "def run(db, given)\n    return {}"), "SyntaxError"),
        (code(1, "x = 1"), "KeyError: 'run'"),
        (
            code(1, "def run(db, given):\n    db.insert('bookings', status='gone')\n    return {}"),
            "a new row of bookings lacks bike_id, bike_model, helmet, hours, pick_up_on, rider_id",
        ),
        (
            code(1, "def run(db, given):\n    db.update('bookings', given['booking']['id'], hours=1.5)\n    return {}"),
            "bookings.hours is a whole number",
        ),
        (
            code(1, "def run(db, given):\n    db.update('riders', 'RI-1', credit=1)\n    return {}"),
            "table 'riders' stands in neither reads nor writes",
        ),
        (
            code(
                1,
                "def run(db, given):\n    db.update('bookings', given['booking']['id'], status='cancelled')\n"
                "    return {'hours': 99}",
            ),
            "the answer's hours is 99, it should be 4",
        ),
        (
            code(2, "def pre(db, given):\n    db.delete('bookings', given['booking']['id'])\n    return ''\n"
                    "def run(db, given):\n    return {'credit': 1}"),
            "pre changes the world",
        ),
        (
            code(2, "def run(db, given):\n    return {'credit': 1}"),
            "it should have been refused",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_rule_is_told_with_its_place(sandbox, change, says):
    found = problems(sheet(change), sandbox)
    assert any(says in problem for problem in found), found
    assert all(problem.startswith("test '") for problem in found)


def test_a_rule_cannot_forge_what_it_read_or_reach_the_host(sandbox, tmp_path):
    """What it prints is no answer, a forged log is checked as any other, and there is no host to touch."""
    mark = tmp_path / "mark"
    attack = (
        "def run(db, given):\n"
        f"    try: open({str(mark)!r}, 'w').write('x')\n"
        "    except OSError: pass\n"
        '    print(\'{"answer": {"hours": 4}}\')\n'
        "    import os\n"
        "    db.update('bookings', given['booking']['id'], status='cancelled')\n"
        "    return {'hours': 4 if set(os.listdir('/')) & {'root', 'home'} else given['booking']['hours']}\n"
    )
    assert problems(sheet(code(1, attack)), sandbox) == []
    assert not mark.exists()
    forged = (
        "def run(db, given):\n"
        "    import json, os\n"
        "    log = [['update', 'sqlite_master', 'x', {}]]\n"
        "    os.write(1, json.dumps({'seen': 0, 'answer': {'hours': 4}, 'log': log}).encode())\n"
        "    os._exit(0)\n"
    )
    assert any("there is no table 'sqlite_master'" in problem for problem in problems(sheet(code(1, forged)), sandbox))


def test_sheets_that_do_not_hold_together_are_refused(sandbox):
    def without_tests(data):
        data["actions"][0]["tests"] = data["actions"][0]["tests"][1:]

    def unknown_list(data):
        data["entities"][1]["columns"][0]["draw"] = {"words": "bikes"}

    def asks_for_more(data):
        data["actions"][0]["asks"] = ["book {bike} at {dock}"]

    for change, says in (
        (without_tests, "no test of a call that is done"),
        (unknown_list, "draws from 'bikes'"),
        (asks_for_more, "asks with {dock}"),
    ):
        with pytest.raises(ValueError, match=says.replace("{", "[{]").replace("}", "[}]")):
            sheet(change)

    def orphan(data):
        data["entities"][2]["columns"][1]["parent"] = "car"

    assert "parent 'car' is no entity" in problems(sheet(orphan), sandbox)[0]


def test_a_domain_from_a_file_builds_tasks_like_any_other():
    domain = find_domain(str(EXAMPLE))
    built = [Factory(domain, Recipe(tools=20)).build("5") for _ in range(2)]
    assert built[0].digest == built[1].digest
    assert all(judged.as_wanted for judged in accept(built[0]))


def test_files_that_hold_no_domain_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sheet(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text('{"name": "Bad Name"}')
    with pytest.raises(ArtifactError, match="is no domain"):
        read_sheet(tmp_path / "bad.json")


def test_values_are_checked_by_kind():
    assert misfit("integer", True)
    assert misfit("integer", 2.0)
    assert misfit("money", "5")
    assert misfit("date", "2026-02-30")
    assert misfit("date", "20260228")
    assert misfit("clock", "2026-02-28")
    assert misfit("text", "")
    assert misfit("text", "x" * 301)
    assert misfit("choice", "c", choices=("a", "b"))
    assert not misfit("clock", "2026-02-28 09:30")
    assert not misfit("choice", "a", choices=("a", "b"))


def wrong_first(data):
    del data["actions"][1]["after"]
    data["actions"][1]["code"] = "def run(db, given):\n    return {'hours': 4}"


def written(replies, repairs=3):
    """Let a server that says these texts in turn write a domain."""

    async def go():
        answers = [Answer(words=(text,)) for text in replies]
        async with (
            FakeServer(lambda number, body: answers[min(number, len(answers) - 1)]) as server,
            OpenAICompatible(server.url, model="writer") as model,
        ):
            try:
                found = await write_domain(model, "bike_rental", "bikes", open_sandbox(), repairs=repairs)
            except NotWritten as failed:
                found = failed
            return found, server.requests

    return asyncio.run(go())


def test_a_domain_is_repaired_from_what_the_checks_say():
    broken = sheet(wrong_first).model_dump_json(by_alias=True)
    found, requests = written(["I cannot do that.", f"Here it is:\n```json\n{broken}\n```", EXAMPLE.read_text()])
    assert [len(made.problems) > 0 for made in found.rounds] == [True, True, False]
    assert found.sheet == sheet()
    said = [message["content"] for message in requests[-1]["messages"]]
    assert "no JSON document" in said[3]
    assert "one.status is 'open', it should be 'cancelled'" in said[5]


def test_repairs_are_bounded():
    found, requests = written([sheet(wrong_first).model_dump_json(by_alias=True)], repairs=2)
    assert isinstance(found, NotWritten)
    assert len(found.rounds) == len(requests) == 3
    assert "after 2 repairs" in str(found)
    assert "it should be 'cancelled'" in str(found)


def test_no_code_runs_where_there_is_no_sandbox(monkeypatch, tmp_path):
    from stackloom.cli import make_app

    monkeypatch.setattr("stackloom.environments.sandbox.shutil.which", lambda *args, **kwargs: None)
    with pytest.raises(SandboxRefused):
        find_domain.__wrapped__(str(EXAMPLE))
    asked = [
        "env",
        "write",
        "x",
        "--about",
        "y",
        "--endpoint",
        "http://127.0.0.1:9/v1",
        "--out",
        str(tmp_path / "x.json"),
    ]
    outcome = CliRunner().invoke(make_app(), asked)
    assert outcome.exit_code != 0
    assert isinstance(outcome.exception, SandboxRefused)


def test_the_command_writes_a_file_that_other_verbs_take(tmp_path):
    from stackloom.cli import make_app

    path = tmp_path / "bike_rental.json"

    async def go():
        async with FakeServer(lambda number, body: Answer(words=(EXAMPLE.read_text(),))) as server:
            asked = ["env", "write", "bike_rental", "--about", "bikes", "--endpoint", server.url, "--model", "writer"]
            return await asyncio.to_thread(CliRunner().invoke, make_app(), [*asked, "--out", str(path)])

    outcome = asyncio.run(go())
    assert outcome.exit_code == 0, outcome.output
    assert read_sheet(path) == sheet()
    verified = CliRunner().invoke(make_app(), ["env", "verify", str(path), "--count", "1", "--json"])
    assert verified.exit_code == 0
    assert json.loads(verified.stdout)["wrong"] == []


def test_equal_inputs_are_asked_once(sandbox):
    asked = []

    class Counting:
        def run(self, program, **options):
            asked.append(options["stdin"])
            return sandbox.run(program, **options)

    assert problems(sheet(), Counting()) == []
    assert len(asked) == len(set(asked)) < rules_module.KEPT


def test_instructions_hold_the_schema_and_the_example():
    text = instructions()
    assert "ActionSheet" in text
    assert "bike_rental" in text
    assert read_reply(EXAMPLE.read_text(), "other")[1] == ["name: the domain is called 'other', not 'bike_rental'"]
    assert PluginError in NotWritten.__mro__
