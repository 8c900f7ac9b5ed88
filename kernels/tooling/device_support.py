"""What a Triton kernel needs of the device that its tensors are on."""

from __future__ import annotations

import functools

import torch

from ..selection import Support
from .autotune import interpreting


def triton_can_run(*tensors: torch.Tensor, minimum_sm: int = 80) -> Support:
    """Whether all tensors are on one device on which a Triton kernel runs.

    Args:
        tensors: everything the kernel reads.
        minimum_sm: the oldest compute capability, times ten (80 is Ampere, 90 Hopper).
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        return Support(False, f"the tensors are on several devices: {', '.join(sorted(map(str, devices)))}")
    device = devices.pop()
    if interpreting():
        return Support(device.type == "cpu", f"TRITON_INTERPRET is set and the tensors are on {device}")
    if device.type != "cuda":
        return Support(False, f"needs a CUDA device, the tensors are on {device}")
    if torch.version.hip:
        return Support(False, "compiled and checked for NVIDIA devices only, this is a ROCm build of torch")
    sm = _compute_capability(device.index)
    return Support(sm >= minimum_sm, f"needs sm_{minimum_sm} or newer, {device} is sm_{sm}")


@functools.cache
def _compute_capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor
