"""Installed distributions made by hand, a home of one's own, and a PostgreSQL server where there is one."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stackloom.core.rows import EvidenceRow

PSQL_FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def manifest_text(plugin: str, extra: str = "") -> str:
    slot = plugin.partition(".")[0]
    lines = {
        "id": f'"{plugin}"',
        "slot_api": f'"{slot}/1"',
        "config": '"config:Config"',
        "component": '"it:It"',
        "summary": f'"The {plugin} technique"',
        "licence": '"Apache-2.0"',
        "determinism": '"exact"',
    }
    kept = [f"{key} = {value}" for key, value in lines.items() if f"\n{key} =" not in f"\n{extra}"]
    return "\n".join([*kept, extra])


class Site:
    """A folder of installed distributions, such as site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> list[str]:
        return [str(self.folder)]

    def metadata(self, name: str, *, version: str = "1.0", package: str | None = None, record: str = "") -> Path:
        """Write a dist-info folder whose entry point names `package`."""
        package = package or name.replace("-", "_")
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not-a-header\n"
        )
        (info / "entry_points.txt").write_text(f"[stackloom.plugins]\n{name} = {package}\n")
        (info / "RECORD").write_text(record + f"{info.name}/METADATA,,\n")
        return info

    def wheel(
        self,
        name: str,
        manifests: dict[str, str | bytes],
        *,
        version: str = "1.0",
        package: str | None = None,
        init: str = "",
    ) -> Path:
        """Install a distribution; `manifests` maps folders below the package to the content of their plugin.toml."""
        package = package or name.replace("-", "_")
        root = self.folder.joinpath(*package.split("."))
        record = ""
        for inner, content in manifests.items():
            place = root / inner
            place.mkdir(parents=True, exist_ok=True)
            (place / "plugin.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
            record += f"{(place / 'plugin.toml').relative_to(self.folder).as_posix()},sha256=x,1\n"
        for folder in [root, *root.parents]:
            if folder == self.folder:
                break
            (folder / "__init__.py").write_text(init)
        self.metadata(name, version=version, package=package, record=record)
        return root


@pytest.fixture
def manifest() -> Callable[..., str]:
    return manifest_text


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def new_site() -> type[Site]:
    return Site


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("STACKLOOM_HOME", str(folder))
    monkeypatch.delenv("STACKLOOM_REGISTRY", raising=False)
    return folder


@pytest.fixture
def evidence_row() -> Callable[..., EvidenceRow]:
    def row(**values: object) -> EvidenceRow:
        usual = {
            "plugin": "optimizer.mona",
            "claim": "faster",
            "scale": "cpu",
            "verdict": "reproduced",
            "paper": 1.5,
            "ours": 1.4,
            "unit": "x",
            "interval": (1.2, 1.6),
            "seeds": (1, 2),
            "seconds": 3.5,
            "device": "cpu",
            "versions": {"torch": "2.13.0"},
            "commit": "0" * 40,
            "date": "2026-01-02T03:04:05Z",
        }
        return EvidenceRow(**(usual | values))

    return row


@pytest.fixture
def unprivileged() -> Callable[[], object]:
    """A context in which file permissions bind, even where the tests run as root."""

    @contextmanager
    def context() -> Iterator[None]:
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return context


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter and write, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="stackloom-test-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=False)
    shutil.rmtree(folder)


class Postgres:
    """A PostgreSQL server of our own on a unix socket."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        folder.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._as_user(
            "initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "stackloom", "-E", "UTF8", "--locale", "C.UTF-8"
        )
        self.start()

    def _as_user(self, program: str, *arguments: str) -> None:
        """initdb and the server refuse to run as root."""
        prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*prefix, str(self.programs / program), *arguments],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        self._as_user(
            "pg_ctl",
            "-D",
            f"{self.folder}/data",
            "-w",
            "-l",
            f"{self.folder}/log",
            "-o",
            f"-k {self.folder} -c listen_addresses=''",
            "start",
        )

    def stop(self, mode: str) -> None:
        self._as_user("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", mode, "stop")

    def new_database(self) -> str:
        name = f"test_{secrets.token_hex(6)}"
        self._as_user("createdb", "-h", str(self.folder), "-U", "stackloom", name)
        return f"postgresql+psycopg://stackloom@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="PostgreSQL tests need psycopg[binary]")
    found = shutil.which("initdb")
    programs = next(iter(PSQL_FOLDERS), Path(found).resolve().parent if found else None)
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (looked for initdb on PATH and in /usr/lib/postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="stackloom-pg-"))
    server = Postgres(programs, folder)
    yield server
    server.stop("fast")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store_url(request: pytest.FixtureRequest, home: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{home}/registry.db"
    return request.getfixturevalue("postgres").new_database()
