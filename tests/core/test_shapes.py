from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackloom.core.errors import ConfigError
from stackloom.core.shapes import ModelShape

SMOL = ModelShape(
    name="smollm2", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152
)


def test_parameters_are_exact() -> None:
    assert SMOL.parameters == 134_515_008


def test_an_untied_head_adds_one_embedding() -> None:
    assert SMOL.model_copy(update={"tied": False}).parameters - SMOL.parameters == 49152 * 576


def test_a_mixture_activates_its_routed_experts_alone() -> None:
    shape = SMOL.model_copy(update={"experts": 8, "experts_per_token": 2})
    per_expert = 3 * 576 * 1536 * 30
    assert shape.parameters - shape.active_parameters == 6 * per_expert


def test_forward_flops_are_two_per_weight_and_token_plus_attention() -> None:
    assert SMOL.forward_flops(1, 0) == 2 * SMOL.parameters
    assert SMOL.forward_flops(1, 100) - SMOL.forward_flops(1, 0) == 2 * 2 * 30 * 9 * 64 * 100


def test_cache_bytes_count_keys_and_values() -> None:
    assert SMOL.cache_bytes(1, 2) == 2 * 30 * 3 * 64 * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no config\.json"),
        ("{", "cannot read"),
        ("[]", "no JSON object"),
        ('{"model_type": "vit"}', "num_hidden_layers"),
        ('{"num_hidden_layers": "2"}', "num_hidden_layers"),
    ],
)
def test_a_folder_that_is_no_model_says_why(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        ModelShape.from_folder(tmp_path)


def test_the_shape_of_a_folder_is_read_from_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "num_hidden_layers": 30,
                "hidden_size": 576,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "intermediate_size": 1536,
                "vocab_size": 49152,
                "tie_word_embeddings": True,
            }
        )
    )
    assert ModelShape.from_folder(tmp_path).parameters == SMOL.parameters
