"""The machine-readable rows of the read verbs and of committed evidence. Their fields are stable: add, never rename."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Verdict: TypeAlias = Literal["reproduced", "direction", "not_reproduced", "error"]
Scale: TypeAlias = Literal["cpu", "cpu-full", "gpu"]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginRow(_Row):
    """One row of `stackloom list --json`."""

    id: str
    slot: str
    version: str
    lifecycle: str
    paper: str = Field(description="short name of the paper, or empty")
    origin: str = Field(description="the distribution that ships it")


class EvidenceRow(_Row):
    """One row of `stackloom repro --json` and of the files under docs/evidence."""

    plugin: str
    claim: str
    scale: Scale
    verdict: Verdict
    paper: float | None
    ours: float | None
    unit: str
    interval: tuple[float, float] | None = Field(description="95 per cent interval of ours")
    seeds: tuple[int, ...]
    seconds: float
    device: str
    versions: dict[str, str] = Field(description="distributions and Python; plugin id to the digest of its files")
    commit: str
    date: str = Field(description="ISO 8601, UTC")
    baseline: float | None = Field(None, description="what ours is compared with")
    command: str = Field("", description="repeats the measurement")
    error: str = Field("", description="why there is no measurement, where the verdict is 'error'")
    details: dict[str, Any] = Field(default_factory=dict, description="what the claim keeps besides: curves, tables")


class BenchRow(BaseModel):
    """One row of `stackloom bench --json`; ratio is baseline time over ours, further keys may follow."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    case: str
    ratio: float | None
    bar: float | None
    met: bool | None
    floor_fraction: float | None
    error: float | None
    device: str


class CheckRow(_Row):
    """One row of `stackloom check --json`."""

    id: str
    required: bool
    passed: bool
    expected: str
    actual: str
    fix: str


def to_json(rows: Iterable[BaseModel]) -> list[dict[str, Any]]:
    """Dump rows in their field order."""
    return [row.model_dump(mode="json") for row in rows]
