"""Write a file so that a crash at any moment leaves the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from stackloom.registry.errors import StorageError


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`: temporary file, fsync, rename, fsync of the folder.

    When it returns, the content survives a loss of power. When it raises, a path that did not exist still does not.

    Raises:
        StorageError: the disk is full, the folder cannot be written, or the device fails.
    """
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    existed = path.exists()
    try:
        _make_folder(path.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as cause:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not existed:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise StorageError(
            f"cannot be written: {cause.strerror or cause}",
            where=str(path),
            fix="free some space or set STACKLOOM_HOME to a folder that you can write",
        ) from cause


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its rename is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
