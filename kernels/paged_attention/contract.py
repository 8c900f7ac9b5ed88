"""What every implementation of ``paged_attention`` keeps, and what it is timed against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..contract import Benchmark, Case, Contract, ContractViolation, Refusal
from ..tooling.poison import poisoned_view
from . import _attend, paged_attention, reference

HALF, SINGLE = torch.bfloat16, torch.float32


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(
    lengths: tuple[int, ...],
    heads: int,
    kv_heads: int,
    width: int,
    *,
    dtype: torch.dtype,
    size: int = 16,
    room: int = 0,
    device: torch.device | str = "cpu",
    index: torch.dtype = torch.int64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (q, memory, table, lengths): pages in no order, with NaN wherever no sequence has a token.

    Args:
        lengths: tokens of each sequence.
        heads, kv_heads, width: of the attention.
        dtype: of q and memory.
        size: tokens of a page.
        room: pages of a row of the table; as many as the longest sequence needs if 0.
        device, index: of all, and of table and lengths.
    """
    needed = [-(-length // size) for length in lengths]
    room = room or max([1, *needed])
    order = torch.randperm(1 + sum(needed), generator=torch.Generator().manual_seed(1)).tolist()
    memory = torch.full((len(order), 2 * kv_heads, size, width), torch.nan, dtype=dtype)
    table = torch.full((len(lengths), room), order[0])
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        for place in range(count):
            page, tokens = order[1 + sum(needed[:row]) + place], min(size, length - place * size)
            memory[page, :, :tokens] = _numbers(2 * kv_heads, tokens, width, dtype=dtype, seed=7 * page)
            table[row, place] = page
    q = _numbers(len(lengths), heads, width, dtype=dtype, seed=3)
    counts = torch.tensor(lengths, dtype=index)
    return q.to(device), memory.to(device), table.to(device, index), counts.to(device)


def _case(
    lengths: tuple[int, ...], heads: int, kv_heads: int, width: int, scale: float = 0.2, **options: Any
) -> Callable[[torch.device], tuple[Any, ...]]:
    return lambda device: (*inputs(lengths, heads, kv_heads, width, device=device, **options), scale)


def _strided(device: torch.device) -> tuple[Any, ...]:
    q, memory, table, lengths = inputs((33, 5), 4, 2, 32, dtype=SINGLE, device=device)
    return poisoned_view(q), memory.transpose(1, 2).contiguous().transpose(1, 2), table, lengths, 0.2


_CASES = (
    *(
        Case(
            f"odd lengths, width {width}, {str(dtype).removeprefix('torch.')}",
            "attend",
            _case((1, 15, 16, 17, 63, 65), 6, 2, width, dtype=dtype),
            quick=width == 64,
        )
        for width in (32, 64, 128)
        for dtype in (SINGLE, HALF, torch.float16)
    ),
    Case("heads of 80 channels", "attend", _case((40, 7), 4, 4, 80, dtype=HALF)),
    Case("heads of 256 channels", "attend", _case((40, 7), 4, 2, 256, dtype=HALF)),
    Case("heads of 5 channels", "attend", _case((21,), 2, 1, 5, dtype=SINGLE)),
    Case("one key/value head for 24 query heads", "attend", _case((50, 3), 24, 1, 64, dtype=HALF)),
    Case("one key/value head for 72 query heads", "attend", _case((50, 3), 72, 1, 32, dtype=HALF)),
    Case("one key/value head for 24 query heads, float32", "attend", _case((50, 3), 24, 1, 32, dtype=SINGLE)),
    Case("a sequence of no token", "attend", _case((0, 20, 0), 4, 2, 64, dtype=HALF), quick=True),
    Case("no sequences", "attend", _case((), 4, 2, 64, dtype=SINGLE)),
    Case("many parts", "attend", _case((1000, 130), 3, 1, 64, dtype=HALF), quick=True),
    Case("more room than tokens", "attend", _case((5, 40), 4, 2, 64, dtype=HALF, room=70)),
    Case("pages of 4 tokens", "attend", _case((9, 30), 4, 2, 64, dtype=HALF, size=4)),
    Case("pages of 100 tokens", "attend", _case((9, 130), 4, 2, 32, dtype=SINGLE, size=100)),
    Case("int32 table and lengths", "attend", _case((33, 5), 4, 2, 64, dtype=HALF, index=torch.int32)),
    Case("large scores", "attend", _case((33, 70), 4, 2, 64, scale=8.0, dtype=SINGLE)),
    Case("float64", "attend", _case((33, 5), 4, 2, 24, dtype=torch.float64)),
    Case("strided q amid NaN, memory of another order", "attend", _strided),
)


def _expect(holds: bool, law: str) -> None:
    if not holds:
        raise ContractViolation(law)


def _is_dense_attention(device: torch.device, implementation: str) -> None:
    """Each sequence alone, its tokens side by side, through torch's own attention."""
    lengths = (1, 19, 64)
    q, memory, table, counts = inputs(lengths, 6, 2, 32, dtype=SINGLE, device=device)
    found = paged_attention(q, memory, table, counts, implementation=implementation)
    for row, length in enumerate(lengths):
        pages = memory[table[row, : -(-length // 16)]].transpose(0, 1).flatten(1, 2)[:, :length]
        k, v = pages[:2], pages[2:]
        dense = scaled_dot_product_attention(q[row][:, None], k.repeat_interleave(3, 0), v.repeat_interleave(3, 0))
        _expect(torch.allclose(found[row], dense[:, 0], atol=2e-5), "a sequence attends as torch's own attention does")


def _pages_may_be_shared_and_moved(device: torch.device, implementation: str) -> None:
    q, memory, table, _ = inputs((48,), 4, 2, 64, dtype=HALF, device=device)
    alone = paged_attention(q, memory, table, torch.tensor([40], device=device), implementation=implementation)
    order = torch.randperm(len(memory), generator=torch.Generator().manual_seed(5)).to(device)
    moved = paged_attention(
        q, memory[order], order.argsort()[table], torch.tensor([40], device=device), implementation=implementation
    )
    _expect(torch.equal(alone, moved), "where a page lies changes no bit")
    both = paged_attention(
        q.expand(2, -1, -1),
        memory,
        table.expand(2, -1),
        torch.tensor([40, 40], device=device),
        implementation=implementation,
    )
    _expect(torch.equal(both[0], both[1]), "sequences that share their pages get the same bits")


def _equal_keys_give_the_mean(device: torch.device, implementation: str) -> None:
    q, memory, table, _ = inputs((32,), 2, 1, 32, dtype=SINGLE, device=device)
    memory[:, 0] = 1.0
    found = paged_attention(q, memory, table, torch.tensor([25], device=device), implementation=implementation)
    mean = memory[table[0], 1].flatten(0, 1)[:25].mean(0)
    _expect(torch.allclose(found[0], mean.expand(2, -1), atol=1e-6), "equal keys give the mean of the values")


def _nothing_behind_the_last_token_counts(device: torch.device, implementation: str) -> None:
    q, memory, table, counts = inputs((21, 0), 4, 2, 64, dtype=HALF, device=device)
    found = paged_attention(q, memory, table, counts, implementation=implementation)
    _expect(bool(found[0].isfinite().all()), "NaN behind the last token reaches nothing")
    _expect(not found[1].any(), "a sequence of no token gives zeros")
    memory[table[0, 0], 2, 3] = torch.nan
    found = paged_attention(q, memory, table, counts, implementation=implementation)
    _expect(bool(found[0, :2].isnan().any()), "NaN in a token that counts is not hidden")


def _refuse(**changes: Any) -> Callable[[torch.device, str], Any]:
    def call(device: torch.device, implementation: str) -> Any:
        q, memory, table, lengths = inputs((5, 20), 4, 2, 8, dtype=SINGLE)
        given = {"q": q, "memory": memory, "table": table, "lengths": lengths, "scale": 0.5} | changes
        moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        return paged_attention(**moved, implementation=implementation)

    return call


_REFUSALS = (
    Refusal("integer q", _refuse(q=torch.ones(2, 4, 8, dtype=torch.int64)), TypeError, "q must be a float64.*int64"),
    Refusal("float table", _refuse(table=torch.ones(2, 2)), TypeError, "table must be a int32 or int64"),
    Refusal("mixed dtypes", _refuse(q=torch.ones(2, 4, 8, dtype=HALF)), TypeError, "q is torch.bfloat16 but memory"),
    Refusal("q with two dimensions", _refuse(q=torch.ones(2, 32)), ValueError, r"q must be \(N, H, K\)"),
    Refusal("another width", _refuse(q=torch.ones(2, 4, 16)), ValueError, r"memory must be \(P, 2 G, S, 16\)"),
    Refusal("an odd number of heads in memory", _refuse(memory=torch.ones(3, 3, 4, 8)), ValueError, "memory must be"),
    Refusal("groups that do not divide", _refuse(q=torch.ones(2, 3, 8)), ValueError, "a divisor of 3 heads"),
    Refusal("lengths of another batch", _refuse(lengths=torch.ones(3, dtype=torch.int64)), ValueError, "lengths"),
    Refusal("no pages", _refuse(table=torch.ones(2, 0, dtype=torch.int64)), ValueError, "at least one page"),
    Refusal("scale that is NaN", _refuse(scale=float("nan")), ValueError, "scale must be finite"),
)


def _library_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    return [(_attend, (*inputs((5, 20), 4, 2, 8, dtype=SINGLE), 0.3, "reference"))]


def _gathered(q: torch.Tensor, memory: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Pages copied side by side, then torch's attention: what a step does without this op."""
    rows, width = len(q), q.shape[2]
    kv_heads, size = memory.shape[1] // 2, memory.shape[2]
    pages = memory[table].transpose(1, 2).reshape(rows, 2, kv_heads, table.shape[1] * size, width)
    mask = torch.arange(table.shape[1] * size, device=q.device) < lengths[:, None]
    return scaled_dot_product_attention(
        q[:, :, None], pages[:, 0], pages[:, 1], attn_mask=mask[:, None, None], enable_gqa=True
    )[:, :, 0]


def _benchmark(rows: int, tokens: int, heads: int, kv_heads: int, width: int, device: str, quick: bool) -> Benchmark:
    dtype = HALF

    def make(target: torch.device) -> tuple[Any, ...]:
        pages = rows * (tokens // 16)
        memory = torch.randn(pages, 2 * kv_heads, 16, width, device=target).to(dtype)
        table = torch.randperm(pages, device=target).view(rows, -1)
        q = torch.randn(rows, heads, width, device=target).to(dtype)
        return q, memory, table, torch.full((rows,), tokens, device=target)

    return Benchmark(
        f"{rows} sequences of {tokens}, {heads}/{kv_heads} heads of {width}, bfloat16",
        "attend",
        make,
        ours=lambda implementation, *args: paged_attention(*args, implementation=implementation),
        baseline=_gathered,
        baseline_name="gather, then scaled_dot_product_attention",
        truth=lambda q, memory, *rest: reference.attend(q.double(), memory.double(), *rest, width**-0.5),
        traffic=lambda *args: 2 * rows * tokens * kv_heads * width * 2 + 4 * rows * heads * width,
        device=device,
        quick=quick,
    )


CONTRACT = Contract(
    cases=_CASES,
    refusals=_REFUSALS,
    laws={
        "dense attention, page by page": _is_dense_attention,
        "pages may be shared and moved": _pages_may_be_shared_and_moved,
        "equal keys give the mean": _equal_keys_give_the_mean,
        "nothing behind the last token counts": _nothing_behind_the_last_token_counts,
    },
    library_calls=_library_calls,
    benchmarks=(
        _benchmark(16, 256, 9, 3, 64, "cpu", True),
        _benchmark(1, 1024, 9, 3, 64, "cpu", False),
        _benchmark(64, 2048, 32, 8, 128, "cuda", True),
        _benchmark(1, 32_768, 32, 8, 128, "cuda", False),
        _benchmark(8, 16_384, 32, 8, 128, "cuda", False),
    ),
)
