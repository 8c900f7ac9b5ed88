"""The embedded checkpoint as a folder of Hugging Face files, made from its GGUF file once and kept.

transformers reads a GGUF file in half a minute, and does so for config, weights and tokenizer alike; the folder takes a
second. It lies in `STACKLOOM_CACHE`, or the user's cache folder, under the digest of the file that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import torch
import transformers
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from stackloom.core.errors import ArtifactError
from stackloom.plugins.model.hf.config import EMBEDDED

SUMS = "sha256.json"


def cache_folder() -> Path:
    """Return `STACKLOOM_CACHE`, or the user's cache folder."""
    if given := os.environ.get("STACKLOOM_CACHE"):
        return Path(given).expanduser().absolute()
    return user_cache_path("stackloom", appauthor=False)


@cache
def unpacked(gguf: Path) -> Path:
    """Return the folder made from a GGUF file; makes it where it is missing or damaged. Asked once per process.

    Weights are kept in float32, which holds what the file's 4-bit blocks stand for exactly.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    folder = cache_folder() / f"{EMBEDDED}-{_sha256(gguf)[:16]}-transformers-{transformers.__version__}"
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
            made = Path(scratch) / "made"
            _unpack(gguf, made)
            if folder.exists() and not _intact(folder):
                os.replace(folder, Path(scratch) / "damaged")
            try:
                os.replace(made, folder)
            except OSError:
                if not _intact(folder):  # another process was not first; it could not be moved
                    raise
    except OSError as cause:
        raise ArtifactError(
            f"cannot be unpacked: {cause.strerror or cause}",
            where=str(folder),
            fix="free 600 MB there, or set STACKLOOM_CACHE to a folder that you can write",
        ) from cause
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    where, options = str(gguf.parent), {"gguf_file": gguf.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, **options).save_pretrained(folder)
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def _intact(folder: Path) -> bool:
    """Whether the folder holds what was written into it, to the byte."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return all(_sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
