"""Launches the kernels of the gated delta rule, and lists them for the compile gate.

Shape legend: B batch, T tokens, H heads, K key width, V value width, N sequences, C tokens of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from ..contract import CompileTarget
from ..selection import Support
from ..tooling.device_support import triton_can_run
from . import triton_backward as backwards
from . import triton_forward as forwards
from . import triton_prepare as prologue
from .reference import bounds

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
C, R = 64, 16  # tokens of a chunk, and of a block within it
# Widest heads that a sweep over chunks holds in registers without spills. Other kernels take any width.
WIDEST = {"chunk": (128, 64), "recurrent": (128, 128), "backward": (128, 32)}  # in bfloat16; in float32 and float16
WARPS = 4
ALONE = 1  # warp, of the kernel that solves row by row
PAIRED = 16  # channels at a time where all pairs of a block are formed: R x R x PAIRED numbers in registers
FEW_STATES = 132  # with fewer (sequence, head) pairs than an H100 has processors, value columns are cut finer


@dataclass(frozen=True)
class Chunks:
    """Chunks of all sequences in order, on the device.

    Attributes:
        starts, lengths: (chunks,) first token and size of each.
        offsets: (N + 1,) first chunk of each sequence.
        edges: (N + 1,) first token of each sequence.
    """

    starts: Tensor
    lengths: Tensor
    offsets: Tensor
    edges: Tensor


def chunks(cu_seqlens: Tensor | None, batch: int, tokens: int, device: torch.device) -> Chunks:
    """Cut every sequence into chunks. The cut is remembered by its edges; reading cu_seqlens waits for the device."""
    edges = bounds(cu_seqlens, batch, tokens)
    return _cut((*(first for first, _ in edges), edges[-1][1]), str(device))


@functools.lru_cache(maxsize=64)
def _cut(edges: tuple[int, ...], device: str) -> Chunks:
    starts, lengths, offsets = [], [], [0]
    for first, stop in pairwise(edges):
        starts += range(first, stop, C)
        lengths += [min(C, stop - start) for start in range(first, stop, C)]
        offsets.append(len(starts))
    return Chunks(*(torch.tensor(x, dtype=torch.int64, device=device) for x in (starts, lengths, offsets, edges)))


def supports(function: str, *args: Any) -> Support:
    """float32, bfloat16 or float16 tensors, no wider than `WIDEST`, on one device on which Triton runs; any strides."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return Support(False, f"computes float32, bfloat16 and float16, got {tensor.dtype}")
    dtype, wide = tensors[0].dtype, max(tensor.shape[-1] for tensor in tensors if tensor.dim() == 4)
    if function in WIDEST and wide > (most := WIDEST[function][dtype != torch.bfloat16]):
        return Support(False, f"{function} holds heads of at most {most} channels in {dtype}, got {wide}")
    return triton_can_run(*tensors)


def _precise(q: Tensor) -> bool:
    return q.dtype != torch.bfloat16


def _operand(q: Tensor) -> torch.dtype:
    """What factors of products are stored in; float16 would overflow where a state grows."""
    return torch.float32 if _precise(q) else torch.bfloat16


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _sweep(K: int, V: int, states: int, precise: bool, backward: bool) -> tuple[int, int]:
    """Columns of the state that a program carries from chunk to chunk, and its warps: what fits the registers."""
    wide = _padded(K) == 128
    most = (16 if precise else 32) if backward else (32 if precise or wide else 64)
    return min(_padded(V), most if states >= FEW_STATES else min(most, 32)), 8 if wide and (backward or precise) else 4


def _depth(precise: bool) -> tuple[int, int]:
    """Warps that share a small tile, and how deep loops over few tiles are pipelined: as timed on an H200 in bfloat16;
    float32 has fewer registers to spare."""
    return (WARPS, 3) if precise else (2, 2)


def _ahead(precise: bool) -> int:
    """Stages of the forward sweep; in float32 a second one spills."""
    return 1 if precise else 3


@dataclass(frozen=True)
class _Sizes:
    """Shapes and tiles of one call. BK and BV are tiles of products, KP the state's rows; a program carries SV columns
    of it forward on SW warps, and SB backward on BW. N warps share a small tile, and loops are D stages deep."""

    B: int
    T: int
    H: int
    K: int
    V: int
    precise: bool
    BK: int
    BV: int
    KP: int
    SV: int
    SW: int
    SB: int
    BW: int
    N: int
    D: int

    @classmethod
    def of(cls, q: Tensor, v: Tensor, sequences: int) -> _Sizes:
        B, T, H, K = q.shape
        V = v.shape[-1]
        tile, states = 32 if _precise(q) else 64, sequences * H
        return cls(
            B, T, H, K, V, _precise(q), min(_padded(K), tile), min(_padded(V), tile), _padded(K),
            *_sweep(K, V, states, _precise(q), False), *_sweep(K, V, states, _precise(q), True),
            *_depth(_precise(q)),
        )  # fmt: skip


def _empty(like: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((*like.shape[:3], width), dtype=dtype, device=like.device)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cut: Chunks, scale: float
) -> tuple[Tensor, ...]:
    """G, A, T, W, U, the states at each chunk's start, and the last ones."""
    sequences, count = len(cut.edges) - 1, len(cut.starts)
    size, operand, device = _Sizes.of(q, v, sequences), _operand(q), q.device
    H, K, V = size.H, size.K, size.V
    places = cut.starts, cut.lengths
    G = _empty(q, K, torch.float32)
    forwards.cumulative_kernel[count, H, triton.cdiv(K, size.BK)](
        g, G, *places, H, K, SCALAR=g.dim() == 3, REVERSE=False, BK=size.BK, C=C, num_warps=WARPS
    )
    A, L, T = _empty(q, C, operand), _empty(q, C, torch.float32), _empty(q, C, torch.float32)
    forwards.pairs_kernel[count * (C // R), H](
        q, k, G, A, L, *places, H, K, scale,
        PRECISE=size.precise, KP=size.KP, BK=size.BK, C=C, R=R, num_warps=WARPS, num_stages=2,
    )  # fmt: skip
    forwards.steep_pairs_kernel[count * (C // R), H](
        q, k, G, A, L, *places, H, K, scale,
        PRECISE=size.precise, KP=size.KP, BK=PAIRED, C=C, R=R, num_warps=size.N,
    )  # fmt: skip
    forwards.inverse_kernel[count, H](L, T, *places, H, C=C, R=R, num_warps=ALONE)
    W, U = _empty(q, K, operand), _empty(q, V, operand)
    forwards.wy_kernel[count, H](
        k, v, G, T, W, U, *places, H, K, V, PRECISE=size.precise, BLOCK=max(size.BK, size.BV), C=C, num_warps=WARPS,
        num_stages=size.D,
    )  # fmt: skip
    states = torch.empty((count, H, K, V), dtype=operand, device=device)
    final = torch.empty((sequences, H, K, V), dtype=torch.float32, device=device)
    forwards.states_kernel[triton.cdiv(V, size.SV), sequences * H](
        k, G, W, U, initial_state if initial_state is not None else final, states, final, *places, cut.offsets,
        H, K, V, PRECISE=size.precise, INITIAL=initial_state is not None, KP=size.KP, BV=size.SV, C=C,
        num_warps=size.SW, num_stages=_ahead(size.precise),
    )  # fmt: skip
    return G, A, T, W, U, states, final


def _plain(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def chunk(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """As ``chunk.forward``."""
    cut = chunks(cu_seqlens, q.shape[0], q.shape[1], q.device)
    q, k, v, g, initial_state = _plain(q, k, v, g, initial_state)
    G, A, _, _, U, states, final = _forward(q, k, v, g, initial_state, cut, scale)
    size = _Sizes.of(q, v, len(cut.edges) - 1)
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    forwards.output_kernel[len(cut.starts), size.H, triton.cdiv(size.V, size.BV)](
        q, G, A, U, states, o, cut.starts, cut.lengths, size.H, size.K, size.V, scale,
        PRECISE=size.precise, BK=size.BK, BV=size.BV, C=C, num_warps=WARPS, num_stages=size.D,
    )  # fmt: skip
    return o, final


def backward(
    do: Tensor, d_final: Tensor | None, q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``chunk.backward``; the forward pass's intermediates are computed again instead of kept."""
    cut = chunks(cu_seqlens, q.shape[0], q.shape[1], q.device)
    do, d_final, q, k, v, g, initial_state = _plain(do, d_final, q, k, v, g, initial_state)
    G, A, T, W, U, states, final = _forward(q, k, v, g, initial_state, cut, scale)
    size, operand = _Sizes.of(q, v, len(cut.edges) - 1), _operand(q)
    H, K, V, count, places = size.H, size.K, size.V, len(cut.starts), (cut.starts, cut.lengths)
    dU, dS, d_initial = _empty(v, V, operand), torch.empty_like(states), torch.empty_like(final)
    backwards.d_states_kernel[triton.cdiv(V, size.SB), (len(cut.edges) - 1) * H](
        q, k, G, A, W, do, d_final if d_final is not None else d_initial, dU, dS, d_initial, *places, cut.offsets,
        H, K, V, scale, PRECISE=size.precise, FINAL=d_final is not None, KP=size.KP, BV=size.SB, C=C,
        num_warps=size.BW, num_stages=size.D,
    )  # fmt: skip
    dR = _empty(v, V, operand)
    backwards.d_values_kernel[count, H, triton.cdiv(V, size.BV)](
        T, dU, dR, *places, H, V, PRECISE=size.precise, BV=size.BV, C=C, num_warps=WARPS
    )
    dA, dL = _empty(q, C, operand), _empty(q, C, operand)
    backwards.d_pairs_kernel[count, H](
        do, dR, U, dA, dL, *places, H, V, PRECISE=size.precise, BV=size.BV, C=C, num_warps=WARPS
    )
    carried_q, carried_k, dG = (_empty(q, K, torch.float32) for _ in range(3))
    BK = min(size.BK, 32)
    backwards.d_carried_kernel[count, H, triton.cdiv(K, BK)](
        q, k, G, do, dR, U, states, dS, carried_q, carried_k, dG, *places, H, K, V, scale,
        PRECISE=size.precise, BK=BK, BV=size.BV, C=C, num_warps=WARPS, num_stages=size.D,
    )  # fmt: skip
    dq, dk = _empty(q, K, q.dtype), _empty(k, K, k.dtype)
    inputs = q, k, G, dA, dL, carried_q, carried_k, dG, dq, dk, *places, H, K, scale
    backwards.d_inputs_kernel[count * (C // R), H, triton.cdiv(K, size.BK)](
        *inputs, PRECISE=size.precise, BK=size.BK, C=C, R=R, num_warps=WARPS
    )
    backwards.steep_inputs_kernel[count * (C // R), H, triton.cdiv(K, PAIRED)](
        *inputs, PRECISE=size.precise, GROUP=size.BK, BK=PAIRED, C=C, R=R, num_warps=WARPS
    )
    dg = _empty(q, K, torch.float32)
    forwards.cumulative_kernel[count, H, triton.cdiv(K, size.BK)](
        dG, dg, *places, H, K, SCALAR=False, REVERSE=True, BK=size.BK, C=C, num_warps=WARPS
    )
    return dq, dk, dR.to(v.dtype), (dg.sum(-1) if g.dim() == 3 else dg).to(g.dtype), d_initial


def _decode_columns(K: int, V: int) -> int:
    return min(_padded(V), 32)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """As ``reference.recurrent``."""
    cut = chunks(cu_seqlens, q.shape[0], q.shape[1], q.device)
    q, k, v, g, initial_state = _plain(q, k, v, g, initial_state)
    sequences, (_, _, H, K), V = len(cut.edges) - 1, q.shape, v.shape[-1]
    o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    final = torch.empty((sequences, H, K, V), dtype=torch.float32, device=v.device)
    BV = _decode_columns(K, V)
    forwards.recurrent_kernel[triton.cdiv(V, BV), sequences * H](
        q, k, v, g, initial_state if initial_state is not None else final, o, final, cut.edges, H, K, V, scale,
        SCALAR=g.dim() == 3, INITIAL=initial_state is not None, KP=_padded(K), BV=BV, num_warps=WARPS,
    )  # fmt: skip
    return o, final


def _prologue(q: Tensor, v: Tensor, decay: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, int]]:
    """Grid, sizes and tiles. A program holds about 1,024 numbers of each tensor."""
    rows, (H, K), V, D = q.shape[:3].numel(), q.shape[2:], v.shape[-1], decay.shape[-1]
    tiles = {"KP": _padded(K), "VP": _padded(V), "DP": triton.next_power_of_2(D)}
    tiles["ROWS"] = max(1, 1024 // max(tiles["KP"], tiles["VP"]))
    return (triton.cdiv(rows, tiles["ROWS"]),), (rows, H, K, V, D), tiles


def prepare(
    q: Tensor, k: Tensor, v: Tensor, k_gate: Tensor, v_gate: Tensor, decay: Tensor, a_log: Tensor, dt_bias: Tensor,
    eps: float, gain: float, value_power: float, lower_bound: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.prepare``."""
    inputs = _plain(q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    grid, sizes, tiles = _prologue(q, v, decay)
    outputs = _empty(q, q.shape[-1], q.dtype), _empty(k, k.shape[-1], k.dtype), _empty(v, v.shape[-1], v.dtype)
    g = _empty(decay, decay.shape[-1], torch.float32)
    prologue.prepare_kernel[grid](
        *inputs, *outputs, g, *sizes, eps, gain**0.5, gain**value_power, value_power, lower_bound or 0.0,
        SAFE=lower_bound is not None, **tiles, num_warps=WARPS,
    )  # fmt: skip
    return *outputs, g


def prepare_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, dg: Tensor, q: Tensor, k: Tensor, v: Tensor, k_gate: Tensor, v_gate: Tensor,
    decay: Tensor, a_log: Tensor, dt_bias: Tensor, eps: float, gain: float, value_power: float,
    lower_bound: float | None,
) -> tuple[Tensor, ...]:
    """As ``reference.prepare_backward``; the sums over tokens, for a_log and dt_bias, are torch's."""
    inputs = _plain(dq, dk, dv, dg, q, k, v, k_gate, v_gate, decay, a_log, dt_bias)
    grid, sizes, tiles = _prologue(q, v, decay)
    per_token = [_empty(x, x.shape[-1], x.dtype) for x in (q, k, v, k_gate, v_gate)]
    d_decay, d_a_log = _empty(decay, decay.shape[-1], torch.float32), _empty(decay, 1, torch.float32)
    prologue.prepare_backward_kernel[grid](
        *inputs, *per_token, d_decay, d_a_log, *sizes, eps, gain**0.5, gain**value_power, value_power,
        lower_bound or 0.0, SAFE=lower_bound is not None, **tiles, num_warps=WARPS,
    )  # fmt: skip
    return (
        *per_token, d_decay.to(decay.dtype), d_a_log.sum((0, 1, 3)).to(a_log.dtype),
        d_decay.sum((0, 1)).to(dt_bias.dtype),
    )  # fmt: skip


def compile_targets() -> Iterator[CompileTarget]:
    """Every kernel as a training step with 16 heads launches it, in bfloat16 and in float32, for each width."""
    for dtype in (torch.bfloat16, torch.float32):
        yield from _product_targets(dtype)
        for width in (32, 64, 128):
            yield from _state_targets(dtype, width)


def _name(dtype: torch.dtype, *labels: object) -> str:
    return " ".join([str(dtype).removeprefix("torch."), *map(str, labels)])


def _product_targets(dtype: torch.dtype) -> Iterator[CompileTarget]:
    """Kernels whose tiles do not depend on the heads' width."""
    single, precise = torch.float32, dtype == torch.float32
    operand, tile = (single, 32) if precise else (dtype, 64)
    places, H, K, V, scale = (torch.int64, torch.int64), 16, 128, 128, 0.125
    narrow, depth = _depth(precise)
    name, rest, blocks, chunked = _name(dtype), {"PRECISE": precise, "C": C}, ("HMMA",), ("HGMMA",)
    for reverse in (False, True):
        for scalar in (False, True):
            label = _name(dtype, "reverse" if reverse else "forward", "head" if scalar else "channel")
            yield CompileTarget(
                forwards.cumulative_kernel, label, (single, single, *places, H, K),
                {"SCALAR": scalar, "REVERSE": reverse, "BK": tile, "C": C}, WARPS,
            )
    pairs = dtype, dtype, single, operand, single, *places, H, K, scale
    yield CompileTarget(forwards.pairs_kernel, name, pairs, rest | {"KP": 128, "BK": tile, "R": R}, WARPS, 2, blocks)
    yield CompileTarget(
        forwards.steep_pairs_kernel, name, pairs, rest | {"KP": 128, "BK": PAIRED, "R": R}, narrow, sass=blocks
    )
    if precise:  # in float32 either way
        yield CompileTarget(
            forwards.inverse_kernel, name, (single, single, *places, H), {"C": C, "R": R}, ALONE, sass=blocks
        )
    yield CompileTarget(
        forwards.wy_kernel, name, (dtype, dtype, single, single, operand, operand, *places, H, K, V),
        rest | {"BLOCK": tile}, WARPS, depth, sass=chunked,
    )
    yield CompileTarget(
        forwards.output_kernel, name, (dtype, single, operand, operand, operand, dtype, *places, H, K, V, scale),
        rest | {"BK": tile, "BV": tile}, WARPS, depth, sass=chunked,
    )
    yield CompileTarget(
        backwards.d_values_kernel, name, (single, operand, operand, *places, H, V), rest | {"BV": tile}, WARPS,
        sass=chunked,
    )
    yield CompileTarget(
        backwards.d_pairs_kernel, name, (dtype, operand, operand, operand, operand, *places, H, V),
        rest | {"BV": tile}, WARPS, sass=chunked,
    )
    yield CompileTarget(
        backwards.d_carried_kernel, name,
        (dtype, dtype, single, dtype, operand, operand, operand, operand, single, single, single, *places,
         H, K, V, scale),
        rest | {"BK": 32, "BV": tile}, WARPS, depth, sass=chunked,
    )
    inputs = (dtype, dtype, single, operand, operand, single, single, single, dtype, dtype, *places, H, K, scale)
    yield CompileTarget(backwards.d_inputs_kernel, name, inputs, rest | {"BK": tile, "R": R}, WARPS, sass=blocks)
    yield CompileTarget(
        backwards.steep_inputs_kernel, name, inputs, rest | {"GROUP": tile, "BK": PAIRED, "R": R}, WARPS, sass=blocks
    )


def _state_targets(dtype: torch.dtype, width: int) -> Iterator[CompileTarget]:
    """Kernels that hold a whole key of a head: the sweeps over chunks, the recurrence, the prologue."""
    single, index, precise = torch.float32, torch.int64, dtype == torch.float32
    operand, H, K, V, scale, name = single if precise else dtype, 16, width, width, 0.125, _name(dtype, width)
    (ahead, warps), (back, more) = (_sweep(K, V, FEW_STATES, precise, backward) for backward in (False, True))
    sweep = {"PRECISE": precise, "KP": width, "C": C}
    if width <= WIDEST["chunk"][precise]:
        yield CompileTarget(
            forwards.states_kernel, name,
            (dtype, single, operand, operand, single, operand, single, index, index, index, H, K, V),
            sweep | {"INITIAL": True, "BV": ahead}, warps, _ahead(precise), ("HGMMA",),
        )
    if width <= WIDEST["backward"][precise]:
        yield CompileTarget(
            backwards.d_states_kernel, name,
            (dtype, dtype, single, operand, operand, dtype, single, operand, operand, single, index, index, index,
             H, K, V, scale),
            sweep | {"FINAL": True, "BV": back}, more, _depth(precise)[1], sass=("HGMMA",),
        )
    for scalar in (False, True):
        yield CompileTarget(
            forwards.recurrent_kernel, _name(dtype, width, "head" if scalar else "channel"),
            (dtype, dtype, dtype, single, single, dtype, single, index, H, K, V, scale),
            {"SCALAR": scalar, "INITIAL": True, "KP": width, "BV": _decode_columns(K, V)}, WARPS,
        )
    options = 1e-6, 1.0, 1.0, 0.5, -5.0
    for safe, per_head in ((False, False), (False, True), (True, False)):
        D = 1 if per_head else K
        tiles = {"ROWS": max(1, 1024 // width), "KP": width, "VP": width, "DP": D, "SAFE": safe}
        sizes, label = (4096 * H, H, K, V, D), _name(dtype, width, "head" if per_head else "channel", "safe" * safe)
        yield CompileTarget(
            prologue.prepare_kernel, label.strip(),
            (*[dtype] * 6, single, single, *[dtype] * 3, single, *sizes, *options), tiles, WARPS,
        )
        yield CompileTarget(
            prologue.prepare_backward_kernel, label.strip(),
            (*[dtype] * 3, single, *[dtype] * 6, single, single, *[dtype] * 5, single, single, *sizes, *options),
            tiles, WARPS,
        )
