"""A benchmark reports error beside speed, and nothing at all about an op whose contract is red."""

import dataclasses
import json

import pytest
import torch

from stackloom.kernels import bench
from stackloom.kernels.contract import Benchmark, ContractViolation
from stackloom.kernels.discovery import load_op


@pytest.fixture
def tiny_benchmark(monkeypatch):
    """Swaps rms_norm's benchmarks for one of 8 x 16 with a bar that anything meets, with three samples of it."""
    from stackloom.kernels.rms_norm import contract

    real = next(benchmark for benchmark in contract.CONTRACT.benchmarks if benchmark.device == "cpu")
    tiny = dataclasses.replace(
        real,
        name="tiny",
        make=lambda device: (torch.randn(8, 16), torch.randn(16), 1e-6),
        traffic=lambda *args: 1024,
        bar=0.0,
        quick=True,
    )
    monkeypatch.setattr(contract, "CONTRACT", dataclasses.replace(contract.CONTRACT, benchmarks=(tiny,)))
    monkeypatch.setattr(bench, "SAMPLES", 3)
    monkeypatch.setitem(bench.ROTATION_BYTES, "cpu", 10_000)
    return tiny


def test_a_row_starts_with_the_agreed_columns_in_order(tiny_benchmark):
    (row,) = bench.run(["rms_norm"], "cpu")
    assert (
        tuple(row)[:8] == ("name", "case", "ratio", "bar", "met", "floor_fraction", "error", "device") == bench.COLUMNS
    )
    assert (row["name"], row["case"], row["bar"], row["met"]) == ("rms_norm", "tiny", 0.0, True)
    assert row["ratio"] > 0
    assert row["implementation"] == "reference", "the interpreter is never timed"


def test_the_error_of_a_row_is_within_the_ops_budget(tiny_benchmark):
    (row,) = bench.run(["rms_norm"], "cpu")
    args = tiny_benchmark.make(torch.device("cpu"))
    assert 0 < row["error"] <= load_op("rms_norm").budget("forward", args[0], args[0])


def test_json_is_the_rows(tiny_benchmark, capsys):
    assert bench.main(["rms_norm", "--device", "cpu", "--json", "--quick"]) == 0
    assert [row["case"] for row in json.loads(capsys.readouterr().out)] == ["tiny"]


def test_a_missed_bar_is_an_exit_code(tiny_benchmark, monkeypatch, capsys):
    from stackloom.kernels.rms_norm import contract

    demanding = dataclasses.replace(tiny_benchmark, bar=1e9)
    monkeypatch.setattr(contract, "CONTRACT", dataclasses.replace(contract.CONTRACT, benchmarks=(demanding,)))
    assert bench.main(["rms_norm", "--device", "cpu"]) == 1
    assert "False" in capsys.readouterr().out


def test_no_number_is_printed_on_a_red_contract(tiny_benchmark, monkeypatch, capsys):
    from stackloom.kernels.rms_norm import contract

    def broken(device, implementation):
        raise ContractViolation("planted")

    monkeypatch.setattr(contract, "CONTRACT", dataclasses.replace(contract.CONTRACT, laws={"a broken law": broken}))
    assert bench.main(["rms_norm", "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "rms_norm is red on cpu" in printed.err
    assert "a broken law: planted" in printed.err


def test_an_unknown_op_and_an_absent_device_are_usage_errors(capsys):
    assert bench.main(["nonesuch"]) == 2
    assert "no op 'nonesuch'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert bench.main(["rms_norm", "--device", "cuda"]) == 2
        assert "no CUDA device" in capsys.readouterr().err


def test_every_benchmark_compares_like_with_like(op):
    """Ours and the truth agree in shape, and so does any baseline that claims the same result."""
    for benchmark in op.contract.benchmarks:
        assert isinstance(benchmark, Benchmark)
        assert benchmark.function in {*op.public, "backward"}
        assert benchmark.device in {"cpu", "cuda", "any"}
    assert any(benchmark.quick and benchmark.device != "cuda" for benchmark in op.contract.benchmarks)
