"""`stackloom check`: judges a plugin by its manifest, its imports, its slot's contract, its docs and its example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import ConfigError
from stackloom.core.rows import CheckRow
from stackloom.core.slots import slots
from stackloom.probe import Probe, probe
from stackloom.registry import open_registry
from stackloom.registry.discovery import discover, unmet

CONTRACT_SECONDS = 600.0
EXAMPLE_SECONDS = 300.0


def check(target: str) -> list[CheckRow]:
    """Judge an installed plugin (by id), a project or plugin folder, or a wheel.

    A folder with a pyproject.toml and a wheel are installed into a temporary folder first; nothing is left behind.

    Raises:
        ConfigError: the target is none of these, or cannot be installed.
    """
    path = Path(target)
    if path.suffix == ".whl" or (path / "pyproject.toml").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            _install(path, scratch)
            found = discover([scratch])
            rows = [_manifest_row(problem.source, problem.message) for problem in found.problems]
            rows += [row for record in found.records for row in _judge(record, [scratch])]
        return rows or [
            _row(
                "manifest",
                False,
                "a plugin.toml below an entry point of group stackloom.plugins",
                "none found",
                'declare [project.entry-points."stackloom.plugins"] and ship plugin.toml as package data',
            )
        ]
    with open_registry() as registry:
        if (path / "plugin.toml").is_file():
            folder = path.resolve()
            records = [record for record in map(registry.get, registry.ids()) if record.folder.resolve() == folder]
            broken = [problem for problem in registry.problems() if str(folder) in problem.source]
            if not records and not broken:
                raise ConfigError(
                    f"{path} holds a plugin that is not installed",
                    fix="name its project folder or wheel, or install it first",
                )
            return [
                *(_manifest_row(problem.source, problem.message) for problem in broken),
                *(row for record in records for row in _judge(record, [])),
            ]
        if path.exists():
            raise ConfigError(f"{path} is no project folder, no plugin folder and no wheel")
        return list(_judge(registry.get(target), []))


def _install(target: Path, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, str(target)]
    builder = [] if target.suffix == ".whl" else ["--no-build-isolation"]
    done = subprocess.run([*command, *builder], capture_output=True, text=True, check=False)
    if done.returncode and builder:  # the project's own build requirements are not installed here
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise ConfigError(
            f"pip cannot install {target}: {lines[-1] if lines else 'no reason given'}",
            fix=f"run `{' '.join(command[2:])}` to see why",
        )


def _row(name: str, passed: bool, expected: str, actual: str, fix: str = "", *, required: bool = True) -> CheckRow:
    return CheckRow(
        id=name, required=required, passed=passed, expected=expected, actual=actual, fix="" if passed else fix
    )


def _manifest_row(source: str, message: str) -> CheckRow:
    return _row(
        f"{source}: manifest",
        False,
        "a valid plugin.toml",
        message,
        "correct the file; `stackloom show --schema` prints what it may hold",
    )


def _judge(record: PluginRecord, path: Sequence[str]) -> Iterator[CheckRow]:
    def row(name: str, passed: bool, expected: str, actual: str, fix: str = "", required: bool = True) -> CheckRow:
        return _row(f"{record.id}: {name}", passed, expected, actual, fix, required=required)

    manifest = record.manifest
    yield row("manifest", True, "a valid plugin.toml", "valid")
    slot = slots().get(manifest.slot)
    yield row(
        "slot",
        slot is not None and slot.api == manifest.slot_api,
        f"a slot_api of this stackloom: {slot.api if slot else ', '.join(slots())}",
        manifest.slot_api,
        "change slot_api, or install a stackloom with that contract",
    )
    unknown = sorted(set(manifest.can.features) - set(slot.features if slot else ()))
    yield row(
        "features",
        not unknown,
        f"features of the slot: {', '.join(slot.features) if slot else '-'}",
        ", ".join(manifest.can.features) or "none",
        f"remove {', '.join(unknown)}",
    )
    missing = unmet(manifest)
    yield row(
        "needs",
        not missing,
        "every requirement of [needs] installed",
        "; ".join(missing) or "installed",
        "install what is missing",
    )

    config_module, _, config_name = manifest.config.partition(":")
    config = probe(f"{record.package}.{config_module}", config_name, path=path)
    yield row(
        "config imports",
        not config.error,
        f"{manifest.config} imports",
        config.error or f"in {config.seconds * 1000:.0f} ms",
        _traceback(config),
    )
    yield row(
        "config is torch-free",
        not config.heavy,
        "no torch, triton, ray or transformers",
        ", ".join(config.heavy) or "none of them",
        "import them in the component's module, not in the config's",
    )
    yield row(
        "import has no side effects",
        not config.effects,
        "nothing written, started, printed or left running",
        "; ".join(config.effects[:5]) or "none",
        "move what happens at import into the component",
    )
    module, _, name = manifest.component.partition(":")
    component = probe(f"{record.package}.{module}", name, path=path, timeout=120)
    yield row(
        "component imports",
        not component.error,
        f"{manifest.component} imports",
        component.error or f"in {component.seconds:.1f} s",
        _traceback(component),
    )
    if not (config.error or component.error):
        passed, actual = _contract(record, path)
        yield row(
            "contract",
            passed,
            f"the contract tests of slot {manifest.slot} pass",
            actual,
            f"run the contract class of slot {manifest.slot} in your tests",
        )
    yield from (row(*verdict) for verdict in _documents(record, path))


def _traceback(found: Probe) -> str:
    return found.traceback.strip() or "make the module importable"


def _contract(record: PluginRecord, path: Sequence[str]) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as scratch:
        test = Path(scratch) / "test_contract.py"
        test.write_text(
            f"from stackloom.testing import contract_for\n\nTestContract = contract_for({record.id!r})\n",
            encoding="utf-8",
        )
        report = Path(scratch) / "report.xml"
        environment = _environment(scratch, path)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "--rootdir",
            scratch,
            "-c",
            os.devnull,
            f"--junitxml={report}",
            str(test),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=environment,
                capture_output=True,
                text=True,
                timeout=CONTRACT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"not done after {CONTRACT_SECONDS:g} s"
        if "No module named pytest" in done.stderr:
            return False, "pytest is not installed: pip install 'stackloom[dev]'"
        return _read_report(report, done.stdout)


def _read_report(report: Path, output: str) -> tuple[bool, str]:
    if not report.is_file():
        return False, output.strip()[-500:] or "pytest made no report"
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {
        case.get("name", ""): (case.find("failure") if case.find("failure") is not None else case.find("error"))
        for case in cases
    }
    reasons = [
        f"{name}: {(item.get('message') or '').splitlines()[0][:200]}"
        for name, item in failed.items()
        if item is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - skipped - len(reasons)
    text = f"{passed} passed, {len(reasons)} failed, {skipped} skipped"
    return bool(cases) and not reasons and passed > 0, "; ".join([text, *reasons])


def _environment(scratch: str, path: Sequence[str]) -> dict[str, str]:
    python_path = os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": python_path, "STACKLOOM_HOME": scratch}


def _documents(record: PluginRecord, path: Sequence[str]) -> Iterator[tuple[str, bool, str, str, str]]:
    readme = record.folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    yield (
        "README",
        len(text.split()) >= 40,
        "a README.md beside plugin.toml that says what it is and when to use it",
        f"{len(text.split())} words",
        "write it: what, the maths, when (not), options, an example",
    )
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if not blocks:
        yield ("example", False, "a ```python block in README.md that runs", "none", "add one")
        return
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "example.py"
        script.write_text("\n".join(blocks), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, str(script)],
                cwd=scratch,
                env=_environment(scratch, path),
                capture_output=True,
                text=True,
                timeout=EXAMPLE_SECONDS,
                check=False,
            )
            actual = "runs" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield (
                "example",
                done.returncode == 0,
                "the README's python blocks run",
                actual,
                done.stderr.strip()[-2000:],
            )
        except subprocess.TimeoutExpired:
            yield (
                "example",
                False,
                "the README's python blocks run",
                f"not done after {EXAMPLE_SECONDS:g} s",
                "make the example smaller",
            )


def passed(rows: Sequence[CheckRow]) -> bool:
    """Whether every required row passed."""
    return all(row.passed for row in rows if row.required)
