"""Compiles Triton kernels for an NVIDIA GPU that need not be there, and reads what came out of the assembler.

``kernel.warmup`` specialises its arguments as a launch does, so it yields the binary that a launch would run. The
driver it asks for a target is a stand-in; the figures come from the ``cuobjdump`` and ``nvdisasm`` that ship inside
Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor

from ..contract import CompileTarget
from .autotune import interpreting

REGISTERS_PER_THREAD = 255
SHARED_BYTES_SM90 = 232_448  # 227 KiB: what one block may use on Hopper

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TENSOR_CORE = re.compile(r"\b(HGMMA|IGMMA|QGMMA|HMMA|IMMA|QMMA)\b")
_LOCAL = re.compile(r"\b(STL|LDL)\b")
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


class OfflineDriver:
    """Answers what Triton asks a driver before it compiles; it cannot launch.

    Args:
        sm: the compute capability to compile for, times ten.
    """

    def __init__(self, sm: int = 90) -> None:
        self.target = GPUTarget("cuda", sm, 32)

    def get_current_target(self) -> GPUTarget:
        """The target that kernels are compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """Always device 0."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """Always the null stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """A name only; nothing is allocated there."""
        return torch.device("cuda", 0)


@dataclass(frozen=True)
class Measurement:
    """What one compiled kernel takes, from its machine code.

    Attributes:
        registers: per thread.
        stack: bytes of local memory a thread reserves; spills live there.
        spills: STL and LDL instructions.
        shared: bytes of dynamic shared memory a block asks for.
        tensor_core: tensor-core instructions by mnemonic.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    tensor_core: dict[str, int]

    def as_row(self) -> dict[str, Any]:
        """The measurement as JSON."""
        return asdict(self)


def install(sm: int = 90) -> None:
    """Make this process compile for ``sm`` instead of asking a CUDA driver.

    Raises:
        RuntimeError: ``TRITON_INTERPRET`` is set, so there is nothing to compile.
    """
    if interpreting():
        raise RuntimeError(
            "TRITON_INTERPRET is set: interpreted kernels cannot be compiled; run this in a process without it"
        )
    triton.runtime.driver.set_active(OfflineDriver(sm))


def measure(target: CompileTarget) -> tuple[Measurement, tuple[str, ...]]:
    """Compile one target.

    Returns:
        The measurement, and those of ``target.sass`` that do not occur in the machine code.
    """
    args = [MockTensor(arg, [16]) if isinstance(arg, torch.dtype) else arg for arg in target.args]
    compiled = target.kernel.warmup(
        *args, **target.constants, num_warps=target.num_warps, num_stages=target.num_stages, grid=(1,)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", cubin.name)
        sass = _run("nvdisasm", "-c", cubin.name)
    opcodes = set(_OPCODE.findall(sass))
    missing = tuple(claim for claim in target.sass if not any(_is(opcode, claim) for opcode in opcodes))
    measurement = Measurement(
        registers=_figure("REG", usage),
        stack=_figure("STACK", usage),
        spills=len(_LOCAL.findall(sass)),
        shared=int(compiled.metadata.shared),
        tensor_core=dict(sorted(Counter(_TENSOR_CORE.findall(sass)).items())),
    )
    return measurement, missing


def violations(measurement: Measurement, missing: tuple[str, ...] = ()) -> list[str]:
    """Every limit that the measurement breaks, in words; empty when the kernel may ship."""
    found = [f"claims {claim} but its machine code has none" for claim in missing]
    if measurement.stack:
        found.append(f"reserves {measurement.stack} bytes of stack per thread")
    if measurement.spills:
        found.append(f"spills registers: {measurement.spills} local memory instructions")
    if measurement.shared > SHARED_BYTES_SM90:
        found.append(f"asks for {measurement.shared} bytes of shared memory, a block has {SHARED_BYTES_SM90}")
    if measurement.registers > REGISTERS_PER_THREAD:
        found.append(f"takes {measurement.registers} registers, a thread has {REGISTERS_PER_THREAD}")
    return found


def _is(opcode: str, claim: str) -> bool:
    """Whether ``claim``'s parts occur in the opcode in order: LDG.E.128 is in LDG.E.LTC128B.128."""
    parts = iter(opcode.split("."))
    return all(part in parts for part in claim.split("."))


def _figure(name: str, usage: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no {name}: {usage!r}")
    return int(found.group(1))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
