"""How fast the registry answers at 10,000 plugins, beside raw sqlite3 on the same file: `stackloom bench registry`."""

from __future__ import annotations

import multiprocessing
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from stackloom.core.errors import EngineError
from stackloom.registry.catalogue import Registry, open_registry

PLUGINS = 10_000
READERS = 8
_MANIFEST = """
id = "{slot}.technique-{number}"
slot_api = "{slot}/1"
config = "config:Config"
component = "technique:Technique"
summary = "Synthetic technique {number} of the {slot} slot"
licence = "Apache-2.0"
lifecycle = "{lifecycle}"
determinism = "same-machine"
keywords = ["synthetic", "group-{group}"]
paper = {{title = "On technique {group}", url = "https://example.org/{group}", page = "T{group}"}}
[needs]
torch = ">=2.11"
[can]
dtypes = ["float32", "bfloat16"]
devices = ["cpu", "cuda"]
[[claims]]
name = "faster"
statement = "It is faster than the baseline"
where = "table 1"
metric = "speed-up"
paper = 1.5
better = "higher"
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure lookups, pages, opening, and eight readers beside a writer.

    Args:
        quick: 1,000 plugins and fewer repetitions; the bars are meant for 10,000.

    Returns:
        One dict per row of `stackloom bench --json`: `ratio` is raw sqlite3's time over ours; `bar` is an absolute one
        in `unit`, compared with `value`.
    """
    count, repeats = (PLUGINS // 10, 200) if quick else (PLUGINS, 2_000)
    with tempfile.TemporaryDirectory(prefix="stackloom-bench-") as folder:
        site, home = Path(folder, "site"), Path(folder, "home")
        ids = synthetic_plugins(site, count)
        started = time.perf_counter()
        open_registry(home=home, search_path=[str(site)]).close()
        indexing = time.perf_counter() - started
        with open_registry(home=home, search_path=[str(site)]) as registry:
            rows = [
                *_lookups(registry, home, ids, repeats),
                _page(registry, home, count, repeats // 10),
                _listing(site, home, Path(folder), count, indexing),
                *_crowd(site, home, ids, 2.0 if quick else 10.0),
            ]
    return [{**row, "case": f"{row['case']}, {count} plugins"} for row in rows]


def synthetic_plugins(site: Path, count: int, *, distribution: str = "synthetic") -> list[str]:
    """Lay out an installed wheel with `count` plugins below `site`; returns their ids."""
    slots = ("attention", "optimizer", "quantizer", "decoding", "rollout")
    ids, record = [], []
    for number in range(count):
        slot = slots[number % len(slots)]
        lifecycle = ("experimental", "stable")[number % 2]
        folder = site / distribution / slot / f"technique_{number}"
        folder.mkdir(parents=True)
        (folder / "plugin.toml").write_text(
            _MANIFEST.format(slot=slot, number=number, group=number % 97, lifecycle=lifecycle)
        )
        record.append(f"{distribution}/{slot}/technique_{number}/plugin.toml,,\n")
        ids.append(f"{slot}.technique-{number}")
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[stackloom.plugins]\n{distribution} = {distribution}\n")
    (info / "RECORD").write_text("".join(record))
    return ids


def _lookups(registry: Registry, home: Path, ids: list[str], repeats: int) -> list[dict[str, Any]]:
    asked = [ids[number * 7919 % len(ids)] for number in range(repeats)]
    with sqlite3.connect(home / "registry.db") as raw:
        sql = "SELECT manifest, origin, dist_version, package, folder FROM plugins WHERE id = ? AND snapshot = 1"
        baseline = _times(lambda plugin: raw.execute(sql, (plugin,)).fetchall(), asked)
    raw.close()
    fresh = open_registry(home=home, search_path=registry.search_path)
    uncached = _times(fresh.get, asked[: len(set(asked))])
    fresh.close()
    known = asked[0]
    registry.get(known)
    inner = 1_000
    cached = [
        each / inner
        for each in _times(lambda _: [registry.get(known) for _ in range(inner)], asked[: max(30, repeats // 50)])
    ]
    return [
        _row("registry.get", "cached", median(cached), median(baseline), 3.0, "us"),
        _row("registry.get", "uncached", median(uncached), median(baseline), 60.0, "us"),
    ]


def _page(registry: Registry, home: Path, count: int, repeats: int) -> dict[str, Any]:
    offsets = [number * 7919 % (count - 50) for number in range(max(30, repeats))]
    columns = "id, slot, version, lifecycle, paper, origin"
    sql = f"SELECT {columns} FROM plugins WHERE snapshot = 1 ORDER BY id LIMIT 50 OFFSET ?"
    with sqlite3.connect(home / "registry.db") as raw:
        baseline = _times(lambda offset: raw.execute(sql, (offset,)).fetchall(), offsets)
    raw.close()
    ours = _times(lambda offset: registry.rows(limit=50, offset=offset), offsets)
    return _row("registry.rows", "page of 50", median(ours), median(baseline), 2_000.0, "us")


def _listing(site: Path, home: Path, folder: Path, count: int, indexing: float) -> dict[str, Any]:
    """All rows from a fresh opening, staleness check included, less the same over ten plugins."""
    few = folder / "few"
    synthetic_plugins(few, 10)

    def listing(place: Path, where: Path) -> None:
        with open_registry(home=where, search_path=[str(place)]) as registry:
            registry.rows()

    listing(few, folder / "few-home")
    many = _times(lambda _: listing(site, home), range(10))
    little = _times(lambda _: listing(few, folder / "few-home"), range(10))
    row = _row(
        "registry.list",
        "open, check and list all, beyond ten plugins",
        median(many) - median(little),
        median(little),
        0.3e6,
        "us",
    )
    return {**row, "ratio": None, "indexing_seconds": indexing}


def _crowd(site: Path, home: Path, ids: list[str], seconds: float) -> list[dict[str, Any]]:
    """Eight processes that read and one that writes; any "database is locked" counts as an error."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for number in range(READERS + 1):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_write if number == 0 else _read, args=(theirs, str(site), str(home), ids[:500], seconds)
        )
        process.start()
        workers.append((process, ours))
    try:
        for _, pipe in workers:
            _answer(pipe, 60)  # each has imported and opened
        for _, pipe in workers:
            pipe.send("go")
        results = [_answer(pipe, seconds + 60) for _, pipe in workers]
    finally:
        for process, _ in workers:
            process.terminate()
            process.join()
    writer, readers = results[0], results[1:]
    errors = sum(result["errors"] for result in results)
    return [
        {
            "name": "registry.concurrent",
            "case": f"{READERS} readers + 1 writer",
            "ratio": None,
            "bar": 0.0,
            "met": errors == 0,
            "floor_fraction": None,
            "error": None,
            "device": _device(),
            "value": float(errors),
            "unit": "lock errors",
            "reads_per_second": sum(result["count"] for result in readers) / seconds,
            "writes_per_second": writer["count"] / seconds,
            "slowest_read_us": max(result["slowest"] for result in readers) * 1e6,
            "slowest_write_us": writer["slowest"] * 1e6,
        }
    ]


def _answer(pipe: Connection, seconds: float) -> Any:
    try:
        if pipe.poll(seconds):
            return pipe.recv()
    except EOFError:
        pass
    raise EngineError("a process of the bench died or hangs")


def _read(pipe: Connection, site: str, home: str, ids: list[str], seconds: float) -> None:
    with open_registry(home=Path(home), search_path=[site]) as registry:

        def step(number: int) -> None:
            registry.rows(limit=50, offset=number % 1_000)
            registry.search(ids[number % len(ids)], limit=10) if number % 50 == 0 else registry.get(
                ids[number % len(ids)]
            )
            registry.ledger.runs(limit=10)

        _loop(pipe, step, seconds)


def _write(pipe: Connection, site: str, home: str, _ids: list[str], seconds: float) -> None:
    with open_registry(home=Path(home), search_path=[site]) as registry:
        run = registry.ledger.begin("bench", {}, "0" * 64, Path(home))
        registry.ledger.begin_stage(run, 0, "train", "key")
        _loop(pipe, lambda step: registry.ledger.record_metrics(run, 0, step, {"loss": 1.0 / (step + 1)}), seconds)


def _loop(pipe: Connection, step: Callable[[int], None], seconds: float) -> None:
    from stackloom.registry.errors import StorageError

    pipe.send("ready")
    pipe.recv()
    count = errors = 0
    slowest = 0.0
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        try:
            step(count)
        except StorageError:
            errors += 1
        slowest = max(slowest, time.perf_counter() - began)
        count += 1
    pipe.send({"count": count, "errors": errors, "slowest": slowest})


def _times(call: Callable[[Any], Any], arguments: Any) -> list[float]:
    """Microseconds of each call."""
    times = []
    for argument in arguments:
        began = time.perf_counter()
        call(argument)
        times.append((time.perf_counter() - began) * 1e6)
    return times


def _row(name: str, case: str, ours: float, baseline: float, bar: float, unit: str) -> dict[str, Any]:
    return {
        "name": name,
        "case": case,
        "ratio": baseline / ours,
        "bar": bar,
        "met": ours <= bar,
        "floor_fraction": None,
        "error": None,
        "device": _device(),
        "value": ours,
        "unit": unit,
        "median_us": ours,
        "baseline_us": baseline,
    }


def _device() -> str:
    return f"cpu ({platform.machine()})"
