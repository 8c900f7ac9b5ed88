"""Settings of every test."""

from __future__ import annotations

import os
import sys

import pytest

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the kernel tests also run on a bare image
    pass
else:
    settings.register_profile("stackloom", deadline=None, max_examples=100)
    settings.load_profile("stackloom")


def pytest_configure(config: pytest.Config) -> None:
    """Ask for Triton's interpreter before anything imports triton, which reads the variable when it decorates.

    With `-m gpu` kernels run on the device instead.
    """
    if "gpu" in config.getoption("markexpr", "").replace("not gpu", ""):
        os.environ.pop("TRITON_INTERPRET", None)
        return
    os.environ["TRITON_INTERPRET"] = "1"
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton")
    if "triton" in sys.modules:
        raise pytest.UsageError("triton was imported before tests/conftest.py could ask for its interpreter")
    try:
        from stackloom.kernels.tooling import interpreter
    except ModuleNotFoundError as absent:
        if absent.name not in {"triton", "torch"}:
            raise
    else:
        interpreter.install()
