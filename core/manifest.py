"""`plugin.toml`: what a plugin says about itself, read without running any of its code."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stackloom.core.errors import PluginError, did_you_mean

Lifecycle: TypeAlias = Literal["experimental", "stable", "deprecated"]
Determinism: TypeAlias = Literal["exact", "same-machine", "statistical"]
_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_TARGET = r"[a-z_][a-z0-9_]*:[A-Za-z_][A-Za-z0-9_]*"
MAX_BYTES = 256 * 1024


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Paper(_Table):
    """The publication that a plugin implements."""

    title: str = Field(description="title as printed", min_length=1)
    url: str = Field("", description="where to read it", pattern=r"^(https?://\S+)?$")
    page: str = Field("", description="short name used in tables and on the site, for instance 'MONA'")


class Can(_Table):
    """What the component can do; checked by the slot's contract tests, not taken on trust."""

    dtypes: tuple[str, ...] = Field(("float32",), description="torch dtype names it computes in")
    devices: tuple[Literal["cpu", "cuda"], ...] = Field(("cpu",), description="device types it runs on")
    features: tuple[str, ...] = Field((), description="capability flags of the slot, for instance 'rollback'")


class Conflict(_Table):
    """A plugin that must not be in the same stage."""

    plugin: str = Field(alias="with", description="plugin id, or '<slot>.*' for every plugin of a slot")
    reason: str = Field(description="what goes wrong, in a sentence that a user can act on", min_length=1)


class Claim(_Table):
    """Something the paper says that `stackloom repro` measures."""

    name: str = Field(description="key, also the function in claims.py", pattern=r"^[a-z][a-z0-9_]*$")
    statement: str = Field(description="the claim in one sentence", min_length=1)
    where: str = Field(description="table, figure or equation", min_length=1)
    metric: str = Field(description="what is measured", min_length=1)
    unit: str = Field("", description="unit of the metric")
    paper: float | None = Field(None, description="the paper's value; absent for an identity or a direction")
    better: Literal["higher", "lower", "equal"] = Field("equal", description="direction of the claim")
    tolerance: float = Field(0.0, ge=0, description="counts as reproduced: largest distance from the paper's value")
    scales: tuple[Literal["cpu", "cpu-full", "gpu"], ...] = Field(
        ("cpu",), description="scales that it can run at", min_length=1
    )


class Manifest(_Table):
    """The content of one `plugin.toml`.

    Paths in `config` and `component` are relative to the manifest's folder: "config:MonaConfig".
    """

    id: str = Field(description="<slot>.<technique>, lower case with hyphens", pattern=rf"^{_NAME}\.{_NAME}$")
    slot_api: str = Field(description="the slot's contract and version: 'optimizer/1'", pattern=rf"^{_NAME}/[0-9]+$")
    config: str = Field(description="module:class of the ComponentConfig, torch-free", pattern=rf"^{_TARGET}$")
    component: str = Field(description="module:name of what config.build() constructs", pattern=rf"^{_TARGET}$")
    summary: str = Field(description="one line for lists", min_length=1, max_length=160)
    description: str = Field("", description="more, in a paragraph")
    version: str = Field("", description="the technique's own version; empty takes the distribution's")
    paper: Paper | None = Field(None, description="absent for a technique without one")
    licence: str = Field(description="SPDX expression of the plugin's code", min_length=1)
    lifecycle: Lifecycle = Field("experimental", description="what users may rely on")
    determinism: Determinism = Field(description="exact: bit-equal anywhere; same-machine: on one build; statistical")
    keywords: tuple[str, ...] = Field((), description="words that search should find")
    needs: dict[str, str] = Field(default_factory=dict, description="distribution name to version specifier")
    can: Can = Field(default_factory=Can)
    conflicts: tuple[Conflict, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def slot(self) -> str:
        """The slot's name."""
        return self.id.partition(".")[0]

    @field_validator("needs")
    @classmethod
    def _specifiers(cls, needs: dict[str, str]) -> dict[str, str]:
        for name, specifier in needs.items():
            try:
                SpecifierSet(specifier)
            except InvalidSpecifier:
                raise ValueError(
                    f"{name}: {specifier!r} is no version specifier; write '>=2.11' or '' for any"
                ) from None
        return needs

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if self.slot_api.partition("/")[0] != self.slot:
            raise ValueError(f"id {self.id!r} and slot_api {self.slot_api!r} name different slots")
        names = [claim.name for claim in self.claims]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"claims named twice: {', '.join(twice)}")
        return self


class ManifestError(PluginError):
    """A `plugin.toml` that does not hold; `problems` lists every one as (path in the file, message)."""

    def __init__(self, source: str, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        lines = "\n".join(f"  {path}: {message}" if path else f"  {message}" for path, message in problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(
            f"bad manifest, {count}:\n{lines}",
            where=source,
            fix="correct the file; `stackloom show --schema` prints what it may hold",
        )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a manifest's raw table, refusing files that are too large, not UTF-8 or not TOML.

    Raises:
        ManifestError: with the file and the reason.
    """
    try:
        stat = path.stat()
    except OSError as cause:
        raise ManifestError(str(path), [("", str(cause))]) from cause
    return _read_toml(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _read_toml(path: Path, _mtime: int, size: int) -> dict[str, Any]:
    if size > MAX_BYTES:
        raise ManifestError(str(path), [("", f"{size} bytes; a manifest has at most {MAX_BYTES}")])
    return parse_toml(path.read_bytes(), str(path))


def parse_toml(content: bytes, source: str) -> dict[str, Any]:
    """Decode and parse TOML.

    Raises:
        ManifestError: not UTF-8, not TOML, or nested too deep.
    """
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as cause:  # TOML, UTF-8, and integers beyond what Python converts
        raise ManifestError(source, [("", f"not TOML: {cause}")]) from cause


def parse_manifest(table: Mapping[str, Any], source: str) -> Manifest:
    """Validate a manifest's table.

    Args:
        table: the parsed TOML.
        source: file name for messages.

    Raises:
        ManifestError: every problem at once, each with its path.
    """
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        raise ManifestError(source, [(dotted(one["loc"]), explain(one, Manifest)) for one in error.errors()]) from None


def dotted(location: tuple[int | str, ...]) -> str:
    """Write a location as a path: ("claims", 0, "unit") becomes "claims[0].unit"."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def explain(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Say a pydantic error the way a user would: unknown keys with a suggestion, wrong values with what was given."""
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        all_known = f"known keys: {', '.join(sorted(known))}"
        return f"unknown key; {did_you_mean(str(error['loc'][-1]), known, otherwise=all_known)}"
    if error["type"] == "missing":
        return "required, but missing"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    given = error.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) or given is None else ""
    return message if error["type"] == "value_error" else f"{message}{shown[:200]}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    current: Any = model
    for part in (part for part in location if isinstance(part, str)):
        field = getattr(current, "model_fields", {}).get(part)
        current = next((kind for kind in _models_in(field.annotation)), None) if field else None
    fields = getattr(current, "model_fields", {})
    return {field.alias or name for name, field in fields.items()}


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]
