"""`stackloom bench engine`: the engine against `transformers.generate`, its own matrix products alone, and itself.

SmolLM2-135M-Instruct in the dtype that this CPU is fast in (bf16 where it has instructions for it, else fp32), greedy,
end tokens disabled, the same prompts and lengths for all. What is compared is timed in turn, round after round; a ratio
is the median of the rounds' ratios. No row is returned unless every token of every sequence agrees with an unpadded
forward pass of transformers, up to the dtype's error. Further rows: int8 weights against the model's own dtype, and
thinkers that share a prompt against thinkers that do not.

Shape legend: N sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stackloom.core.devices import find_device
from stackloom.core.errors import EngineError
from stackloom.core.generation import Completion, Request, Sampling
from stackloom.engine.engine import Engine
from stackloom.engine.linear import project
from stackloom.plugins.model.hf.config import HFConfig

CHECKPOINT = "smollm2-135m-instruct"
EXACT = {"bfloat16": "float32", "float32": "float64"}  # what a dtype's error is measured against
BARS = {1: 1.5, 16: 1.5, 32: 1.3}  # times the speed of transformers.generate, by batch
FLOOR_BAR = 0.75
INT8 = {("lm_head",): 1.25, (): 1.5}  # times the speed of the model's own dtype at batch 1, by layers that are kept
THINKERS, SHARED = 8, 384  # sequences that begin alike, and tokens that they share
SHORTEST, LONGEST = 24, 48  # tokens of a prompt


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure the engine at batch 1, 16 and 32, with int8 weights and with a shared prompt, on two threads.

    Args:
        quick: fewer tokens per sequence; as many rounds.

    Returns:
        Rows as core.rows.BenchRow has them. `floor_fraction` is floor time over ours, the floor being the faster of
        plain and prepacked matrix products over exactly the tokens that are needed; `met` says whether both bars are
        met. `error` is the RMS difference of our log-probabilities from those of the next wider dtype, in nats.

    Raises:
        ArtifactError: the checkpoint is not installed.
        EngineError: an output disagrees; nothing is returned.
    """
    hf = HFConfig(checkpoint=CHECKPOINT).build()
    dtype = find_device("cpu").dtype
    model, tokenizer = hf.load(device="cpu", dtype=dtype), hf.tokenizer()
    exact = hf.load(device="cpu", dtype=EXACT[dtype])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        new_tokens = 24 if quick else 64
        rows = [measure(model, exact, tokenizer, batch, new_tokens) for batch in BARS]
        rows += [quantized(hf, dtype, model, tokenizer, bar, exclude, new_tokens) for exclude, bar in INT8.items()]
        return [*rows, shared_prompt(model, exact, tokenizer, new_tokens)]
    finally:
        torch.set_num_threads(threads)


def measure(
    model: PreTrainedModel,
    exact: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: int,
    new_tokens: int,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure one batch size.

    Raises:
        EngineError: an output disagrees with transformers beyond the dtype's error.
    """
    prompts = draw_prompts(batch, model.config.vocab_size)
    engine = Engine(model, tokenizer, max_batch=batch, end_tokens=())
    requests = [Request(tuple(prompt), Sampling(max_tokens=new_tokens)) for prompt in prompts]
    agreement = compare(model, exact, prompts, engine.generate_all(requests))
    floors = [floor(model, prompts, new_tokens, prepacked=prepacked) for prepacked in (False, True)]
    calls: list[Callable[[], object]] = [
        lambda: engine.generate_all(requests),
        lambda: generate(model, prompts, new_tokens),
        *floors,
    ]
    for call in calls:
        call()
    seconds = [[seconds_of(call) for call in calls] for _ in range(rounds)]
    engine.close()
    ours, baseline, plain, packed = (list(column) for column in zip(*seconds, strict=True))
    lowest = [min(pair) for pair in zip(plain, packed, strict=True)]
    ratio = statistics.median(b / o for b, o in zip(baseline, ours, strict=True))
    fraction = statistics.median(f / o for f, o in zip(lowest, ours, strict=True))
    tokens = batch * new_tokens
    return {
        "name": "engine",
        "case": f"SmolLM2-135M {str(model.dtype).removeprefix('torch.')}, batch {batch}, "
        f"prompts of {SHORTEST} to {LONGEST}, {new_tokens} new tokens",
        "ratio": round(ratio, 3),
        "bar": BARS.get(batch),
        "met": ratio >= BARS.get(batch, 0.0) and fraction >= FLOOR_BAR,
        "floor_fraction": round(fraction, 3),
        "error": round(agreement.error, 5),
        "device": find_device("cpu").title,
        "floor_bar": FLOOR_BAR,
        "plain_floor_fraction": round(statistics.median(f / o for f, o in zip(plain, ours, strict=True)), 3),
        "baseline_error": round(agreement.baseline_error, 5),
        "close_calls": agreement.close_calls,
        "tokens_per_second": round(tokens / statistics.median(ours), 1),
        "baseline_tokens_per_second": round(tokens / statistics.median(baseline), 1),
        "floor_tokens_per_second": round(tokens / statistics.median(lowest), 1),
        "runs": rounds,
        "spread": round(statistics.median(abs(a / b - 1) for a, b in pairwise(baseline)), 3),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def quantized(
    hf: Any,
    dtype: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bar: float,
    exclude: Sequence[str],
    new_tokens: int,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure int8 weights and activations against the model's own dtype, both in the engine, at batch 1.

    Args:
        hf, dtype, model, tokenizer: the model.
        bar: on the ratio.
        exclude: patterns of layers that stay as they are.
        new_tokens, rounds: as in `measure`.

    Raises:
        EngineError: an output disagrees with a forward pass of the quantized model.
    """
    from stackloom.plugins.quantizer.rtn.config import RTNConfig

    small, exact = (hf.load(device="cpu", dtype=each) for each in (dtype, EXACT[dtype]))
    for each in (small, exact):
        if not exclude:  # the head shares its weight with the embedding, which stays as it is
            each.lm_head.weight = nn.Parameter(each.lm_head.weight.detach().clone())
        RTNConfig(scheme="w8a8", exclude=tuple(exclude)).build().quantize(each, [])
    prompts = draw_prompts(1, model.config.vocab_size)
    requests = [Request(tuple(prompt), Sampling(max_tokens=new_tokens)) for prompt in prompts]
    with (
        Engine(small, tokenizer, max_batch=1, end_tokens=()) as ours,
        Engine(model, tokenizer, max_batch=1, end_tokens=()) as baseline,
    ):
        agreement = compare(small, exact, prompts, ours.generate_all(requests))
        baseline.generate_all(requests)
        seconds = [
            [seconds_of(lambda: ours.generate_all(requests)), seconds_of(lambda: baseline.generate_all(requests))]
            for _ in range(rounds)
        ]
    kept = "head kept" if exclude else "head too"
    case = f"SmolLM2-135M int8 ({kept}) over {dtype}, batch 1, {new_tokens} new tokens"
    return _row(case, bar, seconds, new_tokens) | {"error": round(agreement.error, 5)}


def shared_prompt(
    model: PreTrainedModel,
    exact: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new_tokens: int,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure thinkers over one prompt, computed once, against as many over prompts that differ from the start.

    Raises:
        EngineError: an output disagrees.
    """
    draw = torch.Generator().manual_seed(0)
    one = torch.randint(100, model.config.vocab_size, (SHARED,), generator=draw).tolist()
    alike = [one] * THINKERS
    apart = [[100 + number, *one[1:]] for number in range(THINKERS)]
    with Engine(model, tokenizer, max_batch=THINKERS, end_tokens=(), prefix_bytes=0) as engine:

        def think(prompts: Sequence[Sequence[int]]) -> list[Completion]:
            sampling = Sampling(max_tokens=new_tokens)
            return engine.generate_all([Request(tuple(p), sampling, key=str(n)) for n, p in enumerate(prompts)])

        agreement = compare(model, exact, alike, think(alike))
        think(apart)
        seconds = [[seconds_of(lambda: think(alike)), seconds_of(lambda: think(apart))] for _ in range(rounds)]
    dtype = str(model.dtype).removeprefix("torch.")
    case = f"SmolLM2-135M {dtype}, {THINKERS} thinkers over one prompt of {SHARED}, {new_tokens} new tokens"
    return _row(case, None, seconds, THINKERS * new_tokens) | {"error": round(agreement.error, 5)}


def _row(case: str, bar: float | None, seconds: Sequence[Sequence[float]], tokens: int) -> dict[str, Any]:
    """Return a row of (ours, baseline) seconds per round."""
    ours, baseline = zip(*seconds, strict=True)
    ratio = statistics.median(b / o for o, b in seconds)
    return {
        "name": "engine",
        "case": case,
        "ratio": round(ratio, 3),
        "bar": bar,
        "met": None if bar is None else ratio >= bar,
        "floor_fraction": None,
        "error": None,
        "device": find_device("cpu").title,
        "tokens_per_second": round(tokens / statistics.median(ours), 1),
        "baseline_tokens_per_second": round(tokens / statistics.median(baseline), 1),
        "runs": len(seconds),
        "spread": round(statistics.median(abs(a / b - 1) for a, b in pairwise(baseline)), 3),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return what a figure depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@dataclass(frozen=True)
class Agreement:
    """How an engine's completions compare with transformers on the same tokens.

    Attributes:
        error, baseline_error: RMS difference of log-probabilities from the exact model's, ours and transformers', in
            nats.
        close_calls: tokens that differ from transformers' choice within the dtype's error.
    """

    error: float
    baseline_error: float
    close_calls: int


def compare(
    model: PreTrainedModel,
    exact: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
) -> Agreement:
    """Feed every sequence unpadded to transformers and look at each generated token.

    A token may differ from the likeliest one only where the gap of their logits is within twice the largest difference
    between the model's logits and the exact one's at that position.

    Args:
        model: whose generation is compared.
        exact: the same weights in a wider dtype.
        prompts: what the engine continued.
        completions: greedy ones.

    Raises:
        EngineError: a token differs by more.
    """
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    close_calls = 0
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids_T = torch.tensor([*prompt, *completion.token_ids], device=model.device)
        chosen_T1 = torch.tensor(completion.token_ids, device=model.device)[:, None]
        with torch.inference_mode():
            logits_TV, exact_TV = (
                which(ids_T[None, :-1], use_cache=False, logits_to_keep=len(chosen_T1)).logits[0].to(exact.dtype)
                for which in (model, exact)
            )
        gap_T = logits_TV.amax(-1) - logits_TV.gather(1, chosen_T1)[:, 0]
        allowed_T = 2 * (logits_TV - exact_TV).abs().amax(-1)
        if bool((wrong_T := gap_T > allowed_T).any()):
            at = int(wrong_T.nonzero()[0])
            raise EngineError(
                f"token {at} of sequence {place} is {gap_T[at]:.3f} below transformers' choice, "
                f"the dtype's error allows {allowed_T[at]:.3f}",
                where="engine",
            )
        close_calls += int((chosen_T1[:, 0] != logits_TV.argmax(-1)).sum())
        truth_T, theirs_T = (w.log_softmax(-1).gather(1, chosen_T1)[:, 0].double().cpu() for w in (exact_TV, logits_TV))
        ours.append(torch.tensor(completion.logprobs, dtype=torch.float64) - truth_T)
        theirs.append(theirs_T - truth_T)
    error, baseline_error = (float(torch.cat(part).square().mean().sqrt()) for part in (ours, theirs))
    return Agreement(error, baseline_error, close_calls)


def draw_prompts(batch: int, vocabulary: int) -> list[list[int]]:
    """Return random prompts of lengths that differ."""
    draw = torch.Generator().manual_seed(batch)
    sizes = torch.linspace(SHORTEST, LONGEST, batch).round().int().tolist()
    return [torch.randint(100, vocabulary, (size,), generator=draw).tolist() for size in sizes]


def generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Tensor:
    """Continue a left-padded batch with transformers, greedy, end tokens disabled; (N, longest + new_tokens)."""
    longest = max(map(len, prompts))
    ids_NT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_NT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ids_NT, mask_NT = ids_NT.to(model.device), mask_NT.to(model.device)
    make: Any = transformers.GenerationConfig
    options = make(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    options.eos_token_id = None
    with torch.inference_mode():
        call: Any = model.generate
        result: Tensor = call(ids_NT, attention_mask=mask_NT, generation_config=options)
    if result.shape[1] != longest + new_tokens:
        raise EngineError(f"the baseline made {result.shape[1] - longest} tokens instead of {new_tokens}")
    return result


def floor(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, *, prepacked: bool
) -> Callable[[], None]:
    """Return a call of the matrix products alone: one pass over all prompt tokens, then one per further token.

    Args:
        model: whose linear layers are multiplied.
        prompts, new_tokens: the work.
        prepacked: fused and laid out as the engine has them, or as transformers calls them.
    """
    decoder: Any = model.model
    groups: list[list[nn.Linear]] = []
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        fused = [
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        ]
        groups += fused if prepacked else [[module] for group in fused for module in group]
    head: Any = model.lm_head
    products = [(group[0].in_features, _product(group, prepacked)) for group in groups]
    last = _product([head], prepacked)
    sizes = sorted({size for size, _ in products} | {head.in_features})

    def call() -> None:
        with torch.inference_mode():
            for rows in (sum(map(len, prompts)), *([len(prompts)] * (new_tokens - 1))):
                inputs = {size: torch.randn(rows, size).to(head.weight.dtype) for size in sizes}
                for size, product in products:
                    product(inputs[size])
                last(inputs[head.in_features][: len(prompts)])

    return call


def _product(modules: list[nn.Linear], prepacked: bool) -> Callable[[Tensor], Tensor]:
    if prepacked:
        return project(modules)
    weight = modules[0].weight.detach()
    return lambda x: linear(x, weight)


def seconds_of(call: Callable[[], object]) -> float:
    """Return what a call takes on the wall."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
