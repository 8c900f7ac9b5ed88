"""The registry site: evidence before words, no plugin code, a third party's wheel with a page of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from stackloom.core.errors import ConfigError
from stackloom.core.rows import EvidenceRow
from stackloom.registry import open_registry
from stackloom.scaffold import scaffold
from stackloom.site import Contents, pages, serve

CLAIM = """
[[claims]]
name = "faster"
statement = "it is faster"
where = "Table 1"
metric = "speed-up"
unit = "x"
paper = 1.5
better = "higher"
"""


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third party's wheel, installed in a folder of its own; every module of it fails when it is imported."""
    project = scaffold("optimizer", "my-sgd", tmp_path_factory.mktemp("new") / "project")
    for source in (project / "src").rglob("*.py"):
        source.write_text("raise RuntimeError('plugin code ran')\n")
    manifest = next((project / "src").rglob("plugin.toml"))
    manifest.write_text(manifest.read_text() + CLAIM)
    built = project / "dist"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(project)]
    subprocess.run(build, check=True, capture_output=True)
    target = tmp_path_factory.mktemp("site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*install, *map(str, built.glob("*.whl"))], check=True)
    return target


def measured(**changes: object) -> EvidenceRow:
    row = {
        "plugin": "optimizer.my-sgd",
        "claim": "faster",
        "scale": "cpu",
        "verdict": "not_reproduced",
        "paper": 1.5,
        "ours": 1.01,
        "unit": "x",
        "interval": (0.99, 1.03),
        "seeds": (0,),
        "seconds": 1.0,
        "device": "this CPU",
        "versions": {},
        "commit": "",
        "date": "2026-11-27T00:00:00+00:00",
        "command": "stackloom repro optimizer.my-sgd",
    }
    return EvidenceRow.model_validate(row | changes)


def made(site_packages: Path, home: Path, *rows: EvidenceRow) -> dict[str, str]:
    with open_registry(home=home, search_path=[str(site_packages)]) as registry:
        for row in rows:
            registry.evidence.append(row)
        return dict(pages(Contents(registry, registry.ids())))


def test_a_null_result_is_said_on_the_page_of_the_plugin_before_anything_that_it_declares(
    site_packages: Path, tmp_path: Path
) -> None:
    page = made(site_packages, tmp_path, measured())["catalogue/optimizer.my-sgd.md"]
    assert '<span class="badge measured not_reproduced">not reproduced</span>' in page
    assert "| 1.5 x | 1.01 x | 0.99 to 1.03 |" in page
    assert "`stackloom repro optimizer.my-sgd` | this CPU | 2026-11-27 |" in page
    assert page.index("not reproduced") < page.index("## What it declares")


def test_a_claim_that_nobody_measured_says_so_and_names_the_command(site_packages: Path, tmp_path: Path) -> None:
    found = made(site_packages, tmp_path)
    page = found["catalogue/optimizer.my-sgd.md"]
    assert '<span class="badge none">no evidence</span>' in page
    assert "`stackloom repro optimizer.my-sgd --claim faster --scale cpu`" in page
    assert "| no evidence | - |" in found["catalogue/index.md"]


def test_evidence_of_other_files_is_stale_and_counts_nowhere(site_packages: Path, tmp_path: Path) -> None:
    found = made(site_packages, tmp_path, measured(versions={"optimizer.my-sgd": "0" * 64}))
    page = found["catalogue/optimizer.my-sgd.md"]
    assert 'class="badge measured not_reproduced stale" title="the plugin&#x27;s files have changed since"' in page
    assert "not reproduced, stale" in page
    assert "| stale | 2026-11-27 |" in found["catalogue/index.md"]
    assert "badge measured" not in found["explore/matrix.md"]


def test_the_newest_row_of_a_claim_speaks(site_packages: Path, tmp_path: Path) -> None:
    later = measured(verdict="reproduced", ours=1.6, date="2026-11-28T00:00:00+00:00")
    found = made(site_packages, tmp_path, measured(), later)
    assert "not reproduced" not in found["catalogue/optimizer.my-sgd.md"]
    assert "| all reproduced | 2026-11-28 |" in found["catalogue/index.md"]


def test_a_third_partys_wheel_has_its_page_beside_ours_and_its_code_does_not_run(
    stackloom, site_packages: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    (evidence / "mine.json").write_text(json.dumps([measured().model_dump(mode="json")]))
    out = tmp_path / "site"
    done = stackloom("site", "build", "--out", str(out), "--evidence", str(evidence), site=site_packages)
    assert done.returncode == 0, done.stderr
    page = (out / "catalogue" / "optimizer.my-sgd.html").read_text()
    assert '<span class="badge measured not_reproduced">not reproduced</span>' in page
    assert "plugin code ran" not in page + done.stderr
    assert "without importing the plugin" in page
    assert (out / "catalogue" / "optimizer.mona.html").is_file()
    assert "optimizer.my-sgd" in (out / "slots" / "optimizer.html").read_text()
    again = stackloom("site", "build", "--out", str(out), site=site_packages)
    assert again.returncode == 0, again.stderr
    server = serve(out, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/catalogue/index.html") as answer:
        assert b"optimizer.my-sgd" in answer.read()
    server.shutdown()
    server.server_close()


def test_a_folder_that_holds_something_else_is_not_overwritten(stackloom, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    (tmp_path / "thesis.txt").write_text("precious")
    done = stackloom("site", "build", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "holds no site" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_folder_without_a_site_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stackloom site build"):
        serve(tmp_path, 0)
