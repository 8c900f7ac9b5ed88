"""RELIABILITY 15: the attack table. Each attack runs inside and must fail; what it may do is in the ordinary cases."""

import os
import shutil
import socket
import textwrap
import threading
import time

import pytest

from stackloom.core.errors import ConfigError
from stackloom.environments import sandbox as module
from stackloom.environments.sandbox import MIB, Bubblewrap, Limits, SandboxRefused, open_sandbox

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None or module.sys.platform != "linux", reason="bubblewrap is not installed"
)


@pytest.fixture(scope="module")
def sandbox():
    return open_sandbox()


def run(sandbox, code, **options):
    return sandbox.run(textwrap.dedent(code), **options)


# What each prints if it got through.
ATTACKS = {
    "reads the host's files": """
        import os
        for place in ("/etc/passwd", "/etc/shadow", "/root", "/home", "/var/log", "/work/../tmp/stackloom"):
            if os.path.exists(place): print("THROUGH", place)
        """,
    "writes to the system": """
        import os
        for place in ("/usr/lib/x", "/bin/x", "/x", "/dev/x", "/proc/sys/kernel/hostname"):
            try: open(place, "w").write("x"); print("THROUGH", place)
            except OSError: pass
        """,
    "sees the caller's environment": """
        import os
        if set(os.environ) - {"PATH", "HOME", "LANG", "PWD", "LC_CTYPE"}: print("THROUGH", dict(os.environ))
        """,
    "sees other processes": """
        import os
        names = {open(f"/proc/{pid}/cmdline").read().split("\\0")[0] for pid in os.listdir("/proc") if pid.isdigit()}
        if any("pytest" in name for name in names) or len(names) > 2: print("THROUGH", names)
        """,
    "kills the host's processes": """
        import os
        for pid in range(2, 5000):
            try:
                if pid != os.getpid(): os.kill(pid, 9); print("THROUGH", pid)
            except OSError: pass
        """,
    "becomes root": """
        import os
        try: os.setuid(0); print("THROUGH")
        except OSError: pass
        if os.getuid() == 0: print("THROUGH")
        """,
    "has capabilities": """
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
            if int(status[name], 16): print("THROUGH", name, status[name])
        if status["NoNewPrivs"] != "1" or status["Seccomp"] != "2": print("THROUGH", status)
        """,
    "makes a user namespace": """
        import ctypes
        libc = ctypes.CDLL(None)
        if libc.unshare(0x10000000) == 0: print("THROUGH unshare")
        if libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) > 0: print("THROUGH clone")
        arguments = (ctypes.c_uint64 * 11)(0x10000000, *[0] * 10)
        if libc.syscall(435, arguments, 88) > 0: print("THROUGH clone3")
        """,
    "mounts": """
        import ctypes
        if ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0: print("THROUGH")
        """,
    "uses io_uring": """
        import ctypes
        if ctypes.CDLL(None).syscall(425, 8, (ctypes.c_char * 120)()) >= 0: print("THROUGH")
        """,
    "traces and inspects": """
        import ctypes, os
        libc = ctypes.CDLL(None)
        if libc.ptrace(0, 0, 0, 0) == 0: print("THROUGH ptrace")
        if libc.syscall(321, 0, 0, 0) >= 0: print("THROUGH bpf")
        if libc.syscall(298, 0, 0, -1, -1, 0) >= 0: print("THROUGH perf")
        if libc.syscall(250, 0, 0, 0) >= 0: print("THROUGH keyctl")
        """,
    "allocates 2 GiB": """
        try: block = bytearray(2 << 30); print("THROUGH", len(block))
        except MemoryError: pass
        """,
    "fills the disk": """
        for place in ("/tmp", "/work", "/dev/shm"):
            written = 0
            try:
                for number in range(200):
                    with open(f"{place}/{number}", "wb") as file: written += file.write(bytes(1 << 20))
            except OSError: pass
            if written > 33 << 20: print("THROUGH", place, written)
        """,
    "writes one huge file": """
        import os
        try:
            with open("/tmp/sparse", "wb") as file: file.truncate(1 << 40); print("THROUGH")
        except OSError: pass
        """,
    "opens files without end": """
        files = []
        try:
            for _ in range(2000): files.append(open("/work/main.py"))
            print("THROUGH")
        except OSError: pass
        """,
    "starts processes without end": """
        import os, time
        made = 0
        try:
            for _ in range(500):
                if os.fork() == 0: time.sleep(5); os._exit(0)
                made += 1
            print("THROUGH", made)
        except OSError: pass
        """,
    "types into the terminal": """
        import fcntl, termios
        try: fcntl.ioctl(0, termios.TIOCSTI, b"x"); print("THROUGH")
        except OSError: pass
        """,
}  # fmt: skip


@needs_bubblewrap
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails(sandbox, attack):
    outcome = run(sandbox, ATTACKS[attack], limits=Limits(seconds=20))
    assert "THROUGH" not in outcome.stdout
    assert outcome.status == "ok", outcome


@needs_bubblewrap
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "1.1.1.1", "::1"])
def test_no_address_can_be_reached(sandbox, address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run(sandbox, f"""
            import socket
            try: socket.create_connection(("{address}", {port}), 1); print("THROUGH")
            except OSError: pass
            """)  # fmt: skip
    assert (outcome.status, outcome.stdout) == ("ok", "")


@needs_bubblewrap
def test_an_abstract_socket_of_the_host_is_out_of_reach(sandbox):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0stackloom-test")
        server.listen()
        outcome = run(sandbox, """
            import socket
            try: socket.socket(socket.AF_UNIX).connect("\\0stackloom-test"); print("THROUGH")
            except OSError: pass
            """)  # fmt: skip
    assert (outcome.status, outcome.stdout) == ("ok", "")


def _processes() -> int:
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found += b"/work/main.py" in file.read()
        except OSError:
            pass
    return found


@needs_bubblewrap
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import signal, time\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)",
    ],
    ids=["spins", "sleeps", "fork bomb", "ignores signals"],
)
def test_what_does_not_end_is_ended_with_all_that_it_started(sandbox, code):
    begun = time.monotonic()
    outcome = sandbox.run(code, limits=Limits(seconds=1.5))
    assert outcome.status == "timeout"
    assert time.monotonic() - begun < 5
    deadline = time.monotonic() + 5
    while _processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes() == 0


@needs_bubblewrap
@pytest.mark.parametrize("close", ["", "for number in (0, 1, 2): os.close(number)"], ids=["holds", "closes"])
def test_a_daemon_dies_with_the_program_whether_it_holds_the_pipes_or_not(sandbox, close):
    code = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    {close or 'pass'}\n    time.sleep(60)"
    outcome = sandbox.run(code)
    assert (outcome.status, outcome.seconds < 5) == ("ok", True)
    time.sleep(0.2)
    assert _processes() == 0


@needs_bubblewrap
def test_output_without_end_is_cut(sandbox):
    outcome = sandbox.run("while True: print('x' * 1000)", limits=Limits(output=10_000))
    assert (outcome.status, len(outcome.stdout)) == ("output", 10_000)


@needs_bubblewrap
def test_code_cannot_pretend_that_the_sandbox_failed(sandbox):
    outcome = sandbox.run("import sys; sys.stderr.write('bwrap: no permissions'); sys.exit(1)")
    assert (outcome.status, outcome.exit_code) == ("error", 1)


@needs_bubblewrap
def test_an_ordinary_program_reads_its_files_and_input(sandbox):
    outcome = sandbox.run(
        "import sys, data.words; print(sys.stdin.read(), data.words.TWO, open('data/n.txt').read())",
        files={"data/words.py": b"TWO = 2", "data/n.txt": b"three"},
        stdin=b"one",
    )
    assert (outcome.status, outcome.stdout) == ("error", "")  # -I: the working directory is no place for imports
    outcome = sandbox.run(
        "import sys; sys.path.insert(0, '/work'); import data.words; print(sys.stdin.read(), data.words.TWO)",
        files={"data/words.py": b"TWO = 2"},
        stdin=b"one",
    )
    assert outcome.stdout == "one 2\n"


@needs_bubblewrap
def test_runs_share_nothing(sandbox):
    sandbox.run("open('/tmp/left', 'w').write('x'); open('/work/left', 'w').write('x')")
    assert sandbox.run("import os; print(os.listdir('/tmp'), os.listdir('/work'))").stdout == "[] ['main.py']\n"


@needs_bubblewrap
def test_exit_codes_and_signals(sandbox):
    assert sandbox.run("raise SystemExit(3)").exit_code == 3
    assert sandbox.run("import os; os.kill(os.getpid(), 6)").exit_code == -6


@needs_bubblewrap
def test_many_at_once(sandbox):
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append((n, sandbox.run(f"print({n})").stdout))) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(n, f"{n}\n") for n in range(12)]


@needs_bubblewrap
@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_a_file_that_leaves_the_folder_is_refused(sandbox, name):
    with pytest.raises(ConfigError, match="does not lie in /work"):
        sandbox.run("", files={name: b""})


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"memory": -1}, {"output": float("inf")}, {"seconds": float("nan")}])
def test_limits_that_are_none_are_refused(bad):
    with pytest.raises(ConfigError, match="must be positive"):
        Limits(**bad)


# --- refusal ---------------------------------------------------------------------------------------------------------


def test_a_missing_tool_is_a_refusal(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda *a, **k: None)
    with pytest.raises(SandboxRefused, match="bwrap is not installed"):
        open_sandbox()


@needs_bubblewrap
def test_a_missing_seccomp_is_a_refusal(monkeypatch):
    monkeypatch.setitem(module.sys.modules, "pyseccomp", None)
    with pytest.raises(SandboxRefused, match="seccomp is not there"):
        open_sandbox()


@needs_bubblewrap
def test_a_kernel_without_namespaces_is_a_refusal(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(module, "_tool", lambda name: str(fake) if name == "bwrap" else shutil.which(name))
    with pytest.raises(SandboxRefused):
        open_sandbox()


@needs_bubblewrap
@pytest.mark.parametrize(
    ("weaken", "names"),
    [
        (lambda command: _without(command, "--disable-userns", "--seccomp"), "makes user namespaces"),
        (lambda command: command.insert(command.index("--unshare-all") + 1, "--share-net"), "has a network"),
        (lambda command: command.__setitem__(slice(1, 1), ["--ro-bind", "/etc", "/etc"]), "reads the host's files"),
    ],
    ids=["namespaces", "network", "files"],
)
def test_a_sandbox_that_lets_something_through_is_refused(monkeypatch, weaken, names):
    whole = Bubblewrap._command

    def less(self, *arguments):
        command = whole(self, *arguments)
        weaken(command)
        return command

    monkeypatch.setattr(Bubblewrap, "_command", less)
    with pytest.raises(SandboxRefused, match=names):
        open_sandbox()


def _without(command, flag, flag_with_value):
    command.remove(flag)
    at = command.index(flag_with_value)
    del command[at : at + 2]


@pytest.mark.parametrize("name", ["docker", "no.such.module:Class", "json:Nothing"])
def test_an_unknown_tier_is_an_error_and_no_weaker_tier(name):
    with pytest.raises(ConfigError):
        open_sandbox(name)


def test_a_stronger_tier_is_a_class(monkeypatch):
    class Stronger:
        def run(self, code, **options):
            return module.Outcome("ok", 0, code, "", 0.0)

    monkeypatch.setattr(module, "Stronger", Stronger, raising=False)
    assert open_sandbox("stackloom.environments.sandbox:Stronger").run("x").stdout == "x"


def test_memory_is_counted_in_bytes():
    assert Limits().memory == 512 * MIB
