"""Artifacts: what a stage gives to the next. A folder with `artifact.json` and checksums that are written last.

An artifact either is whole or is not there: files are written into a neighbouring folder, synced, listed with their
sha256, and the folder is renamed into place. Reading checks every sum, every name and every safetensors header.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from stackloom.core.errors import ArtifactError

Kind: TypeAlias = Literal["model", "adapter", "quantized", "checkpoint", "trajectories", "metrics"]
CARD, SUMS = "artifact.json", "SHA256SUMS"
FORMAT = 1
MAX_HEADER = 100_000_000  # bytes of a safetensors header, the format's own limit


class Card(BaseModel):
    """The content of `artifact.json`.

    Attributes:
        kind: what the folder holds.
        key: of the stage that made it: its inputs, options and code.
        made_by: "train", "quantize", ...
        parent: digest of the artifact it was made from, or "".
        details: what a reader of this kind needs (base checkpoint, recipe, metrics).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    kind: Kind
    key: str
    made_by: str
    parent: str = ""
    details: dict[str, Any] = {}


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk.

    Attributes:
        folder: where it lies.
        card: its description.
        digest: sha256 of its list of checksums: equal content, equal digest.
    """

    folder: Path
    card: Card
    digest: str


@contextmanager
def writing(target: Path, card: Card) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `target` when the block ends without an error, and vanishes otherwise.

    Raises:
        ArtifactError: the disk is full, failing or read-only; nothing of `target` exists then.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.writing")
    try:
        _discard_leftovers(target)
        scratch.mkdir(parents=True)
        yield scratch
        (scratch / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _seal(scratch)
        _swap(scratch, target)
    except OSError as cause:
        raise ArtifactError(
            f"cannot write: {cause.strerror or cause}", where=str(target), fix=_remedy(cause)
        ) from cause
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, target: Path) -> None:
    """Put the finished folder in the target's place; a target that was there survives every failure."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    if not target.exists():
        os.rename(scratch, target)
    else:
        os.rename(target, aside)
        try:
            os.rename(scratch, target)
        except OSError:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def _remedy(cause: OSError) -> str:
    return {
        errno.ENOSPC: "free some space and resume",
        errno.EACCES: "choose a folder that you may write",
        errno.EROFS: "choose a folder on a writable file system",
        errno.EIO: "check the disk, then resume",
    }.get(cause.errno or 0, "see the reason above, then resume")


def _discard_leftovers(target: Path) -> None:
    """Tidy up after a killed process, whose lock on the run folder is gone with it; a target moved aside comes back."""
    for aside in target.parent.glob(f".{target.name}.*.replaced"):
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, target)
    for leftover in target.parent.glob(f".{target.name}.*.writing"):
        shutil.rmtree(leftover, ignore_errors=True)


def _seal(folder: Path) -> None:
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines.append(f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n")
        _sync(path)
    with (folder / SUMS).open("w", encoding="utf-8") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder: Path, *kinds: Kind) -> Artifact:
    """Open an artifact after checking all of it.

    Args:
        folder: where it lies.
        kinds: which kinds the caller can use; none accepts all.

    Raises:
        ArtifactError: names the file that is missing, unknown, changed or damaged, or the kind that does not fit.
    """
    try:
        listed = _listed(folder)
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {SUMS}
        if missing := sorted(listed.keys() - present):
            raise ArtifactError(
                f"{missing[0]} is missing", where=str(folder), fix="restore the file or run the stage again"
            )
        if unknown := sorted(present - listed.keys()):
            raise ArtifactError(f"{unknown[0]} does not belong to it", where=str(folder), fix="remove the file")
        for name, digest in listed.items():
            if _digest(folder / name) != digest:
                raise ArtifactError(
                    f"{name} is not what was written: its sha256 differs",
                    where=str(folder),
                    fix="restore the file or run the stage again",
                )
            if name.endswith(".safetensors"):
                check_safetensors(folder / name)
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except OSError as cause:
        raise ArtifactError(f"cannot be read: {cause}", where=str(folder)) from cause
    except ValidationError as error:
        raise ArtifactError(f"{CARD} is not one of ours: {error.errors()[0]['msg']}", where=str(folder)) from None
    if kinds and card.kind not in kinds:
        raise ArtifactError(f"is a {card.kind} artifact, needed is {' or '.join(kinds)}", where=str(folder))
    return Artifact(folder, card, _digest(folder / SUMS))


def _listed(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ArtifactError("no such folder", where=str(folder))
    path = folder / SUMS
    if not path.is_file():
        raise ArtifactError(
            f"has no {SUMS}: foreign, or never finished", where=str(folder), fix="name a folder that a stage wrote"
        )
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        digest, separator, name = line.partition("  ")
        parts = Path(name).parts
        if (
            len(digest) != 64
            or not separator
            or not parts
            or Path(name).is_absolute()
            or ".." in parts
            or name in found
        ):
            raise ArtifactError(f"{SUMS} line {number} is damaged", where=str(folder))
        found[name] = digest
    if CARD not in found:
        raise ArtifactError(f"{SUMS} does not list {CARD}", where=str(folder))
    return found


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file with a damaged header, a duplicate tensor name, a gap or an overlap.

    The safetensors library accepts duplicate names (the last wins) and checks no sums.

    Raises:
        ArtifactError: with the reason.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ArtifactError(f"tensor {twice[0]!r} is there twice", where=str(path))
        return dict(pairs)

    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER + 1
        if length > min(size - 8, MAX_HEADER):
            raise ArtifactError("is truncated or no safetensors file", where=str(path))
        try:
            header = json.loads(file.read(length), object_pairs_hook=unique)
        except (ValueError, RecursionError) as cause:
            raise ArtifactError(f"has a damaged header: {cause}", where=str(path)) from None
    spans = sorted(tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
    end = 0
    for begin, stop in spans:
        if begin != end or stop < begin:
            raise ArtifactError("has a gap or an overlap between tensors", where=str(path))
        end = stop
    if end != size - 8 - length:
        raise ArtifactError(f"holds {size - 8 - length} bytes of tensors, its header says {end}", where=str(path))
