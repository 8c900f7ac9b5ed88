"""The store creates, migrates, refuses what is not its own, works from memory where it must, and repairs damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from stackloom.core.errors import ConfigError
from stackloom.registry import StorageError, open_registry
from stackloom.registry.schema import metadata
from stackloom.registry.storage import REVISIONS, migrate, open_store


@pytest.fixture
def acme(site, manifest):
    site.wheel("acme", {"mona": manifest("optimizer.mona"), "muon": manifest("optimizer.muon")})
    return site.path


def upgraded(url: str) -> None:
    """Make a database the slow way: every revision, one after the other."""
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()


def test_the_revisions_lead_to_exactly_the_tables_of_the_code(store_url, home):
    home.mkdir()
    upgraded(store_url)
    engine = create_engine(store_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == REVISIONS[-1]
    engine.dispose()


def test_the_revisions_on_disk_are_those_the_code_compares_with():
    import stackloom.registry

    scripts = ScriptDirectory(str(Path(stackloom.registry.__path__[0]) / "migrations"))
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == REVISIONS


def test_an_older_database_is_migrated_and_works(store_url, home, acme, evidence_row):
    home.mkdir()
    engine = create_engine(store_url)
    with engine.begin() as connection:  # before the first revision: Alembic's table, empty
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    engine.dispose()
    with open_registry(store_url, search_path=acme) as registry:
        registry.evidence.append(evidence_row())
        assert registry.ids() == ["optimizer.mona", "optimizer.muon"]
        assert len(registry.evidence.rows()) == 1


def test_a_database_of_a_newer_stackloom_is_refused_untouched(store_url, acme):
    open_registry(store_url, search_path=acme).close()
    engine = create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="newer stackloom"):
        open_registry(store_url, search_path=acme)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM plugins")).scalar() == 2
    engine.dispose()


def test_a_foreign_database_is_refused_untouched(home, acme):
    home.mkdir()
    with sqlite3.connect(home / "registry.db") as foreign:
        foreign.execute("CREATE TABLE photos (id)")
    foreign.close()
    with pytest.raises(StorageError, match="something else"):
        open_registry(search_path=acme)
    with sqlite3.connect(home / "registry.db") as foreign:
        assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]
    foreign.close()


def test_the_file_is_in_wal_mode_below_the_home(home, acme):
    open_registry(search_path=acme).close()
    with sqlite3.connect(home / "registry.db") as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()


def test_the_home_argument_wins_over_the_variable_and_the_url_over_both(home, tmp_path, monkeypatch, acme):
    open_registry(home=tmp_path / "argument", search_path=acme).close()
    assert (tmp_path / "argument/registry.db").exists()
    monkeypatch.setenv("STACKLOOM_REGISTRY", f"sqlite:///{tmp_path}/variable.db")
    open_registry(search_path=acme).close()
    assert (tmp_path / "variable.db").exists()
    open_registry(f"sqlite:///{tmp_path}/url.db", search_path=acme).close()
    assert (tmp_path / "url.db").exists()
    assert not home.exists()


@pytest.mark.parametrize("url", ["mysql://host/db", "registry.db", "postgresql"])
def test_a_url_of_another_kind_is_refused_with_what_to_write(url):
    with pytest.raises(ConfigError, match="sqlite:///"):
        open_store(url)


def test_a_server_that_is_not_there_is_a_typed_error_without_the_password():
    pytest.importorskip("psycopg", reason="needs psycopg[binary]")
    with pytest.raises(StorageError) as caught:
        open_store("postgresql+psycopg://user:geheim@127.0.0.1:1/db")
    assert "geheim" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_memory_keeps_what_it_is_told_for_as_long_as_it_is_open(acme, evidence_row, home):
    with open_registry("sqlite://", search_path=acme) as registry:
        registry.evidence.append(evidence_row())
        assert len(registry.evidence.rows()) == 1
        assert registry.notices == []
    assert not home.exists()


def read_only_home(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.parametrize("used_before", [False, True])
def test_a_read_only_home_reads_from_memory_and_says_so_once(
    open_folder, unprivileged, new_site, manifest, evidence_row, used_before
):
    site = new_site(open_folder / "site")
    home = open_folder / "home"
    site.wheel("acme", {"mona": manifest("optimizer.mona")})
    if used_before:
        with open_registry(home=home, search_path=site.path) as registry:
            registry.evidence.append(evidence_row(claim="kept"))
            run = registry.ledger.begin("kept", {}, "", Path())
        site.wheel("more", {"muon": manifest("optimizer.muon")})  # so that the index is out of date
    home.mkdir(exist_ok=True)
    read_only_home(home)
    with unprivileged(), open_registry(home=home, search_path=site.path) as registry:
        assert registry.ids() == (["optimizer.mona", "optimizer.muon"] if used_before else ["optimizer.mona"])
        assert registry.search("mona").total == 1
        registry.refresh()
        assert len(registry.notices) == 1
        assert str(home) in registry.notices[0]
        for write in (
            lambda: registry.evidence.append(evidence_row(claim="new")),
            lambda: registry.ledger.begin("new", {}, "", Path()),
        ):
            with pytest.raises(StorageError, match="STACKLOOM_HOME") as caught:
                write()
            assert str(home) in str(caught.value)
        assert [row.claim for row in registry.evidence.rows()] == (["kept"] if used_before else [])
        assert [each.id for each in registry.ledger.runs()] == ([run] if used_before else [])
        assert len(registry.notices) == 1


def filled(home: Path, search_path: list[str], evidence_row, runs: int = 300) -> list[str]:
    with open_registry(home=home, search_path=search_path) as registry:
        registry.evidence.append(evidence_row(claim="kept"))
        return [registry.ledger.begin(f"run {number}", {"filler": "x" * 400}, "", Path()) for number in range(runs)]


def garble(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * length)


def test_a_file_that_is_no_database_is_set_aside_and_evidence_comes_back_from_its_files(home, acme, evidence_row):
    filled(home, acme, evidence_row, runs=3)
    garble(home / "registry.db", 0, 4096)
    damaged = (home / "registry.db").read_bytes()
    with open_registry(search_path=acme) as registry:
        assert registry.ids() == ["optimizer.mona", "optimizer.muon"]
        assert [row.claim for row in registry.evidence.rows()] == ["kept"]
        assert registry.ledger.runs() == []
        (notice,) = registry.notices
    (aside,) = home.glob("registry.db.corrupt-*Z")
    assert aside.name in notice
    assert "runs 0 (others unreadable" in notice
    assert aside.read_bytes() == damaged
    with open_registry(search_path=acme) as registry:
        assert registry.notices == []  # told once
        assert len(registry.evidence.rows()) == 1


def page_of(table: str, path: Path) -> tuple[int, int]:
    """The first byte of the middle leaf of a table, and the page size."""
    with sqlite3.connect(path) as raw:
        (size,) = raw.execute("PRAGMA page_size").fetchone()
        pages = [
            page
            for (page,) in raw.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno", (table,)
            )
        ]
    raw.close()
    assert len(pages) > 4, "the table is too small for the test to mean anything"
    return (pages[len(pages) // 2] - 1) * size, size


def has_dbstat() -> bool:
    try:
        sqlite3.connect(":memory:").execute("SELECT * FROM dbstat")
    except sqlite3.OperationalError:
        return False
    return True


@pytest.mark.skipif(not has_dbstat(), reason="this SQLite was built without dbstat, which finds the page to damage")
def test_a_damaged_page_of_the_ledger_loses_its_own_rows_and_says_so(home, acme, evidence_row):
    runs = filled(home, acme, evidence_row)
    garble(home / "registry.db", *page_of("runs", home / "registry.db"))
    with open_registry(search_path=acme) as registry:
        found = {run.id for run in registry.ledger.runs()}  # meets the damage
        assert [row.claim for row in registry.evidence.rows()] == ["kept"]
        assert registry.ids() == ["optimizer.mona", "optimizer.muon"]
        (notice,) = registry.notices
        registry.ledger.begin("goes on", {}, "", Path())
    assert found < set(runs)
    assert len(runs) - 30 < len(found) < len(runs)  # one page of some seven rows
    assert f"runs {len(found)} (others unreadable" in notice


def test_a_repair_that_was_killed_halfway_is_finished_by_the_next_process(home, acme, evidence_row):
    runs = filled(home, acme, evidence_row, runs=3)
    (home / "registry.db").rename(home / "registry.db.corrupt-20260101T000000000000Z")  # set aside, then kill -9
    with open_registry(search_path=acme) as registry:
        assert {run.id for run in registry.ledger.runs()} == set(runs)
        assert [row.claim for row in registry.evidence.rows()] == ["kept"]
        assert "runs 3, " in registry.notices[0]


def test_a_database_that_was_deleted_takes_its_evidence_from_the_files(home, acme, evidence_row):
    filled(home, acme, evidence_row, runs=3)
    (home / "registry.db").unlink()
    with open_registry(search_path=acme) as registry:
        assert [row.claim for row in registry.evidence.rows()] == ["kept"]
        assert registry.ledger.runs() == []


def test_evidence_that_was_changed_in_the_database_does_not_come_back(home, acme, evidence_row):
    filled(home, acme, evidence_row, runs=1)
    for file in (home / "evidence").iterdir():
        file.unlink()
    with sqlite3.connect(home / "registry.db") as raw:
        raw.execute("UPDATE evidence SET content = replace(content, 'reproduced', 'direction')")
    raw.close()
    (home / "registry.db").rename(home / "registry.db.corrupt-20260101T000000000000Z")
    with open_registry(search_path=acme) as registry:
        assert registry.evidence.rows() == []
        assert "evidence 0 (1 damaged" in registry.notices[0]


def test_processes_that_find_the_damage_at_once_repair_it_once(home, acme, evidence_row):
    filled(home, acme, evidence_row, runs=3)
    garble(home / "registry.db", 0, 4096)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=opened_at_once, args=(barrier, None, acme, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [ids for _, ids, _ in found] == [["optimizer.mona", "optimizer.muon"]] * 4
    assert sum(len(notices) for _, _, notices in found) == 1
    assert len(list(home.glob("registry.db.corrupt-*Z"))) == 1


@pytest.mark.skipif(not has_dbstat(), reason="this SQLite was built without dbstat, which finds the page to damage")
def test_silent_damage_is_found_by_the_check(home, acme, evidence_row):
    filled(home, acme, evidence_row)
    garble(home / "registry.db", *page_of("runs", home / "registry.db"))
    with open_registry(search_path=acme) as registry:
        assert registry.notices == []  # nothing was read from that page yet
        assert not registry.check()
        assert len(registry.notices) == 1
        assert registry.check()


def test_a_damaged_file_of_evidence_is_named_and_hides_no_other(home, acme, evidence_row):
    filled(home, acme, evidence_row, runs=1)
    with open_registry(search_path=acme) as registry:
        digest = registry.evidence.append(evidence_row(claim="tampered"))
    file = home / "evidence" / f"{digest}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"verdict": "not_reproduced"}))
    garble(home / "registry.db", 0, 100)
    with open_registry(search_path=acme) as registry:
        assert [row.claim for row in registry.evidence.rows()] == ["kept"]
        assert digest in registry.notices[0]


def test_a_writer_never_writes_into_a_file_that_another_process_set_aside(home, acme, evidence_row):
    with open_registry(search_path=acme) as first:
        (home / "registry.db").rename(home / "aside.db")
        for leftover in home.glob("registry.db-*"):
            leftover.unlink()
        with open_registry(search_path=acme) as second:
            run = first.ledger.begin("mine", {}, "", Path())
            assert [each.id for each in second.ledger.runs()] == [run]
        assert first.ids() == ["optimizer.mona", "optimizer.muon"]


def opened_at_once(barrier, url, search_path, results) -> None:
    barrier.wait()
    with open_registry(url, search_path=search_path) as registry:
        results.put((os.getpid(), registry.ids(), registry.notices))


def test_processes_that_find_no_registry_at_once_make_one_together(store_url, acme):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=opened_at_once, args=(barrier, store_url, acme, results)) for _ in range(6)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60)[1:] for _ in processes]
    for process in processes:
        process.join()
    assert found == [(["optimizer.mona", "optimizer.muon"], [])] * 6
    engine = create_engine(store_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM snapshots")).scalar() == 1
    engine.dispose()


def test_a_writer_that_reads_first_is_not_overtaken_by_another(home):
    first, second, reading, order = open_store(), open_store(), threading.Event(), []

    def read_then_write(connection) -> None:
        connection.execute(text("SELECT count(*) FROM snapshots")).scalar()
        reading.set()
        time.sleep(0.2)
        connection.execute(text("INSERT INTO snapshots (fingerprint, created) VALUES ('first', '')"))
        order.append("first")

    def write(connection) -> None:
        connection.execute(text("INSERT INTO snapshots (fingerprint, created) VALUES ('second', '')"))
        order.append("second")

    def overtake() -> None:
        reading.wait(10)
        second.write(write)

    thread = threading.Thread(target=overtake)
    thread.start()
    first.write(read_then_write)  # "database is locked" if its transaction had begun as a reader's
    thread.join()
    assert order == ["first", "second"]
    first.close()
    second.close()


def test_threads_share_a_registry(home, acme):
    from concurrent.futures import ThreadPoolExecutor

    with open_registry(search_path=acme) as registry:
        run = registry.ledger.begin("x", {}, "", Path())
        registry.ledger.begin_stage(run, 0, "train", "key")

        def work(step: int) -> int:
            registry.ledger.record_metrics(run, 0, step, {"loss": 0.5})
            return len(registry.rows()) + len(registry.ledger.metrics(run, "loss"))

        with ThreadPoolExecutor(8) as pool:
            assert all(list(pool.map(work, range(100))))
        assert [metric.step for metric in registry.ledger.metrics(run)] == list(range(100))
