"""A stack as the user wrote it: names, options and order, nothing resolved yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stackloom.core.devices import Device
from stackloom.core.errors import ConfigError, ErrorGroup, did_you_mean
from stackloom.core.manifest import dotted, explain
from stackloom.core.ref import Ref, as_ref
from stackloom.core.stages import STAGES

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32


class Resources(BaseModel):
    """What a run may use.

    Attributes:
        device: a name of the device table, or "auto".
        dtype: compute dtype, a torch dtype name; "auto" is bfloat16 where the device has instructions for it, else
            float32. A plan holds the one that was meant.
        workers: processes that share a stage's work.
        shard: how several workers hold the model: whole copies (none) or parameter shards (fsdp).
        activation_checkpointing: recompute activations in the backward pass: less memory, a third more FLOPs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    workers: int = Field(1, ge=1, le=100_000)
    shard: Literal["none", "fsdp"] = "none"
    activation_checkpointing: bool = False

    def on(self, device: Device) -> Resources:
        """Return them with `auto` replaced by what it means on a device."""
        return self if self.dtype != "auto" else self.model_copy(update={"dtype": device.dtype})


class StageSpec(BaseModel):
    """One stage: its kind and its raw options, components among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    options: dict[str, Any]


class StackSpec(BaseModel):
    """The stack file's content: raw references in order.

    Attributes:
        name: of the stack and of its run folder.
        seed: every random choice of the run derives from it.
        resources, model, stages: what it runs on, with and through; a stage is written `- train: {...}`.
        trackers: plugins that listen to the run.
        sweep: options by their path ("quantize.quantizer") and the values that each takes; `stackloom run` runs the
            stack once for every combination. A plan is of the stack as written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0, lt=2**63)
    resources: Resources = Resources()
    model: Ref
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    trackers: tuple[Ref, ...] = ()
    sweep: dict[str, tuple[Any, ...]] = {}

    @classmethod
    def from_data(cls, data: object, source: str = "stack") -> StackSpec:
        """Read a stack from plain data.

        Raises:
            ErrorGroup: every problem of the stack's frame at once, each with its path.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"a stack is a mapping, got {type(data).__name__}",
                where=source,
                fix="start with name:, model: and stages:",
            )
        errors: list[ConfigError] = []
        fields: dict[str, Any] = {str(key): value for key, value in data.items()}
        if "model" in fields:
            fields["model"] = _collect(errors, lambda: as_ref(fields["model"], "model"))
        for name, read in (("trackers", _trackers), ("stages", _stages)):
            if name in fields:
                fields[name] = read(fields[name], errors)
        try:
            spec = cls.model_validate(fields)
        except ValidationError as error:
            broken = {item.where.partition("[")[0].partition(".")[0] for item in errors}
            errors += [
                ConfigError(explain(item, cls), where=dotted(item["loc"]))
                for item in error.errors()
                if str(item["loc"][0]) not in broken
            ]
        if errors:
            raise ErrorGroup(errors, f"{source}: {len(errors)} problem{'s' if len(errors) > 1 else ''}")
        return spec

    @classmethod
    def from_yaml(cls, text: str, source: str = "stack") -> StackSpec:
        """Read a stack from YAML 1.2 text (`2e-3` is a number, `no` is a word; duplicate keys and anchors are refused).

        Raises:
            ConfigError: not YAML, or not a stack; with line and column, or with every path.
        """
        return cls.from_data(load_yaml(text, source), source)

    @classmethod
    def from_file(cls, path: Path) -> StackSpec:
        """Read a stack from a YAML file.

        Raises:
            ConfigError: the file is missing, too large, not UTF-8, not YAML, or not a stack.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ConfigError(
                    f"larger than {MAX_BYTES} bytes", where=str(path), fix="a stack file holds references, not data"
                )
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as cause:
            raise ConfigError(f"cannot read the stack: {cause}", where=str(path)) from cause
        return cls.from_yaml(text, str(path))

    def to_data(self) -> dict[str, Any]:
        """Return plain data that `from_data` reads back."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        data |= {"stages": [{stage.kind: _plain(stage.options)} for stage in self.stages], "sweep": _plain(self.sweep)}
        return {key: data[key] for key in type(self).model_fields if data.get(key)}

    def to_yaml(self) -> str:
        """Return the stack as YAML."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(
            value.model_dump(mode="json") if isinstance(value, Ref) else as_ref(value, "").model_dump(mode="json")
        )
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _collect(errors: list[ConfigError], read: Any) -> Any:
    try:
        return read()
    except ConfigError as error:
        errors.append(error)
        return None


def _trackers(raw: object, errors: list[ConfigError]) -> list[Ref]:
    if not isinstance(raw, list | tuple):
        errors.append(
            ConfigError("expected a list of trackers", where="trackers", fix="write `trackers: [tracker.jsonl]`")
        )
        return []
    found = [_collect(errors, partial(as_ref, item, f"trackers[{index}]")) for index, item in enumerate(raw)]
    return [ref for ref in found if ref is not None]


def _stages(raw: object, errors: list[ConfigError]) -> list[StageSpec]:
    if not isinstance(raw, list | tuple):
        errors.append(
            ConfigError(
                f"expected a list of stages, got {type(raw).__name__}",
                where="stages",
                fix="write `stages:` and a line `- train: {...}`",
            )
        )
        return []
    found = []
    for index, item in enumerate(raw):
        where = f"stages[{index}]"
        if isinstance(item, StageSpec):
            item = {item.kind: item.options}
        if not isinstance(item, Mapping) or len(item) != 1:
            errors.append(ConfigError("a stage has one key, its kind", where=where, fix="write `- train: {...}`"))
            continue
        kind, options = next(iter(item.items()))
        if kind not in STAGES:
            errors.append(
                ConfigError(
                    f"unknown stage {kind!r}",
                    where=where,
                    fix=did_you_mean(str(kind), STAGES, otherwise=f"known stages: {', '.join(STAGES)}"),
                )
            )
        elif not isinstance(options, Mapping):
            errors.append(
                ConfigError(
                    f"expected options, got {options!r}", where=f"{where}.{kind}", fix=f"write `- {kind}: {{...}}`"
                )
            )
        else:
            found.append(StageSpec(kind=str(kind), options={str(key): value for key, value in options.items()}))
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars that refuses duplicate keys, anchors and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed in a stack", problem_mark=mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH}", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is there twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", "-+.0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def load_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 data.

    Raises:
        ConfigError: with line and column.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"not a stack file: {problem}", where=place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not a stack file: {error}", where=source) from None
