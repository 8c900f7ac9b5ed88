"""Evidence is appended and never changed; the newest row speaks; committed rows are imported once."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from stackloom.core.errors import EngineError
from stackloom.registry import open_registry
from stackloom.registry.evidence import digest_of


@pytest.fixture
def registry(site, manifest, store_url):
    site.wheel("acme", {"mona": manifest("optimizer.mona")}, version="1.2")
    with open_registry(store_url, search_path=site.path) as registry:
        yield registry


def test_rows_come_back_equal_the_newest_first(registry, evidence_row):
    dates = ["2026-01-01T00:00:00Z", "2026-01-01T03:00:00+02:00", "2026-01-01T00:30:00"]  # in UTC: 00:00, 01:00, 00:30
    rows = [evidence_row(date=date) for date in dates]
    for row in rows:
        registry.evidence.append(row)
    assert registry.evidence.rows() == [rows[1], rows[2], rows[0]]
    assert registry.evidence.rows(limit=1, offset=1) == [rows[2]]


def test_rows_are_found_by_plugin_and_claim(registry, evidence_row):
    for plugin, claim in (("optimizer.mona", "faster"), ("optimizer.mona", "smaller"), ("optimizer.muon", "faster")):
        registry.evidence.append(evidence_row(plugin=plugin, claim=claim))
    assert [row.claim for row in registry.evidence.rows("optimizer.mona", "smaller")] == ["smaller"]
    assert len(registry.evidence.rows("optimizer.mona")) == 2
    assert registry.evidence.plugins() == {"optimizer.mona", "optimizer.muon"}


def test_the_same_row_twice_is_one_row(registry, evidence_row):
    assert registry.evidence.append(evidence_row()) == registry.evidence.append(evidence_row())
    assert len(registry.evidence.rows()) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"ours": math.nan},
        {"seconds": math.inf},
        {"interval": (0.0, math.nan)},
        {"date": "yesterday"},
        {"baseline": math.nan},
        {"details": {"curve": [1.0, math.nan]}},
        {"details": {"it": object()}},
        {"device": "a\0b"},
        {"device": "\ud800"},
    ],
)
def test_a_row_that_would_not_read_back_equal_is_refused_whole(registry, evidence_row, values):
    with pytest.raises(EngineError):
        registry.evidence.append(evidence_row(**values))
    assert registry.evidence.rows() == []


def test_a_field_that_rows_got_later_changes_no_older_digest(evidence_row):
    names = ("baseline", "command", "error", "details")
    old = evidence_row().model_dump(mode="json", exclude=set(names))
    content = json.dumps(old, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest_of(evidence_row()) == hashlib.sha256(content.encode()).hexdigest()
    assert digest_of(evidence_row(command="stackloom repro optimizer.mona")) != digest_of(evidence_row())


def test_a_plugin_name_cannot_lead_a_file_out_of_the_folder(site, home, evidence_row):
    with open_registry(search_path=site.path) as registry:
        digest = registry.evidence.append(evidence_row(plugin="../../evil", claim="/etc/passwd"))
    assert [path.name for path in home.rglob("*.json")] == [f"{digest}.json"]
    assert (home / "evidence" / f"{digest}.json").exists()


def test_committed_files_are_imported_once_and_bad_ones_named(registry, evidence_row, tmp_path):
    folder = tmp_path / "docs/evidence/optimizer"
    folder.mkdir(parents=True)
    (folder / "one.json").write_text(evidence_row(claim="one").model_dump_json())
    (folder / "list.json").write_text(
        json.dumps([evidence_row(claim=claim).model_dump(mode="json") for claim in ("two", "three")])
    )
    (folder / "broken.json").write_text("{")
    (folder / "foreign.json").write_text('{"name": "a benchmark"}')
    (folder / "deep.json").write_text("[" * 100_000)
    imported = registry.evidence.import_folder(tmp_path / "docs")
    assert (imported.added, imported.known, len(imported.problems)) == (3, 0, 3)
    assert {line.partition(".json")[0].rpartition("/")[2] for line in imported.problems} == {
        "broken",
        "foreign",
        "deep",
    }
    again = registry.evidence.import_folder(tmp_path / "docs")
    assert (again.added, again.known) == (0, 3)
    assert {row.claim for row in registry.evidence.rows()} == {"one", "two", "three"}
    assert registry.evidence.import_folder(tmp_path / "absent").added == 0


def test_evidence_of_another_version_or_of_changed_files_is_stale(registry, evidence_row):
    record = registry.get("optimizer.mona")
    registry.evidence.append(evidence_row(claim="fresh", versions={"acme": "1.2", "optimizer.mona": record.digest}))
    registry.evidence.append(evidence_row(claim="silent", versions={}))
    registry.evidence.append(evidence_row(claim="older", versions={"acme": "1.1"}))
    registry.evidence.append(evidence_row(claim="edited", versions={"acme": "1.2", "optimizer.mona": "0" * 64}))
    assert {stale.row.claim: stale.reason for stale in registry.evidence.stale(record)} == {
        "older": "measured with acme 1.1, installed is 1.2",
        "edited": "the plugin's files have changed since",
    }
