"""`stackloom bench engine --device cuda`: the engine on a GPU against `transformers.generate`.

Models have the shapes of published ones and random weights, so that no checkpoint is needed; speed does not depend on
the values. Greedy, bfloat16, the same prompts and lengths for both, and no row unless every token agrees with an
unpadded forward pass of transformers up to bfloat16's error, as in `engine_bench`. The floor is reading the weights
once per step at the device's measured copy bandwidth.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stackloom.core.generation import Request, Sampling
from stackloom.engine.engine import Engine
from stackloom.engine_bench import Agreement, compare, draw_prompts, generate, seconds_of, versions
from stackloom.kernels.bench import copy_bandwidth
from stackloom.testing import tiny_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
}  # fmt: skip
BATCHES = (1, 16, 64)


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure every shape at every batch size.

    Args:
        quick: the smallest shape only, and fewer tokens.

    Returns:
        Rows as core.rows.BenchRow has them, without bars: the project sets none here. `eager_tokens_per_second` is the
        engine's without CUDA graphs.

    Raises:
        EngineError: an output disagrees; nothing is returned.
    """
    shapes = list(SHAPES)[:1] if quick else list(SHAPES)
    bandwidth = copy_bandwidth(torch.device("cuda", 0))
    rows = []
    for shape in shapes:
        model, exact = _models(SHAPES[shape], 0)
        rows += [measure(shape, model, exact, batch, 32 if quick else 64, bandwidth) for batch in BATCHES]
    return rows


def _models(sizes: dict[str, Any], seed: int) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The model in bfloat16, and the same weights in float32."""
    config = LlamaConfig(**sizes, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(seed)
    with torch.device("cuda"):
        made: list[Any] = [LlamaForCausalLM(config) for _ in range(2)]
    model, exact = made[0].to(torch.bfloat16).eval(), made[1].eval()
    exact.load_state_dict(model.state_dict())
    return model, exact


def measure(
    shape: str,
    model: LlamaForCausalLM,
    exact: LlamaForCausalLM,
    batch: int,
    new_tokens: int,
    bandwidth: float,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure one batch size.

    Raises:
        EngineError: an output disagrees with transformers beyond bfloat16's error.
    """
    prompts = draw_prompts(batch, model.config.vocab_size)
    requests = [Request(tuple(prompt), Sampling(max_tokens=new_tokens)) for prompt in prompts]
    options: dict[str, Any] = {"max_batch": batch, "end_tokens": ()}
    tokenizer = tiny_tokenizer()
    with Engine(model, tokenizer, **options) as engine, Engine(model, tokenizer, graphs=False, **options) as eager:
        agreement: Agreement = compare(model, exact, prompts, engine.generate_all(requests))
        calls: list[Callable[[], object]] = [
            lambda: engine.generate_all(requests),
            lambda: generate(model, prompts, new_tokens),
            lambda: eager.generate_all(requests),
        ]
        for call in calls:
            call()
        seconds = [[_synchronised(call) for call in calls] for _ in range(rounds)]
    ours, baseline, plain = (list(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(b / o for o, b in zip(ours, baseline, strict=True))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    tokens = batch * new_tokens
    return {
        "name": "engine",
        "case": f"{shape} shape, random bfloat16 weights, batch {batch}, {new_tokens} new tokens",
        "ratio": round(ratio, 3),
        "bar": None,
        "met": None,
        "floor_fraction": round(new_tokens * weights / bandwidth / statistics.median(ours), 3),
        "error": round(agreement.error, 5),
        "device": torch.cuda.get_device_name(),
        "baseline": "transformers.generate",
        "baseline_error": round(agreement.baseline_error, 5),
        "close_calls": agreement.close_calls,
        "tokens_per_second": round(tokens / statistics.median(ours), 1),
        "eager_tokens_per_second": round(tokens / statistics.median(plain), 1),
        "baseline_tokens_per_second": round(tokens / statistics.median(baseline), 1),
        "runs": rounds,
        "spread": round(statistics.median(abs(a / b - 1) for a, b in pairwise(baseline)), 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions() | {"cuda": torch.version.cuda},
    }


def _synchronised(call: Callable[[], object]) -> float:
    def finished() -> None:
        call()
        torch.cuda.synchronize()

    return seconds_of(finished)
