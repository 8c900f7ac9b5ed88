"""Settings of every test; asks for Triton's interpreter before any other conftest can import triton."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the kernel tests also run on a bare image
    pass
else:
    settings.register_profile("stackloom", deadline=None, max_examples=100)
    settings.load_profile("stackloom")


def _wants_gpu(arguments: list[str]) -> bool:
    """Whether `-m` selects the gpu tests, read from the command line because options are parsed after conftests."""
    marks = [value for flag, value in itertools.pairwise(arguments) if flag == "-m"]
    marks += [word.removeprefix("-m") for word in arguments if word.startswith("-m") and word != "-m"]
    return any("gpu" in mark.replace("not gpu", "") for mark in marks)


if Path(sys.argv[0]).name in {"pytest", "__main__.py"} and _wants_gpu(sys.argv[1:]):
    os.environ.pop("TRITON_INTERPRET", None)
else:
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it decorates
    if "triton" in sys.modules:
        raise pytest.UsageError("triton was imported before tests/conftest.py could ask for its interpreter")
    try:
        from stackloom.kernels.tooling import interpreter
    except ModuleNotFoundError as absent:
        if absent.name not in {"triton", "torch"}:
            raise
    else:
        interpreter.install()


def pytest_configure(config: pytest.Config) -> None:
    """numpy's warning comes from the interpreter itself."""
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton")
