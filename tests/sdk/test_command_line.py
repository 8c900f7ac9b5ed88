"""What people see: rows for machines, tables for people, errors without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackloom.core.rows import CheckRow, PluginRow

FIRST_PARTY = {"attention.full", "data.jsonl", "model.hf", "optimizer.adamw", "optimizer.muon"}
STACK = """
name: test
model: {use: model.hf, checkpoint: smollm2-135m-instruct}
stages:
  - train: {optimizer: %s, data: {use: data.jsonl, path: x.jsonl}, steps: 1}
"""


def write(folder: Path, optimizer: str) -> str:
    path = folder / "stack.yaml"
    path.write_text(STACK % optimizer)
    return str(path)


def test_list_gives_stable_rows(stackloom) -> None:
    rows = json.loads(stackloom("list", "--json").stdout)
    assert {row["id"] for row in rows} >= FIRST_PARTY
    assert all(
        list(row) == list(PluginRow.model_fields) == ["id", "slot", "version", "lifecycle", "paper", "origin"]
        for row in rows
    )


def test_list_filters_by_facet(stackloom) -> None:
    rows = json.loads(stackloom("list", "--slot", "optimizer", "--json").stdout)
    assert {row["slot"] for row in rows} == {"optimizer"}


def test_a_long_table_says_how_to_see_the_rest(stackloom) -> None:
    assert "1 of " in stackloom("list", "--limit", "1").stdout


def test_search_counts_facets_and_suggests(stackloom) -> None:
    found = json.loads(stackloom("search", "muon", "--json").stdout)
    assert found["rows"][0]["id"] == "optimizer.muon"
    assert found["facets"]["slot"]["optimizer"] >= 1
    nothing = stackloom("search", "muonn")
    assert nothing.returncode == 0
    assert "did you mean" in nothing.stdout


@pytest.mark.parametrize("name", ["optimizer.muon", "optimizer", "train", "h100"])
def test_show_knows_plugins_slots_stages_and_devices(stackloom, name: str) -> None:
    shown = stackloom("show", name)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(stackloom("show", name, "--json").stdout)


def test_show_schema_lists_options_with_unit_and_source(stackloom) -> None:
    schema = json.loads(stackloom("show", "optimizer.muon", "--schema", "--json").stdout)
    assert all({"unit", "source", "description"} <= field.keys() for field in schema["properties"].values())
    assert json.loads(stackloom("show", "--schema").stdout)["title"] == "Manifest"


def test_compare_puts_plugins_side_by_side(stackloom) -> None:
    columns = json.loads(stackloom("compare", "optimizer.adamw", "optimizer.muon", "--json").stdout)
    assert list(columns) == ["optimizer.adamw", "optimizer.muon"]
    assert columns["optimizer.adamw"].keys() == columns["optimizer.muon"].keys()


def test_plan_prints_picks_costs_and_the_verdict(stackloom) -> None:
    shown = stackloom("plan", "examples/first_stack.yaml", "--device", "h100").stdout
    for expected in ("NVIDIA H100", "optimizer.muon", "135 M parameters", "no conflicts; everything fits", "peak"):
        assert expected in shown


def test_the_yaml_and_the_python_example_plan_the_same(stackloom) -> None:
    from runpy import run_path

    import stackloom as sl

    root = Path(__file__).parents[2]
    twin = run_path(str(root / "examples/first_stack.py"))["first_stack"]()
    assert twin.spec.to_data() == sl.Stack.from_file(root / "examples/first_stack.yaml").spec.to_data()


def test_a_saved_plan_is_read_back_and_checked(stackloom, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    assert stackloom("plan", "examples/first_stack.yaml", "--save", str(saved)).returncode == 0
    assert stackloom("plan", str(saved)).returncode == 0


def test_a_saved_plan_whose_plugin_changed_is_refused_by_name(stackloom, site, tmp_path: Path) -> None:
    folder, saved = site("acme", "optimizer.acme"), str(tmp_path / "plan.json")
    assert stackloom("plan", write(tmp_path, "optimizer.acme"), "--save", saved, site=folder).returncode == 0
    config = folder / "acme" / "config.py"
    config.write_text(config.read_text() + "# changed\n")
    refused = stackloom("plan", saved, site=folder)
    assert refused.returncode == 1
    assert "optimizer.acme: its files changed" in refused.stderr


ERRORS = [
    ("{use: optimizer.muon, lrr: 1}", "stages[0].train.optimizer.lrr: unknown key; did you mean 'lr'?"),
    ("{use: optimizer.muon, lr: fast}", "stages[0].train.optimizer.lr: should be a valid number"),
    ("{use: optimizer.muon, lr: .nan}", "stages[0].train.optimizer.lr: should be a finite number"),
    ("{use: optimizer.muon, lr: .inf}", "stages[0].train.optimizer.lr: should be a finite number"),
    ("optimizer.mmuon", "did you mean 'optimizer.muon'"),
    ("[1]", "expected a plugin, got [1]"),
]


@pytest.mark.parametrize(("optimizer", "message"), ERRORS)
def test_a_user_s_mistake_comes_back_with_path_reason_and_fix(
    stackloom, tmp_path: Path, optimizer: str, message: str
) -> None:
    refused = stackloom("plan", write(tmp_path, optimizer))
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout
    assert "for you to act on" in refused.stderr


def test_debug_shows_the_traceback(stackloom, tmp_path: Path) -> None:
    assert "Traceback" in stackloom("plan", write(tmp_path, "nothing"), "--debug").stderr


@pytest.mark.parametrize("arguments", [["lst"], ["plan"], ["list", "--limit", "none"]])
def test_wrong_usage_exits_with_2_and_says_how(stackloom, arguments: list[str]) -> None:
    refused = stackloom(*arguments)
    assert refused.returncode == 2
    assert "Usage" in refused.stderr


@pytest.mark.parametrize("verb", ["list", "search", "show", "compare", "plan", "new", "check", "doctor", "bench"])
def test_every_verb_has_help(stackloom, verb: str) -> None:
    assert stackloom(verb, "--help").returncode == 0


# ---- broken and hostile plugins: one failure stays one

BROKEN = [
    ("raises", "raise ValueError('boom')", "ValueError: boom"),
    ("exits", "import sys; sys.exit(7)", "sys.exit(7)"),
    ("dies", "import os; os._exit(9)", "ended its process with code 9"),
    ("hangs", "import time; time.sleep(600)", "did not finish within 2 s"),
]


@pytest.mark.parametrize(("name", "config", "cause"), BROKEN)
def test_doctor_imports_a_broken_plugin_in_a_process_of_its_own(
    stackloom, site, name: str, config: str, cause: str
) -> None:
    folder = site(f"acme-{name}", f"optimizer.{name}", config)
    patience = "2" if name == "hangs" else "60"
    report = stackloom("doctor", "--import", f"optimizer.{name}", "--timeout", patience, "--json", site=folder)
    assert report.returncode == 1
    (row,) = [row for row in json.loads(report.stdout) if row["id"].endswith(": config")]
    assert list(row) == list(CheckRow.model_fields)
    assert cause in row["actual"]
    assert f"acme-{name} 1.0" in row["actual"]


@pytest.mark.parametrize(("name", "config", "cause"), [row for row in BROKEN if row[0] in {"raises", "exits"}])
def test_a_stack_that_names_a_broken_plugin_stops_and_names_its_distribution(
    stackloom, site, tmp_path: Path, name: str, config: str, cause: str
) -> None:
    folder = site(f"acme-{name}", f"optimizer.{name}", config)
    refused = stackloom("plan", write(tmp_path, f"optimizer.{name}"), site=folder)
    assert refused.returncode == 1
    assert f"optimizer.{name} (acme-{name} 1.0)" in refused.stderr
    assert "for the plugin's author to act on" in refused.stderr


def test_a_bad_manifest_leaves_the_others_usable_and_is_reported_by_doctor(stackloom, site) -> None:
    folder = site("acme", "optimizer.acme", manifest='colour = "red"')
    assert {row["id"] for row in json.loads(stackloom("list", "--json", site=folder).stdout)} >= FIRST_PARTY
    report = stackloom("doctor", site=folder)
    assert report.returncode == 1
    assert "colour: unknown key" in report.stdout


def test_one_id_in_two_distributions_names_both(stackloom, site, tmp_path: Path) -> None:
    site("acme", "optimizer.twice")
    folder = site("other", "optimizer.twice")
    refused = stackloom("plan", write(tmp_path, "optimizer.twice"), site=folder)
    assert refused.returncode == 1
    assert "acme" in refused.stderr
    assert "other" in refused.stderr


HOSTILE = "import pathlib, os; pathlib.Path(os.environ['STACKLOOM_HOME'], 'pwned').touch()\n"


@pytest.mark.parametrize(
    "verb",
    [
        ["list"],
        ["search", "acme"],
        ["show", "optimizer.acme"],
        ["compare", "optimizer.acme", "optimizer.muon"],
        ["doctor"],
        ["plan", "examples/first_stack.yaml"],
        ["show", "optimizer.muon", "--schema"],
    ],
)
def test_a_hostile_package_does_not_run_from_reading_or_from_plans_of_others(
    stackloom, site, tmp_path: Path, verb: list[str]
) -> None:
    folder = site("acme", "optimizer.acme", HOSTILE, init=HOSTILE)
    done = stackloom(*verb, site=folder)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home" / "pwned").exists()


def test_the_hostile_package_would_have_been_noticed(stackloom, site, tmp_path: Path) -> None:
    folder = site("acme", "optimizer.acme", HOSTILE, init=HOSTILE)
    stackloom("plan", write(tmp_path, "optimizer.acme"), site=folder)
    assert (tmp_path / "home" / "pwned").exists()


def test_unmet_needs_are_shown_with_the_command_that_installs_them(stackloom, site, tmp_path: Path) -> None:
    folder = site("acme", "optimizer.acme", manifest='needs = {not-there = ">=3", torch = ">=99"}')
    planned = stackloom("plan", write(tmp_path, "optimizer.acme"), site=folder)
    assert planned.returncode == 0
    assert "not-there" in planned.stdout
    assert "pip install" in planned.stdout
    assert "torch>=99" in planned.stdout.replace(" ", "")


# ---- homes that cannot be used


@pytest.mark.parametrize("place", ["{tmp}/file/home", "/proc", "/proc/home"])
def test_a_home_that_cannot_be_written_still_lists_with_one_notice(stackloom, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    listed = stackloom("list", "--json", home=Path(place.format(tmp=tmp_path)))
    assert {row["id"] for row in json.loads(listed.stdout)} >= FIRST_PARTY
    assert listed.stderr.count("notice:") == 1


def test_a_corrupted_registry_is_rebuilt_with_one_notice(stackloom, tmp_path: Path) -> None:
    assert stackloom("list").returncode == 0
    (database,) = (tmp_path / "home").glob("*.db")
    database.write_bytes(b"not a database" * 1000)
    listed = stackloom("list", "--json")
    assert {row["id"] for row in json.loads(listed.stdout)} >= FIRST_PARTY
    assert listed.stderr.count("notice:") == 1
    assert list((tmp_path / "home").glob("*corrupt*"))
    assert stackloom("list").stderr == ""


HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "triton", "transformers", "ray"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def test_without_torch_everything_but_running_works_and_says_what_to_install(stackloom, tmp_path: Path) -> None:
    site = tmp_path / "hidden"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE)
    for verb in (
        ["list"],
        ["show", "attention.full"],
        ["plan", "examples/first_stack.yaml", "--device", "h100"],
        ["doctor"],
    ):
        assert stackloom(*verb, site=site).returncode == 0
    refused = stackloom("bench", "rms_norm", site=site)
    assert refused.returncode == 1
    assert "torch is not installed" in refused.stderr
    assert "pip install 'stackloom[train]'" in refused.stderr
