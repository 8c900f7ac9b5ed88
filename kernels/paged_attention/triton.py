"""Attention over pages in Triton: parts of each sequence side by side, then their weighted mean.

Shapes: N sequences, G key/value heads, Q query heads of a group, K head width, S tokens of a page. A program owns up to
QUERIES heads of one group of one sequence and one part of its tokens; it walks over them TOKENS at a time and keeps the
largest score, the sum of weights and the weighted values in float32. How many parts there are depends on shapes alone,
never on lengths, so that a captured graph serves every length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ..contract import CompileTarget
from ..selection import Support
from ..tooling.device_support import triton_can_run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 256
QUERIES = 16  # the fewest rows of a product on tensor cores
MOST_QUERIES = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}  # with more, registers spill
PROGRAMS = 528  # four for each processor of an H100: a step waits for its page's number, then for the page
MOST_PARTS = 128


@triton.jit
def _part_kernel(
    q_ptr, memory_ptr, table_ptr, lengths_ptr, sums_ptr, tops_ptr, totals_ptr,
    groups, heads_per_group, width, scale,
    q_stride_n, q_stride_h, q_stride_k, page_stride, head_stride, token_stride, width_stride, table_stride_n,
    table_stride_b, lengths_stride,
    SIZE: tl.constexpr, TOKENS: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr,
):
    row, tile, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    tiles, parts = tl.num_programs(1), tl.num_programs(2)
    group, first_head = tile // (tiles // groups), tile % (tiles // groups) * QUERIES
    length = tl.load(lengths_ptr + row * lengths_stride).to(tl.int32)
    steps = tl.cdiv(tl.cdiv(length, TOKENS), parts)
    first, last = part * steps * TOKENS, tl.minimum((part + 1) * steps * TOKENS, length)
    queries, columns = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    heads = group * heads_per_group + first_head + queries
    in_heads, in_width = (first_head + queries < heads_per_group)[:, None], (columns < width)[None, :]
    q = tl.load(
        q_ptr + row * q_stride_n + heads[:, None] * q_stride_h + columns[None, :] * q_stride_k,
        mask=in_heads & in_width, other=0.0,
    )
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    keys = memory_ptr + group * head_stride
    values = memory_ptr + (groups + group) * head_stride
    for start in range(first, last, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        there = tokens < last
        pages = tl.load(table_ptr + row * table_stride_n + (tokens // SIZE) * table_stride_b, mask=there, other=0)
        places = pages.to(tl.int64) * page_stride + (tokens % SIZE) * token_stride  # int64: page * stride passes 2^31
        offsets, mask = places[:, None] + columns[None, :] * width_stride, there[:, None] & in_width
        k = tl.load(keys + offsets, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        kept = tl.exp(top - higher)
        v = tl.load(values + offsets, mask=mask, other=0.0)
        sums = sums * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        top = higher
    place = ((row * tiles + tile) * parts + part) * QUERIES + queries
    tl.store(tops_ptr + place, top)
    tl.store(totals_ptr + place, total)
    tl.store(sums_ptr + place[:, None] * WIDTH + columns[None, :], sums)


@triton.jit
def _join_kernel(
    sums_ptr, tops_ptr, totals_ptr, out_ptr, tiles, tiles_per_group, heads_per_group, parts, width,
    PARTS: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, within = head // heads_per_group, head % heads_per_group
    tile, query = group * tiles_per_group + within // QUERIES, within % QUERIES
    number, columns = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    place = ((row * tiles + tile) * parts + number) * QUERIES + query
    there = number < parts
    top = tl.load(tops_ptr + place, mask=there, other=float("-inf"))
    highest = tl.max(top, 0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)  # a sequence of no token
    weight = tl.exp(top - highest)  # 0 for a part without tokens
    total = tl.sum(weight * tl.load(totals_ptr + place, mask=there, other=0.0), 0)
    sums = tl.load(
        sums_ptr + place[:, None] * WIDTH + columns[None, :],
        mask=there[:, None] & (columns < width)[None, :], other=0.0,
    )
    mixed = tl.sum(weight[:, None] * sums, 0) / tl.where(total == 0.0, 1.0, total)
    out = out_ptr + (row * tl.num_programs(1) + head) * width + columns
    tl.store(out, mixed.to(out_ptr.dtype.element_ty), mask=columns < width)


def supports(function: str, *args: Any) -> Support:
    """float32, bfloat16 or float16, heads of at most 256 channels, all on one device on which Triton runs."""
    q, memory, table, lengths = args[:4]
    if q.dtype not in DTYPES:
        return Support(False, f"computes float32, bfloat16 and float16, got {q.dtype}")
    if q.shape[-1] > WIDEST:
        return Support(False, f"holds heads of at most {WIDEST} channels, got {q.shape[-1]}")
    return triton_can_run(q, memory, table, lengths)


def tile_for(width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Tokens of one step, and the warps that share it; float32 has no tensor cores and needs registers instead."""
    if dtype == torch.float32:
        return 16, 8 if width > 64 else 4
    return (32, 4) if width > 128 else (64, 4)


def parts_for(programs: int, room: int, tokens: int) -> int:
    """Into how many parts the tokens of a sequence are cut.

    Args:
        programs: sequences times tiles of heads.
        room: tokens that a row of the table has room for.
        tokens: of one step.
    """
    return max(1, min(-(-PROGRAMS // max(1, programs)), triton.cdiv(room, tokens), MOST_PARTS))


def attend(
    q: torch.Tensor, memory: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """As ``reference.attend``."""
    (rows, heads, width), (_, both, size, _) = q.shape, memory.shape
    groups = both // 2
    out = torch.empty((rows, heads, width), dtype=q.dtype, device=q.device)
    if not rows:
        return out
    padded, (tokens, warps) = triton.next_power_of_2(max(width, 16)), tile_for(width, q.dtype)
    queries = min(max(QUERIES, triton.next_power_of_2(heads // groups)), MOST_QUERIES[q.dtype])
    tiles = triton.cdiv(heads // groups, queries)
    parts = parts_for(rows * groups * tiles, table.shape[1] * size, tokens)
    shape = (rows, groups * tiles, parts, queries)
    sums = torch.empty((*shape, padded), dtype=torch.float32, device=q.device)
    tops, totals = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    _part_kernel[(rows, groups * tiles, parts)](
        q, memory, table, lengths, sums, tops, totals,
        groups, heads // groups, width, scale,
        *q.stride(), *memory.stride(), *table.stride(), lengths.stride(0),
        SIZE=size, TOKENS=tokens, QUERIES=queries, WIDTH=padded, num_warps=warps,
    )
    _join_kernel[(rows, heads)](
        sums, tops, totals, out, groups * tiles, tiles, heads // groups, parts, width,
        PARTS=triton.next_power_of_2(parts), QUERIES=queries, WIDTH=padded, num_warps=4,
    )
    return out


def compile_targets() -> Iterator[CompileTarget]:
    """Each dtype at the widths that models have, with the strides of the engine's pages, and the joining of parts."""
    size, groups, single = 16, 8, torch.float32
    for dtype in DTYPES:
        for width in (64, 128, 256):
            strides = (32 * width, width, 1, 2 * groups * size * width, size * width, width, 1, 128, 1, 1)
            tokens, warps = tile_for(width, dtype)
            pointers = (dtype, dtype, torch.int64, torch.int32, single, single, single)
            yield CompileTarget(
                _part_kernel, f"{width} {str(dtype).removeprefix('torch.')}",
                (*pointers, groups, 4, width, 0.125, *strides),
                {"SIZE": size, "TOKENS": tokens, "QUERIES": QUERIES, "WIDTH": width},
                warps, sass=("LDG.E.128",) if dtype == single else ("LDG.E.128", "HMMA"),
            )
            if MOST_QUERIES[dtype] > QUERIES and width <= 128:
                yield CompileTarget(
                    _part_kernel, f"{width} {str(dtype).removeprefix('torch.')}, 64 heads",
                    (*pointers, groups, 64, width, 0.125, *strides),
                    {"SIZE": size, "TOKENS": tokens, "QUERIES": MOST_QUERIES[dtype], "WIDTH": width},
                    warps, sass=("LDG.E.128", "HGMMA"),
                )
    for dtype in DTYPES:
        yield CompileTarget(
            _join_kernel, f"64 parts of 128 {str(dtype).removeprefix('torch.')}",
            (single, single, single, dtype, groups, 1, 4, 64, 128), {"PARTS": 64, "QUERIES": QUERIES, "WIDTH": 128}, 4,
        )
