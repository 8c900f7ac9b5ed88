"""What is shipped: one wheel, the same bytes twice, everything in it, and new techniques without an edit."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "registry", "kernels", "environments", "plugins", "sdk")


def copy_tree(target: Path) -> Path:
    for name in (*FOLDERS, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)
    return target


def build(tree: Path) -> Path:
    shutil.rmtree(tree / "dist", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tree)],
        check=True,
        capture_output=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
    )
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_built_twice_has_the_same_hash(tmp_path: Path) -> None:
    first, second = (
        hashlib.sha256(build(copy_tree(tmp_path / name)).read_bytes()).hexdigest() for name in ("one", "two")
    )
    assert first == second


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    shipped = {name for name in zipfile.ZipFile(build(tree)).namelist() if name.startswith("stackloom/")}
    homes = {folder: "stackloom" if folder == "sdk" else f"stackloom/{folder}" for folder in FOLDERS}
    expected = {
        f"{homes[folder]}/{path.relative_to(tree / folder).as_posix()}"
        for folder in FOLDERS
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }
    assert shipped == expected


@pytest.mark.slow
def test_a_new_technique_and_a_new_op_edit_no_existing_file(tmp_path: Path, stackloom) -> None:
    tree = copy_tree(tmp_path / "tree")
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    plugin = tree / "plugins" / "optimizer" / "brand_new"
    shutil.copytree(tree / "plugins" / "optimizer" / "adamw", plugin)
    manifest = plugin / "plugin.toml"
    manifest.write_text(manifest.read_text().replace("optimizer.adamw", "optimizer.brand-new"))
    shutil.copytree(tree / "kernels" / "int4_pack", tree / "kernels" / "brand_new_op")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(build(tree))],
        check=True,
    )
    listed = stackloom("list", "--json", site=site)
    assert "optimizer.brand-new" in listed.stdout
    assert (site / "stackloom" / "kernels" / "brand_new_op" / "triton.py").is_file()
    assert {path: path.read_bytes() for path in before} == before


def test_the_base_install_asks_for_nothing_heavy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {
        name
        for name in ("torch", "triton", "ray", "transformers")
        if any(line.startswith(name) for line in project["dependencies"])
    } == set()
    assert set(project["optional-dependencies"]) == {"train", "ray", "serve", "envs", "docs", "browser", "dev", "all"}


def test_every_dependency_of_the_tests_is_pinned() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = project["optional-dependencies"]
    wanted = {
        canonicalize_name(Requirement(line).name)
        for line in [*project["dependencies"], *extras["train"], *extras["dev"], *extras["docs"]]
    }
    assert wanted <= pinned
