"""Artifacts on failing disks and with damaged bytes: whole or not there, refused by name."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stackloom.artifacts import Card, check_safetensors, read, writing
from stackloom.core.errors import ArtifactError

pytestmark = pytest.mark.faults
CARD = Card(kind="model", key="k", made_by="train")


def write(target: Path, value: float = 1.0) -> None:
    with writing(target, CARD) as folder:
        save_file({"a": torch.full((4,), value), "b": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "inner").mkdir()
        (folder / "inner" / "notes.txt").write_text("hello")


class Failing:
    """Fails the n-th call of the operations through which an artifact reaches the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, nth: int, code: int) -> None:
        self.folder, self.nth, self.code, self.calls = str(folder), nth, code, 0
        for module, name in ((os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "open"), (io, "open")):
            monkeypatch.setattr(module, name, self.wrapped(getattr(module, name), name))

    def wrapped(self, real: Callable[..., object], name: str) -> Callable[..., object]:
        def call(*arguments, **named):
            where = str(arguments[0])
            mode = str(arguments[1]) if name == "open" and len(arguments) > 1 else str(named.get("mode", ""))
            if name == "fsync" or (where.startswith(self.folder) and (name != "open" or set(mode) & set("wax"))):
                self.calls += 1
                if self.calls == self.nth:
                    raise OSError(self.code, os.strerror(self.code), where)
            return real(*arguments, **named)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_at_the_nth_operation_leaves_the_old_state_for_every_n(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, existing: bool
) -> None:
    failures = 0
    for nth in range(1, 200):
        target = tmp_path / str(nth) / "artifact"
        target.parent.mkdir()
        if existing:
            write(target, 1.0)
        with monkeypatch.context() as patch:
            failing = Failing(patch, target.parent, nth, code)
            try:
                write(target, 2.0)
                succeeded = True
            except ArtifactError as error:
                succeeded = False
                assert error.fix
            reached = failing.calls >= nth
        if not reached:
            break
        failures += not succeeded
        if existing:
            assert read(target).card == CARD
        elif target.exists():
            read(target)
        assert not succeeded or read(target).card == CARD
        write(target, 3.0)
        read(target)
        assert [path.name for path in target.parent.iterdir()] == ["artifact"]
    else:
        pytest.fail("more operations than expected")
    assert failures >= 8


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is not what was written"),
    "a truncation": (lambda folder: os.truncate(folder / "model.safetensors", 40), "model.safetensors is not what"),
    "a missing shard": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a foreign file": (lambda folder: (folder / "extra.bin").write_text("x"), "extra.bin does not belong"),
    "no list of sums": (lambda folder: (folder / "SHA256SUMS").unlink(), "has no SHA256SUMS"),
    "a damaged list": (lambda folder: (folder / "SHA256SUMS").write_text("zz  artifact.json\n"), "line 1 is damaged"),
    "a path outside": (lambda folder: (folder / "SHA256SUMS").write_text("0" * 64 + "  ../x\n"), "line 1 is damaged"),
    "a changed card": (lambda folder: flip(folder / "artifact.json"), "artifact.json is not what was written"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "artifact")
    act, message = DAMAGES[damage]
    act(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path / "artifact")


def test_swapped_shards_are_refused(tmp_path: Path) -> None:
    with writing(tmp_path / "artifact", CARD) as folder:
        for name, value in (("one", 1.0), ("two", 2.0)):
            save_file({name: torch.full((4,), value)}, folder / f"{name}.safetensors")
    one, two = (tmp_path / "artifact" / f"{name}.safetensors" for name in ("one", "two"))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    with pytest.raises(ArtifactError, match="is not what was written"):
        read(tmp_path / "artifact")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="is a model artifact, needed is adapter"):
        read(tmp_path / "artifact", "adapter")


def safetensors(path: Path, header: str, data: bytes = b"\0" * 8) -> Path:
    raw = header.encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
HEADERS = {
    "is there twice": '{"a": ' + ENTRY % (0, 4) + ', "a": ' + ENTRY % (4, 8) + "}",
    "gap or an overlap": '{"a": ' + ENTRY % (0, 4) + ', "b": ' + ENTRY % (2, 8) + "}",
    "its header says 4": '{"a": ' + ENTRY % (0, 4) + "}",
    "damaged header": "{",
}


@pytest.mark.parametrize("message", HEADERS)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        check_safetensors(safetensors(tmp_path / "x.safetensors", HEADERS[message]))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 8 + b"{}"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="truncated or no safetensors"):
        check_safetensors(path)


def test_a_true_header_is_accepted(tmp_path: Path) -> None:
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [begin, begin + 4]} for name, begin in (("a", 0), ("b", 4))
    }
    check_safetensors(safetensors(tmp_path / "x.safetensors", json.dumps(header)))
