"""A place for code that a model wrote: no network, no files of the host, few resources, and a refusal where it cannot
be had.

`Bubblewrap` is the tier that needs no service: an ordinary user before bubblewrap starts, fresh namespaces, a read-only
system, nested user namespaces disabled, a seccomp deny-list, limits on memory, processes, files and time. A stronger
tier is a class with the same `run`, named as "module:Class"; `open_sandbox` never falls back to a weaker one.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from stackloom.core.errors import ConfigError, FitError

MIB = 1 << 20
NOBODY = 65_534
INSIDE = 1000  # uid and gid that the code believes to have
WORK = "/work"
# System calls by which code has left sandboxes, or that nothing in here needs. `clone3` hides its flags from a filter,
# so libc is told that it does not exist and uses `clone`.
DENIED = (
    "io_uring_setup", "io_uring_enter", "io_uring_register", "unshare", "setns", "mount", "umount2", "pivot_root",
    "chroot", "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr", "ptrace",
    "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "bpf", "perf_event_open", "userfaultfd", "keyctl",
    "add_key", "request_key", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
    "open_by_handle_at", "name_to_handle_at", "swapon", "swapoff", "reboot", "acct", "quotactl", "syslog",
    "settimeofday", "clock_settime", "personality", "modify_ldt", "vmsplice", "lookup_dcookie", "nfsservctl",
)  # fmt: skip
NEW_USER = 0x1000_0000  # CLONE_NEWUSER
ENOSYS = 38
# What the code may not be able to do, tried inside before the sandbox is given to anybody.
_PROBE = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def reaches(address):
    try:
        socket.create_connection(address, timeout=0.5).close()
    except OSError:
        return False
    return True
print(json.dumps({
    "is root": os.getuid() == 0,
    "makes user namespaces": libc.unshare(0x10000000) == 0,
    "has io_uring": libc.syscall(425, 1, None) != -1 or ctypes.get_errno() not in (1, 38),
    "has a network": reaches(("1.1.1.1", 53)) or any(name != "lo" for _, name in socket.if_nameindex()),
    "sees other processes": sum(name.isdigit() for name in os.listdir("/proc")) > 3,
    "writes to the system": os.access("/usr", os.W_OK),
    "reads the host's files": any(os.path.exists(place) for place in ("/root", "/home", "/etc/shadow", "/var", "/mnt")),
}))
"""


class SandboxRefused(FitError):
    """The isolation that was asked for cannot be had here, so nothing was run."""


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
        seconds: wall time, and processor time of each process.
        memory: bytes of address space of each process.
        processes: processes and threads at a time.
        disk: bytes of /tmp, and again of the working directory.
        output: bytes of stdout and stderr together; more ends the run.
    """

    seconds: float = 10.0
    memory: int = 512 * MIB
    processes: int = 32
    disk: int = 32 * MIB
    output: int = MIB

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that is no positive number."""
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"must be positive, got {value}", where=f"limits.{name}")


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        status: "ok" with exit code 0, "error" with another, "timeout" or "output" when a limit ended it.
        exit_code: of the program; negative for a signal.
        stdout, stderr: what it wrote, undecodable bytes replaced; cut at the limit.
        seconds: wall time.
    """

    status: Literal["ok", "error", "timeout", "output"]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class Sandbox(Protocol):
    """Runs Python programs that nobody trusts, each in a place of its own that is gone afterwards."""

    def run(self, code: str, *, files: Mapping[str, bytes] = ..., stdin: bytes = ..., limits: Limits = ...) -> Outcome:
        """Run a program to its end."""
        ...


def open_sandbox(name: str = "bubblewrap") -> Sandbox:
    """Return a sandbox that has proved its isolation on this machine.

    Args:
        name: "bubblewrap", or "module:Class" of a stronger tier.

    Raises:
        ConfigError: there is no such class.
        SandboxRefused: the isolation cannot be had. No other tier is tried.
    """
    if name == "bubblewrap":
        return Bubblewrap()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"unknown sandbox {name!r}", where="sandbox", fix='"bubblewrap", or "module:Class"')
    try:
        made: Sandbox = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as cause:
        raise ConfigError(f"{name!r} cannot be imported: {cause}", where="sandbox") from cause
    return made


@dataclass
class Bubblewrap:
    """Bubblewrap with limits, seccomp and an unprivileged user.

    Args:
        python: the interpreter inside; it must lie under /usr, which is all that the code sees of the host.
        user: the uid that starts bubblewrap where this process is root.

    Raises:
        SandboxRefused: a tool is missing, the kernel forbids namespaces, or a probe inside could do what it must not.

    Example:
        >>> Bubblewrap().run("print(6 * 7)").stdout
        '42\\n'
    """

    python: str = "/usr/bin/python3"
    user: int = NOBODY
    _tools: dict[str, str] = field(init=False, repr=False)
    _filter: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the tools, make the filter and try the isolation."""
        if sys.platform != "linux":
            raise SandboxRefused("bubblewrap needs Linux", where="sandbox")
        self._tools = {name: _tool(name) for name in ("bwrap", "prlimit")}
        for needed in (self.python, self._tools["prlimit"]):
            if not (Path(needed).is_relative_to("/usr") and os.access(needed, os.X_OK)):
                raise SandboxRefused(f"there is no {needed} under /usr", where="sandbox")
        self._filter = seccomp_filter()
        self._prove()

    def run(
        self,
        code: str,
        *,
        files: Mapping[str, bytes] | None = None,
        stdin: bytes = b"",
        limits: Limits = Limits(),
    ) -> Outcome:
        """Run a Python program in /work, where its files lie; nothing that it leaves behind lives on.

        Args:
            code: the program; runs isolated from user sites (`python -I`).
            files: by name relative to /work.
            stdin: what it reads.
            limits: what it may use.

        Raises:
            ConfigError: a file's name leaves /work.
            SandboxRefused: bubblewrap could not start.
        """
        given = {"main.py": code.encode(), **(files or {})}
        for name in given:
            path = Path(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ConfigError(f"{name!r} does not lie in {WORK}", where="files")
        with tempfile.TemporaryDirectory(prefix="stackloom-sandbox-") as folder:
            os.chmod(folder, 0o711)
            handles = [_readable(Path(folder) / str(number), data) for number, data in enumerate(given.values())]
            handles += [_readable(Path(folder) / "filter", self._filter), _readable(Path(folder) / "stdin", stdin)]
            reading, status = os.pipe()
            handles.append(os.fdopen(reading, "rb"))
            try:
                numbers = [handle.fileno() for handle in handles[: len(given) + 1]]
                command = self._command(dict(zip(given, numbers, strict=False)), numbers[-1], status, limits)
                outcome = self._watch(command, handles[-2], [*numbers, status], limits)
            finally:
                os.close(status)
                begun = (
                    b"child-pid" in handles[-1].read()
                )  # nobody inside can write there, or keep it from being written
                for handle in handles:
                    handle.close()
        if not begun:
            what = outcome.stderr.strip()[-300:] or f"exit code {outcome.exit_code}"
            raise SandboxRefused(what, where="sandbox", fix="does the kernel allow user namespaces?")
        return outcome

    def _command(self, files: Mapping[str, int], seccomp: int, status: int, limits: Limits) -> list[str]:
        limited = {
            "as": limits.memory,
            "cpu": max(1, int(limits.seconds + 0.999)),
            "nproc": limits.processes,
            "fsize": limits.disk,
            "nofile": 128,
            "core": 0,
            "memlock": 0,
        }
        places: list[str] = []
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            where = Path("/", name)
            if where.is_symlink():
                places += ["--symlink", os.readlink(where), str(where)]
            elif where.is_dir():
                places += ["--ro-bind", str(where), str(where)]
        given: list[str] = []
        for name, number in files.items():
            given += ["--file", str(number), f"{WORK}/{name}"]
        return [
            self._tools["bwrap"], "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent",
            "--new-session", "--json-status-fd", str(status),
            "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", WORK, "--setenv", "LANG", "C.UTF-8",
            "--hostname", "sandbox", "--uid", str(INSIDE), "--gid", str(INSIDE), "--cap-drop", "ALL",
            "--ro-bind", "/usr", "/usr", *places, "--proc", "/proc", "--dev", "/dev", "--size", str(MIB), "--tmpfs",
            "/dev/shm", "--size", str(limits.disk), "--tmpfs", "/tmp", "--size", str(limits.disk), "--tmpfs", WORK,
            *given, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK, "--seccomp", str(seccomp), "--",
            self._tools["prlimit"], *(f"--{name}={value}" for name, value in limited.items()), "--",
            self.python, "-I", f"{WORK}/main.py",
        ]  # fmt: skip

    def _watch(self, command: Sequence[str], stdin: IO[bytes], keep: Sequence[int], limits: Limits) -> Outcome:
        begun = time.monotonic()
        options: dict[str, Any] = {}
        if os.geteuid() == 0:
            options = {"user": self.user, "group": self.user, "extra_groups": []}
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=keep,
                env={},
                cwd="/",
                start_new_session=True,
                **options,
            )
        except OSError as cause:
            raise SandboxRefused(f"cannot start: {cause}", where="sandbox") from cause
        ended: Literal["timeout", "output"] | None = None
        with process:
            try:
                taken, ended = _drain(process, begun + limits.seconds, limits.output)
            finally:
                process.kill()  # the rest of the sandbox dies with bubblewrap
        seconds, code = time.monotonic() - begun, process.returncode
        stdout, stderr = (bytes(part).decode(errors="replace") for part in taken)
        code = 128 - code if code > 128 else code  # bubblewrap tells of signals as a shell does
        return Outcome(ended or ("ok" if code == 0 else "error"), code, stdout, stderr, seconds)

    def _prove(self) -> None:
        outcome = self.run(_PROBE, limits=Limits(seconds=30))
        try:
            found = json.loads(outcome.stdout)
        except ValueError:
            raise SandboxRefused(f"the probe failed: {outcome.stderr.strip()[-300:]}", where="sandbox") from None
        if broken := [what for what, true in found.items() if true]:
            raise SandboxRefused(f"code inside {', '.join(broken)}", where="sandbox")


def _drain(
    process: subprocess.Popen[bytes], deadline: float, most: int
) -> tuple[tuple[bytearray, bytearray], Literal["timeout", "output"] | None]:
    """Read both pipes until they end, the deadline passes or too much came."""
    taken = bytearray(), bytearray()
    with selectors.DefaultSelector() as waiting:
        for pipe, place in zip((process.stdout, process.stderr), taken, strict=True):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            waiting.register(pipe, selectors.EVENT_READ, place)
        while waiting.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return taken, "timeout"
            for key, _ in waiting.select(left):
                data = os.read(key.fd, 65_536)
                if not data:
                    waiting.unregister(key.fileobj)
                room = most - len(taken[0]) - len(taken[1])
                key.data.extend(data[:room])
                if len(data) > room:
                    return taken, "output"
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return taken, "timeout"
    return taken, None


def seccomp_filter() -> bytes:
    """Return a BPF program that allows everything but `DENIED`, new user namespaces and clone3.

    Raises:
        SandboxRefused: pyseccomp or libseccomp is missing.
    """
    try:
        import pyseccomp  # type: ignore[import-untyped]
    except (ImportError, OSError, RuntimeError) as cause:
        raise SandboxRefused(
            f"seccomp is not there: {cause}",
            where="sandbox",
            fix="pip install 'stackloom[envs]', apt install libseccomp2",
        ) from cause
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in DENIED:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(pyseccomp.ERRNO(1), name)
    rules.add_rule(pyseccomp.ERRNO(1), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, NEW_USER, NEW_USER))
    rules.add_rule(pyseccomp.ERRNO(ENOSYS), "clone3")
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _tool(name: str) -> str:
    found = shutil.which(name, path="/usr/local/bin:/usr/bin")
    if found is None:
        package = {"bwrap": "bubblewrap", "prlimit": "util-linux"}[name]
        raise SandboxRefused(f"{name} is not installed", where="sandbox", fix=f"apt install {package}")
    return found


def _readable(path: Path, data: bytes) -> IO[bytes]:
    """An open file with these bytes, unlinked."""
    path.write_bytes(data)
    handle = path.open("rb")
    path.unlink()
    return handle
