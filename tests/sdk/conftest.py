"""Runs the command line the way a user does: as a process, in a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stackloom(tmp_path: Path) -> CommandLine:
    """`stackloom("list", "--json")` in the repository's root; `site` is put on the import path, `home` is fresh."""
    (tmp_path / "home").mkdir()

    def run(
        *arguments: str, site: Path | None = None, home: Path | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "STACKLOOM_REGISTRY"}
        }
        environment |= {"STACKLOOM_HOME": str(home or tmp_path / "home"), "COLUMNS": "140"}
        if site:
            environment["PYTHONPATH"] = str(site)
        command = [sys.executable, "-m", "stackloom", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=cwd, timeout=900
        )

    return run


MANIFEST = """
id = "{plugin}"
slot_api = "{slot}/1"
config = "config:Config"
component = "component:Component"
summary = "for a test"
licence = "Apache-2.0"
determinism = "exact"
{more}
[can]
dtypes = ["float32", "bfloat16"]
devices = ["cpu", "cuda"]
"""
CONFIG = """
from stackloom.core.config import ComponentConfig, option
class Config(ComponentConfig):
    lr: float = option(0.1, "rate", gt=0)
"""


def lay_out(
    site: Path, distribution: str, plugin: str, *, config: str, init: str = "", manifest: str = "", version: str = "1.0"
) -> Path:
    """Write an installed wheel with one plugin below `site`; returns the package's folder."""
    package = distribution.replace("-", "_")
    slot, _, _ = plugin.partition(".")
    folder = site / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(init)
    (folder / "config.py").write_text(config)
    (folder / "component.py").write_text("class Component: pass\n")
    (folder / "plugin.toml").write_text(MANIFEST.format(plugin=plugin, slot=slot, more=manifest))
    info = site / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[stackloom.plugins]\n{package} = {package}\n")
    (info / "RECORD").write_text(
        "".join(f"{package}/{name},,\n" for name in ("__init__.py", "config.py", "component.py", "plugin.toml"))
    )
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """`site("acme", "optimizer.acme", config=...)` installs a plugin; returns the folder to put on the path."""

    def add(distribution: str, plugin: str, config: str = CONFIG, **more: str) -> Path:
        folder = tmp_path / "site"
        lay_out(folder, distribution, plugin, config=config, **more)
        return folder

    return add
