"""From `new` to a wheel that somebody else installs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stackloom.core.errors import ConfigError
from stackloom.scaffold import TEMPLATES, scaffold

SLOTS = sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir() and path.name != "common")


@pytest.mark.parametrize("name", ["My-SGD", "my_sgd", "-a", "a--b", "", "a b"])
def test_a_name_that_is_no_technique_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a technique's name"):
        scaffold("optimizer", name, tmp_path / "new")


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        scaffold("optimizer", "my-sgd", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_an_unknown_slot_suggests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'optimizer'"):
        scaffold("optimiser", "my-sgd", tmp_path / "new")


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("name", ["mine", "my-own-2", "3d"])
def test_every_file_of_a_new_project_is_valid(tmp_path: Path, slot: str, name: str) -> None:
    folder = scaffold(slot, name, tmp_path / "new")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"pyproject.toml", "README.md", "plugin.toml", "config.py"} <= {path.name for path in files}
    for path in files:
        text = path.read_text()
        assert "$" not in text, path
        if path.suffix == ".py":
            compile(text, path, "exec")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `stackloom new optimizer my-sgd`."""
    folder = scaffold("optimizer", "my-sgd", tmp_path_factory.mktemp("new") / "project")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(folder)],
        check=True,
        capture_output=True,
    )
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.slow
@pytest.mark.parametrize("slot", SLOTS)
def test_a_new_project_passes_check(stackloom, tmp_path: Path, slot: str) -> None:
    folder = tmp_path / "project"
    assert stackloom("new", slot, "mine", "--folder", str(folder)).returncode == 0
    report = stackloom("check", str(folder), "--json")
    rows = json.loads(report.stdout)
    assert [row for row in rows if not row["passed"]] == []
    assert report.returncode == 0
    assert {row["id"].partition(": ")[2] for row in rows} >= {
        "manifest",
        "config is torch-free",
        "import has no side effects",
        "contract",
        "README",
        "example",
    }


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_is_listed_checked_and_planned(stackloom, wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "elsewhere"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    assert "optimizer.my-sgd" in {row["id"] for row in json.loads(stackloom("list", "--json", site=site).stdout)}
    stack = tmp_path / "stack.yaml"
    stack.write_text(
        Path("examples/first_stack.yaml").read_text().replace("optimizer.muon, lr: 2e-3", "optimizer.my-sgd, lr: 2e-3")
    )
    assert stackloom("plan", str(stack), site=site).returncode == 0
    checked = stackloom("check", str(wheel))
    assert checked.returncode == 0, checked.stdout


MISTAKES = {
    "config is torch-free": ("config.py", "import torch\n"),
    "import has no side effects": ("config.py", "open('left.txt', 'w').close()\n"),
    "config imports": ("config.py", "raise RuntimeError('no')\n"),
    "component imports": ("my_sgd.py", "import not_there\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", MISTAKES)
def test_check_finds_a_planted_mistake_and_says_what_to_do(stackloom, tmp_path: Path, law: str) -> None:
    folder = scaffold("optimizer", "my-sgd", tmp_path / "project")
    name, code = MISTAKES[law]
    path = folder / "src" / "stackloom_my_sgd" / name
    first, _, rest = path.read_text().partition("from __future__ import annotations\n")
    path.write_text(f"{first}from __future__ import annotations\n{code}{rest}")
    report = stackloom("check", str(folder), "--json")
    assert report.returncode == 1
    (row,) = [row for row in json.loads(report.stdout) if row["id"].endswith(f": {law}")]
    assert not row["passed"]
    assert row["fix"]
    assert not Path("left.txt").exists()


@pytest.mark.slow
def test_check_finds_a_broken_law_of_the_contract(stackloom, tmp_path: Path) -> None:
    folder = scaffold("optimizer", "my-sgd", tmp_path / "project")
    path = folder / "src" / "stackloom_my_sgd" / "my_sgd.py"
    path.write_text(path.read_text().replace('alpha=group["lr"]', "alpha=0.1"))
    report = stackloom("check", str(folder), "--json")
    (row,) = [row for row in json.loads(report.stdout) if row["id"].endswith(": contract")]
    assert not row["passed"]
    assert "failed" in row["actual"]


@pytest.mark.slow
def test_a_wheel_without_a_plugin_says_what_is_missing(stackloom, tmp_path: Path) -> None:
    folder = scaffold("optimizer", "my-sgd", tmp_path / "project")
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("stackloom.plugins", "something.else"))
    report = stackloom("check", str(folder))
    assert report.returncode == 1
    assert "entry-points" in report.stdout


@pytest.mark.parametrize("target", ["optimizer.nothing", "docs", "nothing.whl"])
def test_what_cannot_be_checked_is_a_config_error(stackloom, target: str) -> None:
    refused = stackloom("check", target)
    assert refused.returncode == 1
    assert "error:" in refused.stderr
    assert "Traceback" not in refused.stderr
