"""README, docs and examples say what is so."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from stackloom.cli import make_app
from stackloom.core.hooks import Hooks
from stackloom.core.manifest import Manifest
from stackloom.core.plan import gib
from stackloom.core.slots import slots

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "concepts").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_every_python_block_runs(page: Path) -> None:
    for block in blocks(page, "python"):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any("stages:" in block for block in blocks(page, "yaml"))],
    ids=lambda page: page.name,
)
def test_every_stack_in_the_docs_can_be_planned(page: Path) -> None:
    import stackloom as sl

    for block in blocks(page, "yaml"):
        if "stages:" in block:
            assert sl.Stack.from_yaml(block).plan(device="h100").ok


def test_the_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def runs(example: Path, *arguments: str, where: Path = ROOT) -> None:
    command = [sys.executable, str(example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALLER = {  # an example that runs a model says what a test shall give it
    path: found[1].split()
    for path in EXAMPLES
    if (found := re.search(r"^# tested with: (.+)$", path.read_text(), re.M))
}


@pytest.mark.parametrize("example", [path for path in EXAMPLES if path not in SMALLER], ids=lambda path: path.name)
def test_every_example_runs(example: Path) -> None:
    runs(example)


@pytest.mark.slow
@pytest.mark.parametrize("example", SMALLER, ids=lambda path: path.name)
def test_every_example_with_a_model_runs(example: Path, tmp_path: Path) -> None:
    runs(example, *SMALLER[example], where=tmp_path)


@pytest.mark.parametrize("name", ["tool_agent", "domain_agent"])
def test_a_job_is_the_same_in_python_and_yaml(name: str) -> None:
    import stackloom as sl

    python = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))[name]()
    assert python.plan().digest == sl.Stack.from_file(ROOT / "examples" / f"{name}.yaml").plan().digest


def test_every_slot_hook_verb_and_manifest_field_is_documented() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    verbs = [command.name or command.callback.__name__ for command in make_app().registered_commands]
    assert "plan" in verbs
    wanted = [
        *(f"`{name}`" for name in slots()),
        *(f"`{name}(" for name in vars(Hooks) if name.startswith("on_")),
        *(f"## stackloom {verb}" for verb in verbs),
        *(f"`{name}`" for name in Manifest.model_fields),
    ]
    assert [item for item in wanted if item not in text] == []


def test_every_relative_link_leads_somewhere() -> None:
    dead = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)} -> {target}")
    assert dead == []


def test_committed_evidence_has_the_stable_fields() -> None:
    files = sorted((ROOT / "docs" / "evidence").rglob("*.json"))
    assert files
    for path in files:
        rows = json.loads(path.read_text())
        assert rows
        assert all(
            list(row)[:8] == ["name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device"]
            for row in rows
            if "ratio" in row
        ), path
        assert all({"device", "date"} <= row.keys() for row in rows), path


def test_the_fine_tuning_example_is_the_same_in_python_and_yaml_and_shows_each_choices_memory() -> None:
    import stackloom as sl

    python = runpy.run_path(str(ROOT / "examples" / "fine_tune_smollm2.py"))["fine_tune"]()
    plan = python.plan()
    assert plan.digest == sl.Stack.from_file(ROOT / "examples" / "fine_tune_smollm2.yaml").plan().digest
    assert plan.ok, plan.problems()
    parameters = next(part.cost.parameters for part in plan.components() if part.plugin == "adapter.afa-lora")
    assert f"state {gib(8 * parameters)}" in str(plan)  # MONA's two float32 buffers
