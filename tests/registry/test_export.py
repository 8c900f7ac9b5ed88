"""The export is one JSON file with everything a site needs, and the same bytes for the same content."""

from __future__ import annotations

import json

import pytest

from stackloom.registry import open_registry


@pytest.fixture
def install(manifest, evidence_row):
    def into(site) -> None:
        claim = '[[claims]]\nname = "faster"\nstatement = "It is"\nwhere = "table 1"\nmetric = "hours"\n'
        site.wheel(
            "acme", {"optimizer/mona": manifest("optimizer.mona", claim), "optimizer/bad": "id ="}, version="1.2"
        )

    return into


def test_everything_is_in_the_file(site, install, tmp_path, evidence_row):
    install(site)
    with open_registry(search_path=site.path) as registry:
        registry.evidence.append(evidence_row())
        document = json.loads(registry.export(tmp_path / "out/registry.json").read_text())
    assert document["format"] == "stackloom-registry/1"
    (plugin,) = document["plugins"]
    assert (plugin["id"], plugin["distribution"], plugin["version"]) == ("optimizer.mona", "acme", "1.2")
    assert plugin["manifest"]["claims"][0]["name"] == "faster"
    assert document["slots"] == [{"name": "optimizer", "api": "optimizer/1", "plugins": 1}]
    assert document["claims"][0]["plugin"] == "optimizer.mona"
    assert document["evidence"][0]["claim"] == "faster"
    assert document["problems"][0]["source"] == "optimizer/bad/plugin.toml"


def test_equal_content_gives_equal_bytes_wherever_it_lies(new_site, install, tmp_path, evidence_row, manifest):
    contents = []
    for name in ("here", "there"):
        site = new_site(tmp_path / name)
        install(site)
        site.wheel("evil", {"mona": manifest("optimizer.other")})
        site.wheel("twin", {"mona": manifest("optimizer.other")})
        with open_registry(home=tmp_path / f"{name}-home", search_path=site.path) as registry:
            for claim in ("a", "b") if name == "here" else ("b", "a"):
                registry.evidence.append(evidence_row(claim=claim))
            contents.append(registry.export(tmp_path / f"{name}.json").read_bytes())
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]


def test_an_export_replaces_the_last_one_whole(site, install, tmp_path):
    install(site)
    path = tmp_path / "registry.json"
    path.write_text("old" * 100_000)
    with open_registry(search_path=site.path) as registry:
        registry.export(path)
    assert json.loads(path.read_text())["plugins"]
    assert not list(tmp_path.glob(".*"))
