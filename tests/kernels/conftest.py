"""Collects every op's contract. Without ``-m gpu`` kernels are interpreted on the CPU (see ../conftest.py); with it
they run on the CUDA device."""

import importlib.util
import os
import subprocess
import sys

import pytest


def _wants_gpu(config: pytest.Config) -> bool:
    return os.environ.get("TRITON_INTERPRET") != "1"  # ../conftest.py reads -m


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises by contract: `op`, `subject` (op, implementation), and `case`, `law` or `refusal` on top of a
    subject."""
    wanted = {"case", "quick_case", "law", "refusal"} & set(metafunc.fixturenames)
    if "op" in metafunc.fixturenames:
        ops = _ops()
        metafunc.parametrize("op", ops, ids=[op.name for op in ops])
    if "subject" not in metafunc.fixturenames:
        return
    gpu = _wants_gpu(metafunc.config)
    marks = [pytest.mark.gpu] if gpu else []
    kinds = {
        "law": lambda c: list(c.laws.items()),
        "refusal": lambda c: c.refusals,
        "case": lambda c: c.cases,
        "quick_case": lambda c: c.cases if gpu else [case for case in c.cases if case.quick],
    }
    parameters = []
    for op in _ops():
        for implementation in _installed(op):
            for kind in wanted:
                for item in kinds[kind](op.contract):
                    label = item[0] if kind == "law" else item.name
                    parameters.append(
                        pytest.param((op, implementation), item, marks=marks, id=f"{op.name}-{implementation}-{label}")
                    )
            if not wanted:
                parameters.append(pytest.param((op, implementation), marks=marks, id=f"{op.name}-{implementation}"))
    metafunc.parametrize(["subject", *wanted], parameters)


def _installed(op) -> list[str]:
    """Without triton, that a triton implementation says so is a law of test_selection.py; there is no other to test."""
    present = importlib.util.find_spec("triton") is not None
    return [name for name in op.dispatch.implementations if present or name != "triton"]


def _ops():
    from stackloom.kernels.discovery import load_op, op_names

    return [load_op(name) for name in op_names()]


@pytest.fixture
def device(request: pytest.FixtureRequest):
    import torch

    if not _wants_gpu(request.config):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture
def python():
    """Runs a Python program in a child process: `python("-m", "module")` or `python(path)`; by default without the
    interpreter."""

    def run(*arguments: object, interpret: bool = False, **environment: str) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        inherited |= {"TRITON_INTERPRET": "1"} if interpret else {}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
