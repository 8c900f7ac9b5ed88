"""Compiles every kernel and config for sm_90, with no GPU, and holds the result against limits and a stored table.

``python -m stackloom.kernels.compile_gate [OP ...] [--only KERNEL[CONFIG]] [--update] [--json]``

Limits: no stack, no spills, at most 255 registers and 232,448 bytes of shared memory, and the instructions that the op
    claims. Beyond them, each
op's ``compiled.json`` stores what every kernel took, by Triton version: any change fails until ``--update`` writes it
on purpose. For a Triton version that the table does not know, the limits alone hold, and the report says so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .contract import Op
from .discovery import load_op, op_names

SM = 90
TABLE = "compiled.json"


def measure_op(op: Op, only: str | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Compile the targets of one op: all, or the one named ``only``.

    Returns:
        Rows by ``"kernel[config]"``, and the broken limits in words.

    Raises:
        ValueError: two targets have one name.
    """
    from .tooling import offline_driver

    rows: dict[str, dict[str, Any]] = {}
    broken: list[str] = []
    for target in op.compile_targets:
        name = f"{target.kernel.__name__}[{target.config}]"
        if only not in (None, name):
            continue
        if name in rows:
            raise ValueError(f"{op.name} compiles two targets named {name}")
        measurement, missing = offline_driver.measure(target)
        rows[name] = measurement.as_row()
        broken += [f"{op.name}: {name} {violation}" for violation in offline_driver.violations(measurement, missing)]
    return rows, broken


def changes(op: str, stored: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Every difference between a stored and a measured table, in words; empty when they are equal."""
    found = [f"{op}: {name} is new and not in {TABLE}" for name in measured.keys() - stored.keys()]
    found += [f"{op}: {name} is in {TABLE} but is compiled no more" for name in stored.keys() - measured.keys()]
    for name in measured.keys() & stored.keys():
        found += [
            f"{op}: {name} {figure} was {stored[name].get(figure)}, is {value}"
            for figure, value in measured[name].items()
            if stored[name].get(figure) != value
        ]
    return sorted(found)


def table_path(op: Op) -> Path:
    """Where the op's stored table lies."""
    return Path(str(importlib.import_module(op.package).__file__)).parent / TABLE


def read_table(op: Op) -> dict[str, dict[str, Any]]:
    """The op's stored table: rows by toolchain; empty if there is none yet."""
    path = table_path(op)
    return json.loads(path.read_text()) if path.is_file() else {}


def toolchain() -> str:
    """What the stored figures depend on: Triton brings its own assembler, so its version says it all."""
    import triton

    return f"triton {triton.__version__} sm_{SM}"


def check(ops: Iterable[str], update: bool = False, only: str | None = None) -> dict[str, Any]:
    """Run the gate over ops by name.

    Args:
        ops: names.
        update: write the measured rows into each op's table instead of comparing with it. Limits are never waived.
        only: compile and compare nothing but this ``"kernel[config]"``.

    Returns:
        ``toolchain``; ``rows`` by op and kernel; ``failures``; ``notes``.
    """
    from .tooling import offline_driver

    offline_driver.install(SM)
    report: dict[str, Any] = {"toolchain": toolchain(), "rows": {}, "failures": [], "notes": []}
    for name in ops:
        op = load_op(name)
        rows, broken = measure_op(op, only)
        report["rows"][name] = rows
        report["failures"] += broken
        table = read_table(op)
        if update:
            table[toolchain()] = rows
            table_path(op).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        elif toolchain() in table:
            stored = {key: row for key, row in table[toolchain()].items() if only in (None, key)}
            report["failures"] += changes(name, stored, rows)
        else:
            report["notes"].append(f"{name}: {TABLE} has no rows for {toolchain()}; only the limits were checked")
    return report


def main(argv: list[str] | None = None) -> int:
    """Run the gate; 0 if it holds, 1 if a limit is broken or a figure moved, 2 if it cannot run here."""
    parser = argparse.ArgumentParser(
        prog="python -m stackloom.kernels.compile_gate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("op", nargs="*", help="names of ops (default: all)")
    parser.add_argument(
        "--update", action="store_true", help="store the measured figures instead of comparing with them"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--only", metavar="KERNEL[CONFIG]", help="one target alone, while working on it")
    options = parser.parse_args(argv)
    if options.only and options.update:
        parser.error("--update stores whole tables, so it takes no --only")
    if importlib.util.find_spec("triton") is None:
        print("the compile gate needs triton, which is not installed", file=sys.stderr)
        return 2
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("unset TRITON_INTERPRET: interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    report = check(options.op or op_names(), options.update, options.only)
    if not any(report["rows"].values()):
        print(f"nothing to compile is named {options.only}" if options.only else "nothing to compile", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1) if options.json else _as_text(report))
    return 1 if report["failures"] else 0


def _as_text(report: dict[str, Any]) -> str:
    lines = [
        report["toolchain"],
        f"{'kernel[config]':<52} {'registers':>9} {'stack':>6} {'spills':>6} {'shared':>7}  tensor core",
    ]
    for op, rows in report["rows"].items():
        lines.append(op)
        lines += [
            f"  {name:<50} {row['registers']:>9} {row['stack']:>6} {row['spills']:>6} {row['shared']:>7}  "
            f"{row['tensor_core'] or '-'}"
            for name, row in rows.items()
        ]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"FAILED {failure}" for failure in report["failures"]]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
