"""The embedded checkpoint is unpacked once; what lies in the cache is what was unpacked, or is made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from stackloom.core.errors import ArtifactError
from stackloom.plugins.model.hf import unpacked as module
from stackloom.plugins.model.hf.config import HFConfig
from stackloom.plugins.model.hf.embedded import embedded_file


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were unpacked into; each gets one file that stands for the weights."""
    calls: list[Path] = []
    original = module._unpack

    def unpack(gguf: Path, folder: Path) -> None:
        calls.append(folder)
        monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Saved("model.safetensors"))
        monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", lambda *_, **__: Saved("tokenizer.json"))
        original(gguf, folder)

    monkeypatch.setattr(module, "_unpack", unpack)
    monkeypatch.setenv("STACKLOOM_CACHE", str(tmp_path / "cache"))
    module.unpacked.cache_clear()
    yield calls
    module.unpacked.cache_clear()


class Saved:
    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / self.name).write_bytes(self.name.encode() * 100)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"four bits each")
    return path


def test_a_file_is_unpacked_once(made: list[Path], gguf: Path) -> None:
    first = module.unpacked(gguf)
    module.unpacked.cache_clear()
    assert module.unpacked(gguf) == first
    assert len(made) == 1
    assert os.listdir(first.parent) == [first.name]


def test_another_file_gets_another_folder(made: list[Path], gguf: Path) -> None:
    first = module.unpacked(gguf)
    gguf.write_bytes(b"other weights")
    module.unpacked.cache_clear()
    assert module.unpacked(gguf) != first
    assert len(made) == 2


def test_a_flipped_bit_or_a_missing_file_is_made_good(made: list[Path], gguf: Path) -> None:
    folder = module.unpacked(gguf)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    module.unpacked.cache_clear()
    assert (module.unpacked(gguf) / "model.safetensors").read_bytes() == content
    weights.unlink()
    module.unpacked.cache_clear()
    assert (module.unpacked(gguf) / "model.safetensors").read_bytes() == content
    assert len(made) == 3


def test_a_process_that_was_second_takes_what_the_first_made(
    made: list[Path], gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = module._unpack

    def slower(source: Path, folder: Path) -> None:
        monkeypatch.setattr(module, "_unpack", unpack)
        module.unpacked.__wrapped__(source)
        unpack(source, folder)

    monkeypatch.setattr(module, "_unpack", slower)
    folder = module.unpacked(gguf)
    assert module._intact(folder)
    assert len(made) == 2
    assert os.listdir(folder.parent) == [folder.name]


def test_a_cache_that_cannot_be_written_is_named(
    made: list[Path], gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STACKLOOM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ArtifactError, match="cannot be unpacked") as caught:
        module.unpacked(gguf)
    assert "STACKLOOM_CACHE" in (caught.value.fix or "")


@pytest.mark.slow
def test_the_folder_holds_the_weights_that_transformers_reads_from_the_file() -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    file = embedded_file()
    assert file is not None
    direct = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    ours = HFConfig(checkpoint="smollm2-135m-instruct").build().load(device="cpu", dtype="bfloat16")
    expected = direct.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
