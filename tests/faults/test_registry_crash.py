"""Nothing that the registry acknowledged is lost: kill -9, a failing disk and a full one."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stackloom.core.rows import EvidenceRow
from stackloom.registry import Registry, StorageError, open_registry
from stackloom.registry.atomic import write_atomic
from stackloom.registry.evidence import read_folder

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("STACKLOOM_KILLS", "50"))


def row(claim: str) -> EvidenceRow:
    return EvidenceRow(
        plugin="optimizer.mona",
        claim=claim,
        scale="cpu",
        verdict="reproduced",
        paper=1.0,
        ours=1.0,
        unit="x",
        interval=None,
        seeds=(1,),
        seconds=1.0,
        device="cpu",
        versions={},
        commit="",
        date="2026-01-01T00:00:00Z",
    )


def registry_in(home: Path) -> Registry:
    return open_registry(home=home, search_path=[])


def in_child(work: Callable[[], None]) -> int:
    """Fork and run `work`; the child never returns."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def write_for_ever(home: Path, pipe: int, kill: int) -> None:
    with registry_in(home) as registry:
        ledger, number = registry.ledger, 0
        while True:
            run = ledger.begin(f"kill {kill}", {"number": number}, "", Path())
            os.write(pipe, f"run {run}\n".encode())
            ledger.begin_stage(run, 0, "train", "key")
            ledger.record_metrics(run, 0, number, {"loss": 0.5})
            os.write(pipe, f"metric {run}\n".encode())
            digest = registry.evidence.append(row(f"claim {kill} {number}"))
            os.write(pipe, f"evidence {digest}\n".encode())
            ledger.finish(run)
            os.write(pipe, f"finished {run}\n".encode())
            number += 1


def integrity(home: Path) -> str:
    raw = sqlite3.connect(home / "registry.db")
    try:
        return str(raw.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        raw.close()


def test_every_acknowledged_row_survives_kill_9_at_random_moments(tmp_path, capsys):
    home = tmp_path / "home"
    registry_in(home).close()
    chance = random.Random(7)
    acknowledged: dict[str, set[str]] = {"run": set(), "metric": set(), "evidence": set(), "finished": set()}
    for kill in range(KILLS):
        ours, theirs = os.pipe()
        pid = in_child(lambda kill=kill, pipe=theirs: write_for_ever(home, pipe, kill))
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            lines = [pipe.readline()]  # it is writing now
            time.sleep(chance.uniform(0, 0.06))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            lines += pipe.readlines()
        for line in lines:
            kind, _, name = line.strip().partition(" ")
            acknowledged[kind].add(name)
        assert integrity(home) == "ok"
    with registry_in(home) as registry:
        assert registry.notices == []
        runs = {run.id: run.status for run in registry.ledger.runs()}
        assert acknowledged["run"] <= set(runs)
        assert all(runs[run] == "finished" for run in acknowledged["finished"])
        assert all(registry.ledger.metrics(run) for run in acknowledged["metric"])
        kept = {row.model_dump_json() for row in registry.evidence.rows()}
    rows, damaged = read_folder(home / "evidence", named_by_digest=True)
    assert damaged == []
    assert acknowledged["evidence"] <= {path.stem for path in (home / "evidence").glob("*.json")}
    assert kept <= {row.model_dump_json() for row in rows}
    assert len(kept) >= len(acknowledged["evidence"])
    assert len(acknowledged["run"]) >= KILLS
    with capsys.disabled():
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in acknowledged.items())
        print(f"\nregistry: {KILLS} kills -9, acknowledged and found again: {counts}")


class Failing:
    """Replaces one function of os; the n-th call fails as a device would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, nth: int, code: int) -> None:
        self.real, self.nth, self.code, self.calls = getattr(os, name), nth, code, 0
        monkeypatch.setattr(os, name, self)

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.calls == self.nth:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*arguments, **named)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=["ENOSPC", "EIO", "EACCES"])
@pytest.mark.parametrize("function", ["open", "write", "fsync", "close", "replace", "mkdir"])
def test_a_failure_at_any_step_of_keeping_evidence_leaves_the_old_state(tmp_path, function, code):
    for first in (True, False):  # the first row makes the folder as well
        nth, hit = 0, True
        while hit:
            nth += 1
            home = tmp_path / f"{first}-{nth}"
            with registry_in(home) as registry:
                if not first:
                    registry.evidence.append(row("old"))
                before = sorted(path.name for path in (home / "evidence").glob("*"))
                with pytest.MonkeyPatch.context() as patch:
                    failing = Failing(patch, function, nth, code)
                    try:
                        registry.evidence.append(row("new"))
                    except StorageError as error:
                        assert os.strerror(code) in str(error)
                        assert str(home) in str(error)
                    hit = failing.calls >= nth
                claims = [each.claim for each in registry.evidence.rows()]
                if hit:
                    assert claims == ([] if first else ["old"])
                    assert sorted(path.name for path in (home / "evidence").glob("*")) == before
                    registry.evidence.append(row("new"))  # and it works again
                assert "new" in [each.claim for each in registry.evidence.rows()]
        reached = nth - 1
        assert reached >= 1 or (function == "mkdir" and not first), f"{function} was never called: nothing was tested"


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("function", ["open", "write", "fsync", "close", "replace"])
def test_an_atomic_write_that_fails_leaves_no_new_path_and_no_temporary_file(tmp_path, function, existed):
    path = tmp_path / "file"
    for nth in (1, 2):
        if existed:
            path.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, function, nth, errno.ENOSPC)
            if nth == 2 and function in ("write", "replace"):
                write_atomic(path, b"new")
                assert failing.calls == 1
                continue
            with pytest.raises(StorageError):
                write_atomic(path, b"new")
        assert [each.name for each in tmp_path.iterdir()] == (["file"] if existed else [])
        assert not existed or path.read_bytes() in (b"old", b"new")


def test_a_full_disk_refuses_the_next_row_and_keeps_the_others(tmp_path):
    """A real one: the kernel refuses to let any file grow."""
    home = tmp_path / "home"
    registry_in(home).close()
    ours, theirs = os.pipe()

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with registry_in(home) as registry:
            limit = max(path.stat().st_size for path in home.glob("registry.db*")) + 200_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            acknowledged: list[str] = []
            try:
                for _ in range(10_000):
                    acknowledged.append(registry.ledger.begin("filler", {"x": "y" * 5_000}, "", Path()))
            except StorageError as error:
                readable = {run.id for run in registry.ledger.runs()}
                os.write(theirs, json.dumps([len(acknowledged), set(acknowledged) <= readable, str(error)]).encode())

    pid = in_child(fill)
    os.close(theirs)
    os.waitpid(pid, 0)
    with os.fdopen(ours) as pipe:
        count, readable, message = json.loads(pipe.read())
    assert count > 10
    assert readable
    assert "STACKLOOM_HOME" in message
    assert integrity(home) == "ok"
    with registry_in(home) as registry:
        assert registry.notices == []
        assert len(registry.ledger.runs()) == count
        registry.ledger.begin("after", {}, "", Path())


def test_an_index_that_cannot_be_written_any_more_goes_on_in_memory(tmp_path):
    """A disk that is full when a plugin was installed: reading must go on, with one notice."""
    home, site = tmp_path / "home", tmp_path / "site"
    registry_in(home).close()
    ours, theirs = os.pipe()

    def read() -> None:
        from stackloom.registry.bench import synthetic_plugins

        synthetic_plugins(site, 300)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = max(path.stat().st_size for path in home.glob("registry.db*")) + 50_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with open_registry(home=home, search_path=[str(site)]) as registry:
            os.write(theirs, json.dumps([len(registry.rows()), registry.notices]).encode())

    pid = in_child(read)
    os.close(theirs)
    os.waitpid(pid, 0)
    with os.fdopen(ours) as pipe:
        count, notices = json.loads(pipe.read())
    assert count == 300
    assert len(notices) == 1
    assert integrity(home) == "ok"
