"""Not a test: kernels that break the compile gate's limits, and one that keeps them; run by test_compile_gate.py, which
reads the JSON."""

import json

import torch
import triton
import triton.language as tl

from stackloom.kernels.contract import CompileTarget
from stackloom.kernels.tooling import offline_driver


@triton.jit
def matmul(a, b, c, K, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BLOCK)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, K, BLOCK):
        left = tl.load(a + rows[:, None] * K + (start + inner)[None, :])
        right = tl.load(b + (start + inner)[:, None] * N + columns[None, :])
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * N + columns[None, :], total)


def target(
    config: str, m: int, n: int, block: int, num_warps: int, num_stages: int, sass: tuple[str, ...]
) -> CompileTarget:
    half = torch.bfloat16
    return CompileTarget(
        matmul, config, (half, half, torch.float32, 4096), {"M": m, "N": n, "BLOCK": block}, num_warps, num_stages, sass
    )


offline_driver.install()
report = {}
for planted in (
    target("sound", 128, 128, 64, 8, 3, ("HGMMA",)),
    target("spilling", 128, 256, 32, 4, 2, ("HGMMA",)),
    target("too much shared memory", 128, 256, 128, 8, 4, ("HGMMA",)),
    target("claims int8", 64, 64, 64, 4, 2, ("IGMMA",)),
):
    measurement, missing = offline_driver.measure(planted)
    report[planted.config] = {
        "row": measurement.as_row(),
        "violations": offline_driver.violations(measurement, missing),
    }
print(json.dumps(report))
