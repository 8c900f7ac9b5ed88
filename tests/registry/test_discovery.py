"""Discovery finds what is installed, runs none of it, and one bad plugin hides no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackloom.registry.discovery import discover, locate, unmet

HOSTILE = "import pathlib, sys\npathlib.Path({marker!r}).write_text('ran')\nsys.exit(3)\n"


def found(discovery):
    return [record.id for record in discovery.records]


def test_a_wheel_is_found_through_its_record(site, manifest):
    root = site.wheel("acme-plugins", {"optimizer/fast": manifest("optimizer.fast")}, version="2.1")
    discovery = discover(site.path)
    assert discovery.problems == ()
    (record,) = discovery.records
    assert (record.id, record.distribution, record.version) == ("optimizer.fast", "acme-plugins", "2.1")
    assert record.package == "acme_plugins.optimizer.fast"
    assert record.folder == root / "optimizer" / "fast"


def test_several_plugins_in_one_folder_and_in_a_dotted_package(site, manifest):
    site.wheel(
        "acme", {"": manifest("optimizer.top"), "inner": manifest("optimizer.inner")}, package="acme.deep.plugins"
    )
    more = site.folder / "acme/deep/plugins/second.plugin.toml"
    more.write_text(manifest("optimizer.second"))
    record = site.folder / "acme-1.0.dist-info/RECORD"
    record.write_text(record.read_text() + "acme/deep/plugins/second.plugin.toml,,\n")
    discovery = discover(site.path)
    assert {record.id: record.package for record in discovery.records} == {
        "optimizer.inner": "acme.deep.plugins.inner",
        "optimizer.second": "acme.deep.plugins",
        "optimizer.top": "acme.deep.plugins",
    }


def test_a_folder_may_be_named_otherwise_than_its_id(site, manifest):
    site.wheel("acme", {"whatever": manifest("optimizer.fast")})
    assert discover(site.path).records[0].package == "acme.whatever"


def test_files_of_another_distribution_in_the_same_package_are_not_ours(site, manifest):
    site.wheel("acme-one", {"one": manifest("optimizer.one")}, package="acme.plugins")
    site.wheel("acme-two", {"two": manifest("optimizer.two")}, package="acme.plugins")
    assert {record.id: record.distribution for record in discover(site.path).records} == {
        "optimizer.one": "acme-one",
        "optimizer.two": "acme-two",
    }


def test_no_code_of_a_hostile_package_runs(site, manifest, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    init = HOSTILE.format(marker=str(marker))
    root = site.wheel("hostile", {"slot/t": manifest("optimizer.hostile")}, package="hostile.plugins", init=init)
    for name in ("config", "it", "claims"):
        (root / "slot/t" / f"{name}.py").write_text(init)
    other = site.folder / "loose"  # found by walking, not through RECORD
    (other / "plugins").mkdir(parents=True)
    for folder in (other, other / "plugins"):
        (folder / "__init__.py").write_text(init)
    (other / "plugins/plugin.toml").write_text(manifest("optimizer.loose"))
    site.metadata("loose", package="loose.plugins")
    monkeypatch.syspath_prepend(str(site.folder))
    from stackloom.registry import open_registry

    with open_registry() as registry:
        assert {"optimizer.hostile", "optimizer.loose"} <= set(registry.ids())
        assert {"optimizer.hostile", "optimizer.loose"} <= {row.id for row in registry.rows(slot="optimizer")}
        assert [row.id for row in registry.search("hostile").rows] == ["optimizer.hostile"]
        assert registry.get("optimizer.hostile").digest
        registry.export(tmp_path / "export.json")
        assert unmet(registry.get("optimizer.loose").manifest) == []
        assert [each for each in registry.problems() if each.distribution in ("hostile", "loose")] == []
    assert not marker.exists()
    assert not {"hostile", "loose"} & set(sys.modules)
    with pytest.raises(SystemExit):
        __import__("hostile")  # the trap works
    assert marker.exists()


def test_a_bad_manifest_is_a_problem_with_every_error_and_hides_no_other(site, manifest):
    bad = manifest("optimizer.bad", 'lifecycle = "eternal"\nsumary = "typo"\n')
    site.wheel("acme", {"optimizer/bad": bad, "optimizer/good": manifest("optimizer.good")}, version="3.0")
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.good"]
    (problem,) = discovery.problems
    assert (problem.distribution, problem.version, problem.plugin) == ("acme", "3.0", "optimizer.bad")
    assert problem.source.endswith("optimizer/bad/plugin.toml")
    assert "lifecycle" in problem.message
    assert "sumary: unknown key; did you mean 'summary'?" in problem.message


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"id = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"a = " + b"9" * 5000, "not TOML"),
        (b"a = " + b"[" * 9000, "not TOML"),
        (b"# " + b"x" * 300_000, "at most"),
        (b"", "required, but missing"),
    ],
)
def test_a_file_that_is_no_manifest_is_a_problem_under_the_id_of_its_folder(site, manifest, content, why):
    site.wheel("acme", {"optimizer/bad_one": content, "optimizer/good": manifest("optimizer.good")})
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.good"]
    (problem,) = discovery.problems
    assert why in problem.message
    assert problem.plugin == "optimizer.bad-one"


def test_a_nul_character_is_refused_because_no_database_keeps_it(site, manifest):
    site.wheel("acme", {"x": manifest("optimizer.x", r'description = "a\u0000b"')})
    discovery = discover(site.path)
    assert found(discovery) == []
    assert "NUL" in discovery.problems[0].message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore")),
        st.text(max_size=20).map(lambda text: f'id = """{text}"""'.encode("utf-8", "ignore")),
    )
)
def test_no_content_makes_discovery_raise_or_hides_a_neighbour(tmp_path_factory, new_site, manifest, content):
    site = new_site(tmp_path_factory.mktemp("site"))
    site.wheel("acme", {"optimizer/bad": content, "optimizer/good": manifest("optimizer.good")})
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.good"]
    assert len(discovery.problems) == 1
    discovery.problems[0].message.encode()


def test_a_missing_package_is_named(site, manifest):
    site.metadata("ghost", package="ghost.plugins")
    site.wheel("acme", {"x": manifest("optimizer.x")})
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    assert discovery.problems[0].distribution == "ghost"
    assert "'ghost.plugins' is not in the distribution nor on the path" in discovery.problems[0].message


def test_a_manifest_that_record_lists_but_the_disk_lacks_is_named(site, manifest):
    root = site.wheel("acme", {"x": manifest("optimizer.x"), "y": manifest("optimizer.y")})
    (root / "x/plugin.toml").unlink()
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.y"]
    assert "No such file" in discovery.problems[0].message


@pytest.mark.parametrize("value", ["not a package", "a/b", "../../etc", ""])
def test_an_entry_point_that_names_no_package_is_a_problem(site, manifest, value):
    site.wheel("acme", {"x": manifest("optimizer.x")})
    info = site.metadata("odd")
    (info / "entry_points.txt").write_text(f"[stackloom.plugins]\nodd = {value}\n")
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    assert [problem.distribution for problem in discovery.problems] == ["odd"]


def test_an_unreadable_entry_point_file_is_a_problem(site, manifest):
    site.wheel("acme", {"x": manifest("optimizer.x")})
    (site.metadata("odd") / "entry_points.txt").write_bytes(b"[stackloom.plugins]\nodd = \xff\n")
    (site.metadata("odder") / "entry_points.txt").write_text("[stackloom.plugins]\nno equals sign\n")
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    assert sorted(problem.distribution for problem in discovery.problems) == ["odd", "odder"]


def test_damaged_metadata_falls_back_on_the_folder_name(site, manifest):
    site.wheel("acme", {"x": manifest("optimizer.x")}, version="4.2")
    (site.folder / "acme-4.2.dist-info/METADATA").write_bytes(b"\xff\xfe")
    assert [(record.distribution, record.version) for record in discover(site.path).records] == [("acme", "4.2")]


def test_two_distributions_that_claim_one_id_are_both_named_and_lose_only_that_id(site, manifest):
    site.wheel("acme", {"x": manifest("optimizer.x"), "mine": manifest("optimizer.mine")}, version="1.0")
    site.wheel("evil", {"x": manifest("optimizer.x")}, version="6.6")
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.mine"]
    assert {problem.plugin for problem in discovery.problems} == {"optimizer.x"}
    for problem in discovery.problems:
        assert "acme 1.0" in problem.message
        assert "evil 6.6" in problem.message


def test_the_first_of_two_installs_of_a_distribution_wins_as_at_import(site, new_site, manifest, tmp_path):
    other = new_site(tmp_path / "other")
    site.wheel("Acme.Plugins", {"x": manifest("optimizer.x")}, version="2.0", package="acme")
    other.wheel("acme-plugins", {"x": manifest("optimizer.x")}, version="1.0", package="acme")
    discovery = discover([*site.path, *other.path])
    assert [record.version for record in discovery.records] == ["2.0"]
    assert discovery.problems == ()


def test_what_an_interrupted_pip_leaves_is_ignored(site, manifest):
    site.wheel("acme", {"x": manifest("optimizer.x")})
    (site.folder / "acme-1.0.dist-info").rename(site.folder / "~cme-1.0.dist-info")
    assert discover(site.path).records == ()


@pytest.fixture
def tree(site, manifest):
    """A package without its files in RECORD, as an editable install on the path has it."""
    package = site.folder / "loose"
    (package / "optimizer/x").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "optimizer/x/plugin.toml").write_text(manifest("optimizer.x"))
    site.metadata("loose")
    return package


def test_a_package_on_the_path_is_walked(site, tree):
    (record,) = discover(site.path).records
    assert (record.package, record.folder) == ("loose.optimizer.x", tree / "optimizer/x")


def test_a_loop_of_symbolic_links_ends_and_is_named(site, tree):
    (tree / "optimizer/again").symlink_to(tree)
    (tree / "itself").symlink_to("itself")
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    assert any("leads back" in problem.message and problem.source.endswith("again") for problem in discovery.problems)
    assert len(discovery.problems) == 2


def test_a_linked_folder_outside_the_tree_is_followed(site, tree, tmp_path, manifest):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/plugin.toml").write_text(manifest("optimizer.linked"))
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    assert found(discover(site.path)) == ["optimizer.linked", "optimizer.x"]


def test_a_pipe_in_place_of_a_manifest_does_not_hang(site, tree):
    (tree / "pipe").mkdir()
    os.mkfifo(tree / "pipe/plugin.toml")
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    assert "not a regular file" in discovery.problems[0].message


def test_unreadable_files_and_folders_are_named(new_site, manifest, unprivileged, open_folder):
    site = new_site(open_folder / "site")
    package = site.folder / "loose"
    for name in ("x", "secret", "locked"):
        (package / "optimizer" / name).mkdir(parents=True)
        (package / "optimizer" / name / "plugin.toml").write_text(manifest(f"optimizer.{name}"))
    site.metadata("loose")
    (package / "optimizer/secret/plugin.toml").chmod(0)
    (package / "optimizer/locked").chmod(0)
    with unprivileged():
        discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    assert sorted(problem.plugin for problem in discovery.problems) == ["optimizer.locked", "optimizer.secret"]
    assert all("Permission denied" in problem.message for problem in discovery.problems)


def test_a_folder_name_that_is_not_utf8_is_a_problem_that_can_be_stored(site, tree, manifest):
    odd = os.fsencode(tree / "optimizer") + b"/bad\xff"
    os.mkdir(odd)
    Path(os.fsdecode(odd), "plugin.toml").write_text(manifest("optimizer.odd"))
    discovery = discover(site.path)
    assert found(discovery) == ["optimizer.x"]
    (problem,) = discovery.problems
    assert "not UTF-8" in problem.message
    problem.source.encode()


def test_hidden_and_cache_folders_are_not_plugins(site, tree, manifest):
    for name in (".git", "__pycache__"):
        (tree / name).mkdir()
        (tree / name / "plugin.toml").write_text(manifest("optimizer.hidden"))
    assert found(discover(site.path)) == ["optimizer.x"]


def test_the_fingerprint_moves_with_every_change_and_only_then(site, tree, manifest):
    site.wheel("acme", {"y": manifest("optimizer.y")})
    seen = [locate(site.path).fingerprint]

    def changed() -> bool:
        seen.append(locate(site.path).fingerprint)
        return seen[-1] not in seen[:-1]

    assert not changed()
    (tree / "README.md").write_text("not a manifest")
    assert not changed()
    (tree / "optimizer/x/plugin.toml").write_text(manifest("optimizer.x", 'keywords = ["edited"]'))
    assert changed()
    (tree / "optimizer/z").mkdir()
    (tree / "optimizer/z/plugin.toml").write_text(manifest("optimizer.z"))
    assert changed()
    (tree / "optimizer/x/plugin.toml").unlink()
    assert changed()
    os.utime(site.folder / "acme-1.0.dist-info/RECORD", ns=(1, time.time_ns() + 10**9))  # installed anew
    assert changed()
    (site.folder / "acme-1.0.dist-info").rename(site.folder / "acme-1.1.dist-info")
    (site.folder / "acme-1.1.dist-info/METADATA").write_text("Name: acme\nVersion: 1.1\n")
    assert changed()


def test_our_own_distribution_is_one_entry_among_the_others():
    import stackloom.plugins

    folder = Path(stackloom.plugins.__path__[0])
    ours = {record.folder for record in discover().records if record.distribution == "stackloom"}
    broken = {Path(problem.source).parent for problem in discover().problems if problem.distribution == "stackloom"}
    assert ours | broken == {path.parent for path in folder.rglob("plugin.toml")}


EDITABLE = """
import json
import sys
from stackloom.registry.discovery import discover
found = discover()
ours = [record for record in found.records if record.distribution.startswith("acme")]
print(json.dumps({"found": {record.id: [record.package, str(record.folder)] for record in ours},
                  "problems": [each.message for each in found.problems if each.distribution.startswith("acme")],
                  "imported": [name for name in sys.modules if name.startswith("acme")]}))
"""


def test_real_editable_installs_are_found_in_both_of_setuptools_ways_and_new_folders_at_once(tmp_path, manifest):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            text=True,
            capture_output=True,
        ).stdout.strip()
    )
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    layouts = {
        "acme-mapped": (
            "code",
            'package-dir = {"acme_mapped" = "code"}\npackages = ["acme_mapped", "acme_mapped.deep"]',
        ),
        "acme-path": ("src/acme_path", 'package-dir = {"" = "src"}\npackages = ["acme_path", "acme_path.deep"]'),
    }
    for name, (folder, layout) in layouts.items():
        package = name.replace("-", "_")
        project = tmp_path / name
        (project / folder / "deep/x").mkdir(parents=True)
        for init in (project / folder, project / folder / "deep"):
            (init / "__init__.py").write_text("raise RuntimeError('imported')")
        (project / folder / "deep/x/plugin.toml").write_text(manifest(f"optimizer.{name}"))
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "{name}"\nversion = "1"\n'
            f'[project.entry-points."stackloom.plugins"]\na = "{package}.deep"\n'
            f"[tool.setuptools]\n{layout}\n"
        )
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "--python",
                python,
                "install",
                "-q",
                "--no-deps",
                "--no-index",
                "--no-build-isolation",
                "-e",
                project,
            ],
            check=True,
            capture_output=True,
        )
    assert list(packages.glob("__editable___acme_mapped*finder.py")), (
        "setuptools made no finder; the test tests nothing"
    )
    new = tmp_path / "acme-mapped/code/deep/new"
    new.mkdir()
    (new / "plugin.toml").write_text(manifest("optimizer.new"))
    out = subprocess.run([python, "-c", EDITABLE], check=True, text=True, capture_output=True, cwd=tmp_path).stdout
    assert json.loads(out) == {
        "problems": [],
        "imported": [],
        "found": {
            "optimizer.acme-mapped": ["acme_mapped.deep.x", str(tmp_path / "acme-mapped/code/deep/x")],
            "optimizer.new": ["acme_mapped.deep.new", str(new)],
            "optimizer.acme-path": ["acme_path.deep.x", str(tmp_path / "acme-path/src/acme_path/deep/x")],
        },
    }


def needs(manifest, table):
    import tomllib

    from stackloom.core.manifest import parse_manifest

    return parse_manifest(tomllib.loads(manifest("optimizer.x", f"[needs]\n{table}")), "plugin.toml")


def test_met_needs_give_no_reason(manifest):
    assert unmet(needs(manifest, 'pydantic = ">=2"\nsqlalchemy = ""')) == []


def test_an_absent_need_names_the_extra_that_brings_it(manifest, site, monkeypatch):
    info = site.metadata("bundle", package="bundle")
    (info / "METADATA").write_text('Name: bundle\nVersion: 1\nRequires-Dist: Absent_Thing>=2; extra == "train"\n')
    monkeypatch.syspath_prepend(str(site.folder))
    assert unmet(needs(manifest, 'absent-thing = ">=2.11"'), extras_of="bundle") == [
        "needs absent-thing>=2.11, which is not installed\n  fix: pip install 'bundle[train]'"
    ]


def test_an_absent_need_outside_our_extras_is_installed_by_name(manifest):
    assert unmet(needs(manifest, '"absent-thing" = ">=1,<2"')) == [
        "needs absent-thing>=1,<2, which is not installed\n  fix: pip install 'absent-thing>=1,<2'"
    ]


def test_a_need_at_the_wrong_version_says_which_is_installed(manifest, site, monkeypatch):
    site.metadata("some-thing", version="1.5")
    monkeypatch.syspath_prepend(str(site.folder))
    assert unmet(needs(manifest, '"some-thing" = ">=2"')) == [
        "needs some-thing>=2, but 1.5 is installed\n  fix: pip install 'some-thing>=2'"
    ]


def test_a_need_without_a_name_or_with_an_odd_installed_version_is_a_reason_not_a_crash(manifest, site, monkeypatch):
    site.metadata("odd-thing", version="yesterday")
    monkeypatch.syspath_prepend(str(site.folder))
    assert len(unmet(needs(manifest, '"" = ">=1"\n"odd-thing" = ">=1"'))) == 2
