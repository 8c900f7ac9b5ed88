"""Devices that a plan can be made for: a shipped table, and this machine's CPU read without torch."""

from __future__ import annotations

import os
import platform
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.errors import ConfigError, did_you_mean

DTYPE_BYTES: dict[str, float] = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "int8": 1,
    "int4": 0.5,
}


class Device(BaseModel):
    """One device's figures, as far as planning needs them.

    Attributes:
        name: the key of the table ("h100").
        title: what people call it.
        kind: torch device type.
        memory_bytes: capacity in bytes.
        process_bytes: of it, what a process holds with torch and transformers loaded.
        bandwidth: memory bandwidth in bytes per second.
        flops: dense peak per dtype in FLOP/s (int8: op/s).
        capability: CUDA compute capability times ten (sm_90 is 90); 0 on a CPU.
        source: where the figures come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    kind: Literal["cpu", "cuda"]
    memory_bytes: int = Field(gt=0)
    process_bytes: int = Field(0, ge=0)
    bandwidth: float = Field(gt=0)
    flops: dict[str, float]
    capability: int = 0
    source: str

    def supports(self, dtype: str) -> bool:
        """Whether the device computes in `dtype` at all."""
        return dtype in self.flops

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]:
        """What "auto" stands for: bfloat16 where it is faster than float32, else float32."""
        return "bfloat16" if self.flops.get("bfloat16", 0) > self.flops.get("float32", 0) else "float32"


@cache
def device_table() -> dict[str, Device]:
    """All shipped devices by name; "cpu" is this machine, with its own memory and core count."""
    return {"cpu": _this_cpu(_cpu_core())} | {name: row for name, row in _rows().items() if row.kind != "cpu"}


def _rows() -> dict[str, Device]:
    with (Path(__file__).parent / "devices.toml").open("rb") as file:
        return {name: Device(name=name, **row) for name, row in tomllib.load(file).items()}


def _cpu_core() -> Device:
    """One core of the kind that this machine has."""
    return _rows()["cpu-core-bf16" if _has_bf16() else "cpu-core"]


def find_device(name: str) -> Device:
    """Return the device called `name`; "auto" is the GPU that the driver reports, else this CPU.

    Raises:
        ConfigError: no such device; the message names the nearest and lists all.
    """
    table = device_table()
    if name == "auto":
        return _local_gpu(table) or table["cpu"]
    if name.lower() not in table:
        hint = did_you_mean(name.lower(), table, otherwise=f"known devices: auto, {', '.join(table)}")
        raise ConfigError(f"unknown device {name!r}", where="resources.device", fix=hint)
    return table[name.lower()]


def _this_cpu(core: Device) -> Device:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else core.memory_bytes
    return core.model_copy(
        update={
            "name": "cpu",
            "title": f"this CPU ({cores} cores, {platform.machine()}{'' if core.dtype == 'bfloat16' else ', no bf16'})",
            "memory_bytes": pages,
            "flops": {dtype: rate * cores for dtype, rate in core.flops.items()},
        }
    )


def _has_bf16() -> bool:
    """Whether Linux lists bf16 instructions among the processor's features; elsewhere none are assumed."""
    try:
        features = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


def _local_gpu(table: dict[str, Device]) -> Device | None:
    """The table's entry for the first GPU that the Linux driver lists in /proc; loads no CUDA library."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = information.read_text().partition("Model:")[2].partition("\n")[0].upper()
        for device in table.values():
            if device.kind == "cuda" and device.name.split("-")[0].upper() in model:
                return device
    return None
