"""`stackloom env`: what it lists, builds, draws, judges, and how a person plays."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from stackloom.cli import main
from stackloom.core.chat import Message
from stackloom.core.slots.environment import ToolError
from stackloom.environments.acceptance import Call, as_call, perform
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.factory import Factory, Recipe
from stackloom.environments.verifier import verify
from stackloom.environments.wording import report
from stackloom.worlds.graph_svg import draw
from stackloom.worlds.terminal import Seat, read_arguments
from stackloom.worlds.transcript_page import render

BUILT = Factory(find_domain("retail"), Recipe(tools=8)).build("seat")


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["env", *map(str, arguments)])
    return stop.value.code


def seated(*lines, built=BUILT):
    """Play with these lines; return (verdict, seat, what was printed)."""
    waiting = iter(lines)

    def ask(prompt):
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    console = Console(record=True, width=200, force_terminal=False)
    seat = Seat(built, console, ask)
    return seat.play(), seat, console.export_text()


def test_list_names_every_domain(capsys):
    assert run("list", "--json") in (0, None)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(domain_names())
    assert all(row["tools"] >= 60 for row in rows)


def test_build_prints_the_same_twice_and_what_a_machine_reads(capsys):
    outputs = []
    for _ in range(2):
        assert run("build", "banking", "--seed", "3", "--tools", "6", "--json") in (0, None)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    row = json.loads(outputs[0])
    assert len(row["tools"]) == 6
    assert row["golden"][-1]["tool"] in " ".join(row["tools"])


def test_show_draws_a_graph_and_a_page(tmp_path, capsys):
    svg, html = tmp_path / "graph.svg", tmp_path / "attempt.html"
    assert run("show", "ticketing", "--seed", "1", "--withheld", "1", "--svg", svg, "--html", html) in (0, None)
    built = Factory(find_domain("ticketing"), Recipe(withheld=1.0)).build("1")
    ET.fromstring(svg.read_text())
    page = html.read_text()
    assert all(name in page for name in built.tools)
    assert "Everything is as the user asked." in page
    assert page.count("http://") == page.count("http://www.w3.org")  # it loads nothing


def test_show_without_a_file_says_what_to_give(capsys):
    assert run("show", "retail") == 1
    assert "--svg FILE" in capsys.readouterr().err


def test_every_golden_call_has_its_number_in_the_graph():
    text = "".join(ET.fromstring(draw(BUILT)).itertext())
    for number, step in enumerate(BUILT.golden, 1):
        assert str(number) in text
        assert step.tool in text


def page_of(messages):
    world = BUILT.world()
    return render(BUILT, messages, verify(BUILT, world, messages), world.contents())


def test_a_page_numbers_the_golden_calls_and_marks_what_they_pass_on():
    golden = [as_call(BUILT, step) for step in BUILT.golden]
    world = BUILT.world()
    page = page_of(list(perform(BUILT, world, [Call(golden[0].tool, {}), *golden])))
    steps = re.findall(r'class="step">(\d+)</span><b>(\w+)', page)
    assert steps == [(str(number), made.tool) for number, made in enumerate(golden, 1)]  # the failed call has none
    marked = re.findall(r"<td class=used>([^<]+)", page)
    passed = {str(value) for made in golden for value in made.arguments.values()}
    assert set(marked) <= passed
    assert next(iter(golden[-1].arguments.values())) in marked


def test_markup_in_a_world_is_shown_as_text():
    page = page_of([Message("assistant", "<script>alert(1)</script>"), Message("tool", "<b>", name="x")])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_a_person_who_does_everything_earns_the_reward():
    lines = []
    for step in BUILT.golden:
        made = as_call(BUILT, step)
        lines.append(f"{made.tool} " + " ".join(f"{key}='{value}'" for key, value in made.arguments.items()))
    verdict, seat, shown = seated(
        "tools", f"help {BUILT.golden[0].tool}", "hint", *lines, f"say {report(BUILT.wishes, BUILT.statements)}"
    )
    assert verdict.passed, shown
    assert "reward 1" in shown
    assert len(seat.messages) == 2 * len(BUILT.golden) + 1


def test_a_person_who_only_claims_it_earns_nothing():
    verdict, _, shown = seated("say All is done.")
    assert not verdict.passed
    assert "reward 0" in shown


def test_mistakes_at_the_keyboard_are_told_and_cost_nothing():
    verdict, seat, shown = seated(
        "dance", "get_ordr RO-1", BUILT.golden[0].tool, f"{BUILT.golden[0].tool} nonsense='", "say", "task"
    )
    assert verdict is None
    assert seat.messages == []
    assert "no tool here" in shown
    assert "say what?" in shown


def test_a_user_who_holds_a_detail_back_answers():
    factory = Factory(find_domain("retail"), Recipe(tools=8, withheld=1.0))
    built = next(built for built in (factory.build(str(seed)) for seed in range(30)) if built.request.withheld)
    known = built.request.withheld[0]
    verdict, seat, shown = seated(f"say What is the {known.noun}?", built=built)
    assert verdict is None
    assert seat.messages[-1].role == "user"
    assert known.text in shown


def test_arguments_are_read_as_people_type_them():
    tools = find_domain("banking").tools
    assert read_arguments(tools["get_account"], "AC-1") == {"account_id": "AC-1"}
    assert read_arguments(tools["pay_payee"], "account_id=AC-1 payee_id=PY-2 amount=12.50")["amount"] == 12.5
    with pytest.raises(ToolError, match=r"account_id=\.\.\. payee_id"):
        read_arguments(tools["pay_payee"], "AC-1 PY-2")


def test_verify_prints_what_must_pass_and_what_must_fail(capsys):
    assert run("verify", "calendar", "--count", "1", "--tools", "5", "--json") in (0, None)
    report = json.loads(capsys.readouterr().out)
    assert report["wrong"] == []
    assert {row["must"] for row in report["attempts"]} == {"pass", "fail"}
    assert all(row["attempts"] == row["as_wanted"] for row in report["attempts"])


def test_an_unknown_domain_is_an_error_for_the_user(capsys):
    assert run("build", "zoo") == 1
    assert "there is no domain 'zoo'" in capsys.readouterr().err
