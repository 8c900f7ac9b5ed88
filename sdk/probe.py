"""Imports somebody's module in a process of its own and reports what that did: errors, time, side effects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEAVY = ("torch", "triton", "ray", "transformers")
_WATCHED = (
    "socket.connect",
    "socket.bind",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.symlink",
    "os.link",
    "os.putenv",
    "ctypes.dlopen",
)


@dataclass(frozen=True)
class Probe:
    """What an import did.

    Attributes:
        error: "" or one line: "ValueError: ...", "did not finish within 20 s", "called sys.exit(3)".
        traceback: the child's traceback, if any.
        seconds: wall time of the import alone.
        heavy: which of torch, triton, ray, transformers were loaded.
        effects: files written, processes started, sockets used, threads left, text printed.
    """

    error: str = ""
    traceback: str = ""
    seconds: float = 0.0
    heavy: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()


def probe(module: str, attribute: str = "", *, timeout: float = 20.0, path: Sequence[str] = ()) -> Probe:
    """Import `module` in a subprocess and look at it.

    Args:
        module: full import name.
        attribute: a name that must exist in it; "" asks for none.
        timeout: seconds until the child is killed.
        path: folders put before sys.path.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "HOME": scratch,
            "STACKLOOM_HOME": scratch,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, "-m", "stackloom.probe", module, attribute, str(answer)]
        try:
            done = subprocess.run(
                command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return Probe(error=f"did not finish within {timeout:g} s", seconds=timeout)
        try:
            report = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Probe(
                error=f"ended its process with code {done.returncode} while it was imported",
                traceback=done.stderr[-4000:],
            )
    printed = [
        f"printed {text.strip().splitlines()[0]!r}"
        for text in (done.stdout, done.stderr)
        if text.strip() and not report["error"]
    ]
    return Probe(
        report["error"],
        report["traceback"],
        report["seconds"],
        tuple(report["heavy"]),
        tuple(report["effects"] + printed),
    )


def _child(module: str, attribute: str, answer: str) -> None:
    import importlib
    import threading
    import time
    import traceback

    import stackloom.core.loading  # noqa: F401 - what a config may import is loaded before anything is watched

    effects: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if not watching:
            return
        if event == "open" and len(arguments) == 3:
            target, mode, flags = arguments
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ):
                effects.append(f"opened {target} for writing")
        elif event in _WATCHED:
            effects.append(f"{event} {arguments[0] if arguments else ''}"[:200])

    sys.addaudithook(watch)
    environment = dict(os.environ)
    error = trace = ""
    start = time.perf_counter()
    try:
        loaded = importlib.import_module(module)
        if attribute and not hasattr(loaded, attribute):
            error = f"{module} has no {attribute}"
    except SystemExit as stop:
        error, trace = f"called sys.exit({stop.code})", traceback.format_exc()
    except BaseException as cause:  # noqa: BLE001 - the report is the point
        error, trace = f"{type(cause).__name__}: {cause}", traceback.format_exc()
    seconds = time.perf_counter() - start
    watching = False
    if os.environ != environment:
        effects.append("changed the environment")
    effects += [
        f"left thread {thread.name} running"
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    ]
    heavy = [name for name in HEAVY if name in sys.modules]
    Path(answer).write_text(
        json.dumps({"error": error, "traceback": trace, "seconds": seconds, "heavy": heavy, "effects": effects}),
        encoding="utf-8",
    )
    sys.stdout.flush()
    os._exit(0)  # a thread or atexit handler of the module must not keep the probe


if __name__ == "__main__":
    _child(*sys.argv[1:])
