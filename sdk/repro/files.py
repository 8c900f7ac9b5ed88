"""Where evidence goes, and what is there already."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import ArtifactError, StackloomError
from stackloom.core.rows import EvidenceRow, Scale
from stackloom.registry import evidence
from stackloom.registry.storage import default_home

INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages: what lies above them is not the plugin's source."""


def checkout(record: PluginRecord) -> Path | None:
    """Return the source tree that the plugin is installed from, or None for an installed wheel."""
    for folder in record.folder.resolve().parents:
        if folder.name in INSTALLED:
            return None
        if (folder / "pyproject.toml").is_file():
            return folder
    return None


def evidence_file(record: PluginRecord, scale: Scale, out: Path | None) -> Path:
    """Return `<plugin>.<scale>.json` in `out`, in the source tree's docs/evidence/claims, or in the registry's home."""
    source = checkout(record)
    folder = out or (source / "docs" / "evidence" / "claims" if source else default_home() / "claims")
    return folder / f"{record.id}.{scale}.json"


def read(path: Path) -> list[EvidenceRow]:
    """Return the rows of a file that may be absent.

    Raises:
        ArtifactError: it holds something else.
    """
    if not path.exists():
        return []
    try:
        return list(evidence.rows_in(path))
    except (OSError, ValueError, RecursionError, StackloomError) as cause:
        raise ArtifactError(
            f"is no evidence: {str(cause).splitlines()[0]}", where=str(path), fix="move it away or give another --out"
        ) from cause


def merge(path: Path, rows: Iterable[EvidenceRow], names: Sequence[str]) -> list[EvidenceRow]:
    """Put rows into a file, one per claim in the order of `names`, and return all that it holds now.

    Raises:
        ArtifactError: the file holds something else.
        StorageError: it cannot be written.
    """
    latest = {row.claim: row for row in [*read(path), *rows]}
    kept = [latest[name] for name in names if name in latest]
    evidence.write_rows(path, kept)
    return kept


def commit(record: PluginRecord) -> str:
    """Return the commit of the plugin's source tree, "+changes" appended where its files differ; empty outside one."""
    source, git = checkout(record), shutil.which("git")
    if source is None or git is None:
        return ""
    head = subprocess.run([git, "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=False)
    if head.returncode:
        return ""
    status = [git, "status", "--porcelain", "--", ".", ":!docs"]
    changed = subprocess.run(status, cwd=source, capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip() + ("+changes" if changed else "")
