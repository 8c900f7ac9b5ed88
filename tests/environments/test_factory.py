"""The factory: closed under dependencies, conservative, exact from the seed, and small enough for a small model."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.errors import ConfigError, PluginError
from stackloom.core.slots.environment import ToolError
from stackloom.environments import domains
from stackloom.environments.acceptance import accept
from stackloom.environments.chains import stands_out
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.entities import Blueprint, Column, Entity
from stackloom.environments.factory import Factory, Recipe, half_of, replay, replays
from stackloom.environments.graph import Graph, closure, stranded
from stackloom.environments.rows import Rows
from stackloom.environments.solver import difficulty, solve
from stackloom.environments.statements import _NEGATION, states
from stackloom.environments.wording import report

NAMES = domain_names()
DIGESTS = """
from stackloom.environments.domains import domain_names, find_domain
from stackloom.environments.factory import Factory, Recipe
for name in domain_names():
    built = Factory(find_domain(name), Recipe(tools=20, withheld=0.5)).build("7")
    print(built.digest, built.world().digest())
"""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tools", [3, 4, 20, 60])
def test_the_dial_is_the_number_of_tools_and_golden_chains_replay(name, tools):
    built = Factory(find_domain(name), Recipe(tools=tools)).build("dial")
    low, high = built.recipe.calls
    assert len(built.tools) == tools
    assert low <= len(built.golden) <= high
    assert {step.tool for step in built.golden} <= built.tools.keys()
    assert replays(built)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
def test_every_tool_can_be_reached_and_without_its_providers_it_cannot(name, seed):
    built = Factory(find_domain(name), Recipe(tools=20)).build(str(seed))
    graph = Graph(built.domain)
    assert stranded(built.tools.values(), graph.told_by_person) == []
    for tool in built.tools.values():
        lost = tool.requires - graph.told_by_person
        if not lost:
            continue
        others = [other for other in built.tools.values() if not other.provides & lost]
        known = closure([other for other in others if other is not tool], graph.told_by_person)
        assert not graph.deps_ok(tool, known, set(built.domain.blueprint.by_table))
        break


def test_deps_ok_wants_rows_in_the_tables_that_are_read():
    graph = Graph(find_domain("retail"))
    tool = graph.tools["find_customer_by_email"]
    assert graph.deps_ok(tool, graph.told_by_person, {"customers"})
    assert not graph.deps_ok(tool, graph.told_by_person, set())


def test_other_processes_and_hash_seeds_build_the_same_bytes():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "4242")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].split()) == 2 * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_differ(name):
    factory = Factory(find_domain(name), Recipe(tools=5))
    assert len({factory.build(str(seed)).request.opening for seed in range(20)}) == 20


def test_random_injection_breaks_chains_that_checked_growth_keeps():
    kept = {
        growth: sum(
            replays(Factory(find_domain(name), Recipe(tools=24, growth=growth)).build(str(seed)))
            for name in NAMES
            for seed in range(12)
        )
        for growth in ("checked", "random", "random-own")
    }
    assert kept["checked"] == 12 * len(NAMES)
    assert kept["random-own"] < kept["random"] < kept["checked"]


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
def test_a_request_points_at_one_row_only(name, seed):
    built = Factory(find_domain(name), Recipe(tools=24)).build(str(seed))
    domain = built.domain
    contents = {table: {row["id"]: row for row in rows} for table, rows in built.rows.items()}
    rows = Rows.of(contents, domain.blueprint, __import__("random").Random(0), domain.words, domain.today)
    for wish in built.wishes:
        for pointed in wish.pointed:
            entity = domain.blueprint.by_name[pointed.entity]
            assert stands_out(rows, entity, contents[entity.plural][pointed.row], pointed.handle)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
def test_the_user_says_everything_that_only_the_user_knows(name, seed):
    built = Factory(find_domain(name), Recipe(tools=24, withheld=0.5)).build(str(seed))
    heard = built.request.opening + " ".join(known.text for known in built.request.withheld)
    for known in built.request.known:
        assert known.text in heard
    for known in built.request.withheld:
        assert known in built.request.known


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
def test_no_call_of_a_golden_chain_that_changes_the_world_can_be_left_out(name, seed):
    built = Factory(find_domain(name), Recipe(tools=24)).build(str(seed))
    goal = built.recorded[0][1]
    for place, step in enumerate(built.golden):
        if not built.domain.tools[step.tool].writes:
            continue
        world = built.world()
        try:
            assert replay(built.domain, world, [*built.golden[:place], *built.golden[place + 1 :]]).delta != goal
        except ToolError:
            continue  # a later call needed it


def test_no_statement_is_made_by_the_report_of_the_others():
    """A weight of 20 kilograms would state an amount of $20.00, were both asked for: this seed drew them."""
    built = Factory(find_domain("airline"), Recipe()).build("0/184")
    for statement in built.statements:
        rest = [other for other in built.statements if other is not statement]
        assert not states(statement, report(built.wishes, rest))


def test_a_payee_of_another_client_is_refused_though_it_has_the_same_name():
    built = Factory(find_domain("banking"), Recipe()).build("0/159")
    clients = {row["client_id"] for row in built.rows["payees"] if row["name"] == "Harbour Insurance"}
    assert len(clients) == 2
    mutated = [judged for judged in accept(built) if judged.attempt.kind == "mutated"]
    assert [judged.attempt.name for judged in mutated if judged.verdict.passed] == []


def test_difficulty_is_measured_by_the_solver_and_grows_with_the_tools():
    factory = {tools: Factory(find_domain("retail"), Recipe(tools=tools, low=3, high=5)) for tools in (5, 30)}
    means = {
        tools: sum(difficulty(made.build(str(seed)), tries=4) for seed in range(8)) for tools, made in factory.items()
    }
    assert means[5] < means[30]
    assert solve(factory[5].build("0"), "a") == solve(factory[5].build("0"), "a")


def test_halves_share_no_person():
    domain = find_domain("banking")
    people = {
        half: {
            next(row["name"] for row in built.rows["clients"] if row["id"] == built.person)
            for built in (Factory(domain, Recipe(tools=4, half=half)).build(str(seed)) for seed in range(40))
        }
        for half in ("train", "held-out")
    }
    assert people["train"].isdisjoint(people["held-out"])
    assert all(half_of(domain, {"name": name}) == half for half, names in people.items() for name in names)


@pytest.mark.parametrize("options", [{"tools": 2}, {"tools": 61}, {"low": 3, "high": 2}])
def test_recipes_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        Recipe(**options)


def test_an_unknown_domain_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'retail'"):
        find_domain("retial")


def test_a_new_domain_is_found_by_its_folder(tmp_path, monkeypatch):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "words.toml").write_text("")
    monkeypatch.setattr(domains, "__file__", str(tmp_path / "__init__.py"))
    assert domains.domain_names() == ("zoo",)


NAME = Column("name", "text", lambda draw: "x")
PERSON = Entity("person", "people", "PE", (NAME,))


@pytest.mark.parametrize(
    ("entities", "reason"),
    [
        ((PERSON, PERSON), "entities\\[1\\] person: named twice"),
        ((Entity("person", "people", "PE", (NAME, NAME)),), "named twice"),
        (
            (PERSON, Entity("dog", "dogs", "DO", (Column("owner_id", "id", parent="cat"),))),
            "dog.owner_id: parent 'cat'",
        ),
        ((Entity("person", "people", "PE", (Column("name", "text"),)),), "anything else a draw"),
        ((Entity("person", "people", "PE", (Column("mood", "choice", lambda d: 1),)),), "choices go with"),
        ((Entity("dog", "dogs", "DO", (NAME,)),), "no entity 'person'"),
        ((Entity("person", "people", "PE", (NAME,), lookups=(("age",),)),), "a lookup names no column 'age'"),
    ],
)
def test_a_bad_blueprint_is_refused_with_its_place(entities, reason):
    with pytest.raises(PluginError, match=reason):
        Blueprint(entities, "person")


def test_a_tool_without_outputs_or_provider_or_named_twice_is_refused_with_its_name():
    domain = find_domain("retail")
    mute = replace(domain.actions[0], tells=())
    with pytest.raises(PluginError, match=r"retail\.cancel_order"):
        Graph(replace(domain, actions=(mute,)))
    with pytest.raises(PluginError, match=r"named twice|retail\.cancel_order"):
        replace(domain, actions=(domain.actions[0], domain.actions[0])).tools  # noqa: B018 - it is computed when asked for
    with pytest.raises(PluginError, match="no entity"):
        replace(domain, actions=(replace(mute, takes={"x": replace(mute.takes["order"], entity="ghost")}),)).tools  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_a_domains_words_cannot_mislead_the_verifier(name):
    """No digit and no denial in what golden reports say besides their values."""
    domain = find_domain(name)
    for action in domain.actions:
        assert not re.search(r"\d", action.done), action.name
        assert not _NEGATION.search(action.done), action.name
        for tell in action.tells:
            assert not re.search(r"\d", tell.noun), (action.name, tell.name)
            assert not _NEGATION.search(tell.noun), (action.name, tell.name)
    words = [str(entry) for entries in domain.words.values() for entry in entries]
    assert [word for word in words if _NEGATION.search(word)] == []
    for entity in domain.blueprint.entities:
        for column in entity.columns:
            assert not _NEGATION.search(column.spoken), column.name
            assert not any(_NEGATION.search(choice.replace("_", " ")) for choice in column.choices), column.name
            assert not re.search(r"\d", column.spoken)


@pytest.mark.slow
def test_a_task_of_four_tools_fits_into_400_tokens_of_a_small_model():
    from stackloom.engine.chat_tokenizer import HFChatTokenizer
    from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig
    from stackloom.plugins.model.hf.config import HFConfig

    chat = HFChatTokenizer(HFConfig(checkpoint="smollm2-135m-instruct").build().tokenizer())
    environment = DomainGraphConfig(tools=4, low=2, high=3).build()
    lengths = [len(chat.render(task.messages, reply=True)) for task in environment.tasks("train", 60 * len(NAMES))]
    assert len(lengths) == 60 * len(NAMES)
    assert max(lengths) <= 400
