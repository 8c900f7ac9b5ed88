"""Every kernel compiles for sm_90 within its limits and as stored; each limit is an assertion that can fail."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from stackloom.kernels.compile_gate import changes, main
from stackloom.kernels.discovery import op_names

GATE = ("-m", "stackloom.kernels.compile_gate")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    import os
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("planted_kernels.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_sound_kernel_passes_and_its_tensor_core_instruction_is_counted(planted):
    assert planted["sound"]["violations"] == []
    assert planted["sound"]["row"]["tensor_core"]["HGMMA"] > 0
    assert 0 < planted["sound"]["row"]["shared"] <= 232_448


def test_a_planted_spill_is_caught(planted):
    assert planted["spilling"]["row"]["spills"] > 0
    assert any("spills registers" in violation for violation in planted["spilling"]["violations"])
    assert any("bytes of stack" in violation for violation in planted["spilling"]["violations"])


def test_a_planted_excess_of_shared_memory_is_caught(planted):
    assert any(
        "bytes of shared memory, a block has 232448" in v for v in planted["too much shared memory"]["violations"]
    )


def test_a_false_claim_of_an_instruction_is_caught(planted):
    assert planted["claims int8"]["violations"] == ["claims IGMMA but its machine code has none"]


def test_any_change_of_a_stored_figure_is_told():
    row = {"registers": 40, "stack": 0}
    assert changes("op", {"k[a]": row}, {"k[a]": row}) == []
    assert changes("op", {"k[a]": row}, {"k[a]": {"registers": 41, "stack": 0}}) == ["op: k[a] registers was 40, is 41"]
    assert changes("op", {"k[a]": row}, {}) == ["op: k[a] is in compiled.json but is compiled no more"]
    assert changes("op", {}, {"k[a]": row}) == ["op: k[a] is new and not in compiled.json"]


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_one_shipped_kernel_holds_its_limits_and_its_stored_figures(python):
    result = python(*GATE, "int4_pack", "--only", "_pack_kernel[8x256 aligned]")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "_pack_kernel[8x256 aligned]" in result.stdout


@pytest.mark.slow
def test_every_op_holds_the_gate_and_stores_its_figures(python):
    result = python(*GATE, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert set(report["rows"]) == set(op_names())
    assert all(report["rows"].values()), "an op compiled nothing"
