"""Not a test: a kernel without a mask, run behind guard pages by test_guard_pages.py. Usage: planted_overrun.py
load|store|none SIDE."""

import sys

import torch
import triton
import triton.language as tl

from stackloom.kernels.tooling.guard_pages import guarded, guarded_outputs


@triton.jit
def copy_kernel(source, target, load_count, store_count, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK) + SHIFT
    value = tl.load(source + index, mask=index < load_count, other=0.0)
    tl.store(target + index, value, mask=(index < store_count) & (index >= 0))


where, side = sys.argv[1:]
count = 63
x = guarded(torch.ones(count), side)
with guarded_outputs(side):
    y = torch.empty(count)
over = 1 if side == "after" else 0
copy_kernel[(1,)](
    x,
    y,
    count + over * (where == "load"),
    count + over * (where == "store"),
    SHIFT=-1 if side == "before" and where == "load" else 0,
    BLOCK=64,
)
print("unharmed")
