from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.touch import Touch, overlap

segment = st.sampled_from(["layers", "0", "1", "self_attn", "q_proj", "*", "q_*", "*_proj", "[0|2]", "[q_proj|k_proj]"])
path = st.lists(segment, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        ("model.layers.*.self_attn", "model.layers.3.self_attn.q_proj", True),
        ("model.layers.[0|2].mlp", "model.layers.1.mlp", False),
        ("model.layers.[0|2].mlp", "model.layers.*.mlp.up_proj", True),
        ("model.layers.*.self_attn.q_*", "model.layers.*.self_attn.*_proj", True),
        ("model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.k_proj", False),
        ("model", "lm_head", False),
        ("a_*", "b_*", False),
    ],
)
def test_paths_meet_when_one_module_lies_in_both_subtrees(one: str, two: str, meet: bool) -> None:
    assert overlap(one, two) is meet


@given(path, path)
def test_overlap_is_symmetric(one: str, two: str) -> None:
    assert overlap(one, two) == overlap(two, one)


@given(path)
def test_a_path_meets_itself_and_its_subtree(one: str) -> None:
    assert overlap(one, one)
    assert overlap(one, f"{one}.weight")


@given(path, path, *[st.sampled_from(["read", "rewrite", "wrap", "replace"])] * 2)
def test_a_clash_does_not_depend_on_the_order(one: str, two: str, a: str, b: str) -> None:
    left, right = Touch(nodes=(one,), mode=a), Touch(nodes=(two,), mode=b)
    assert left.clash(right) == right.clash(left)


@pytest.mark.parametrize(
    ("a", "b", "clash"),
    [
        ("read", "replace", False),
        ("wrap", "rewrite", False),
        ("wrap", "wrap", True),
        ("rewrite", "rewrite", True),
        ("replace", "replace", True),
        ("replace", "wrap", True),
        ("replace", "rewrite", True),
        ("read", "read", False),
    ],
)
def test_modes_that_depend_on_an_order_nobody_gave_clash(a: str, b: str, clash: bool) -> None:
    assert bool(Touch(nodes=("x.*",), mode=a).clash(Touch(nodes=("x.y",), mode=b))) is clash


def test_a_clash_names_the_most_specific_node() -> None:
    assert (
        Touch(nodes=("layers.*",), mode="replace").clash(Touch(nodes=("layers.3.mlp",), mode="wrap")) == "layers.3.mlp"
    )
