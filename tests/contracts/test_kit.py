"""The author kit itself: what it imports, finds and measures."""

import json
import subprocess
import sys
from itertools import combinations

import pytest
import torch

import stackloom.testing as kit
from stackloom.core.errors import ConfigError, ErrorGroup
from stackloom.testing import build, contract_for, record, relative_error, tiny_parameters, tiny_shape, tiny_tokenizer

pytest_plugins = ["pytester"]
MUON = record("optimizer.muon")  # pytester forgets what a test imports, and SQLAlchemy cannot be imported twice


@pytest.mark.parametrize("module", ["stackloom.testing", "stackloom.testing.pytest_plugin"])
def test_loading_the_pytest_plugin_imports_no_torch(module):
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert module in loaded
    assert not {"torch", "transformers", "triton"} & set(loaded)


def test_every_public_name_is_there():
    for name in kit.__all__:
        assert getattr(kit, name).__doc__, name


@pytest.mark.parametrize("slot", ["attention", "data", "model", "optimizer", "transform"])
def test_slot_has_a_contract(slot):
    assert contract_for(f"{slot}.anything").is_contract


def test_contract_runs_once_per_dtype_of_the_manifest(pytester):
    pytester.makepyfile("from stackloom.testing import contract_for\n\nTestIt = contract_for('optimizer.muon')\n")
    found = pytester.runpytest_subprocess("--collect-only", "-q", "-k", "resumes", "-p", "no:cacheprovider")
    names = [line.rpartition("::")[2] for line in found.outlines if "::" in line]
    assert names == [f"test_resumes_bit_exactly[{dtype}]" for dtype in MUON.manifest.can.dtypes]


def test_plugin_that_is_not_installed_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer\.adamw'"):
        record("optimizer.adam")


def test_build_refuses_bad_options():
    with pytest.raises(ErrorGroup, match="did you mean 'lr'"):
        build("optimizer.adamw", [], lrr=1)


@pytest.mark.parametrize(
    "changes",
    [
        dict(pair)
        for pair in combinations(
            {"tied": True, "attention_bias": False, "qk_norm": False, "gated_mlp": False, "mlp_bias": True}.items(), 2
        )
    ],
)
def test_tiny_parameters_are_those_of_the_shape(changes):
    shape = tiny_shape(**changes)
    assert sum(parameter.numel() for _, parameter in tiny_parameters(shape)) == shape.parameters


def test_relative_error_sees_nan_and_a_zero_reference():
    one = torch.ones(3)
    assert relative_error(one, one) == 0
    assert relative_error(1.5 * one, one) == 0.5
    assert relative_error(one, 0 * one) == relative_error(one * float("nan"), one) == float("inf")
    assert relative_error(0 * one, 0 * one) == 0


def test_tiny_tokenizer_gives_text_back():
    tokenizer, text = tiny_tokenizer(), "naïve 漢字\n\t<|im_end|> 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == tokenizer.encode("<|im_end|>")[0] < len(tokenizer)
