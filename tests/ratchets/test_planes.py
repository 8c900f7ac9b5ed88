"""Listing and planning run no plugin code they need not run, and load nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "triton", "ray", "transformers")


def loaded_after(code: str, tmp_path) -> set[str]:
    report = "import sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        env={"STACKLOOM_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


MAIN = "import stackloom.cli\ntry:\n    stackloom.cli.main({!r})\nexcept SystemExit as stop:\n    assert not stop.code"


@pytest.mark.parametrize(
    "code",
    [
        "import stackloom, stackloom.core.planning, stackloom.registry, stackloom.stack, stackloom.cli",
        MAIN.format(["list"]),
        MAIN.format(["search", "optimizer"]),
        MAIN.format(["show", "optimizer.adamw"]),
        MAIN.format(["doctor"]),
        MAIN.format(["plan", "examples/first_stack.yaml", "--device", "h100"]),
    ],
)
def test_no_read_verb_loads_torch_triton_ray_or_transformers(code: str, tmp_path) -> None:
    assert loaded_after(code, tmp_path).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "verb",
    [
        ["list"],
        ["show", "optimizer.adamw"],
        ["search", "adam"],
        ["doctor"],
        ["compare", "optimizer.adamw", "optimizer.muon"],
    ],
)
def test_browsing_runs_no_plugin_code(verb: list[str], tmp_path) -> None:
    modules = loaded_after(MAIN.format(verb), tmp_path)
    assert [name for name in modules if name.startswith("stackloom.plugins.")] == []


def test_planning_runs_the_config_modules_of_the_chosen_plugins_alone(tmp_path) -> None:
    modules = loaded_after(MAIN.format(["plan", "examples/first_stack.yaml", "--device", "h100"]), tmp_path)
    run = {name for name in modules if name.startswith("stackloom.plugins.") and name.count(".") == 4}
    assert run == {f"stackloom.plugins.{name}.config" for name in ("model.hf", "data.jsonl", "optimizer.muon")}


def test_import_stackloom_needs_the_standard_library_alone(tmp_path) -> None:
    (tmp_path / "stackloom").symlink_to(Path(__file__).parents[2] / "sdk")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import stackloom; print(stackloom.__all__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Stack" in done.stdout
