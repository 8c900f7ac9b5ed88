"""References: a plugin's id with raw options, as a stack spells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from stackloom.core.errors import ConfigError


class Ref(BaseModel):
    """`{use: optimizer.mona, lr: 2e-3}`: which plugin, and the options the user wrote.

    Options stay raw until a plan resolves them against the plugin's config class.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    use: str

    @field_validator("use")
    @classmethod
    def _is_an_id(cls, value: str) -> str:
        slot, dot, technique = value.partition(".")
        if not (dot and slot and technique):
            raise ValueError(f"{value!r} is not a plugin id: write <slot>.<technique>, for instance optimizer.adamw")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """The options as written."""
        return dict(self.model_extra or {})


@dataclass(frozen=True)
class RefTo:
    """Marks a config field that holds a component of another slot, for the planner to resolve.

    A stage's field may hold several: a "list" (`- {use: ...}`; one alone will do), or one for each of some "patterns"
    (`{"*_proj.weight": {use: ...}, "*": {use: ...}}`; one alone takes everything).

    Example: `base: Annotated[Ref | ComponentConfig, RefTo("quantizer")]`; `| None` goes inside the brackets.
    """

    slot: str
    many: Literal["", "list", "patterns"] = ""

    def read(self, value: object, where: str) -> Any:
        """Read what a stack spells: a `Ref`, a tuple of them, or a dict from pattern to `Ref`.

        Raises:
            ConfigError: a value names no plugin.
        """
        if self.many == "list":
            items = value if isinstance(value, list | tuple) else [value]
            return tuple(as_ref(item, f"{where}[{index}]") for index, item in enumerate(items))
        if self.many == "patterns" and isinstance(value, Mapping) and "use" not in value:
            return {str(pattern): as_ref(item, f"{where}[{pattern}]") for pattern, item in value.items()}
        return as_ref(value, where)

    @staticmethod
    def each(field: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield (place, component) for what `read` returned; places are "data", "transform[0]", "optimizer[*bias]"."""
        if isinstance(value, tuple | list):
            yield from ((f"{field}[{index}]", item) for index, item in enumerate(value))
        elif isinstance(value, dict):
            yield from ((f"{field}[{pattern}]", item) for pattern, item in value.items())
        elif value is not None:
            yield field, value

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Describe the field as a reference to a plugin of this slot."""
        one = {"type": "object", "slot": self.slot, "properties": {"use": {"type": "string"}}, "required": ["use"]}
        if self.many == "list":
            return {"type": "array", "slot": self.slot, "items": one}
        patterns = {"type": "object", "additionalProperties": one}
        return {"slot": self.slot, "anyOf": [one, patterns]} if self.many else one


def use(plugin: str, /, **options: Any) -> Ref:
    """Return a reference to a plugin.

    Args:
        plugin: the id, for instance "optimizer.mona".
        options: the plugin's options; checked when a plan resolves them.

    Example:
        >>> use("optimizer.mona", lr=2e-3).use
        'optimizer.mona'
    """
    return Ref(use=plugin, **options)


def as_ref(value: object, where: str) -> Ref:
    """Read a reference from YAML data, a `Ref`, or a plugin's config object.

    Raises:
        ConfigError: the value names no plugin.
    """
    from stackloom.core.config import ComponentConfig  # configs are made of references

    if isinstance(value, Ref):
        return value
    if isinstance(value, ComponentConfig):
        return value.as_ref()
    if isinstance(value, str):
        value = {"use": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
        raise ConfigError(
            f"expected a plugin, got {value!r}", where=where, fix="write {use: <slot>.<technique>, <option>: <value>}"
        )
    slot, dot, technique = value["use"].partition(".")
    if not (dot and slot and technique):
        raise ConfigError(
            f"{value['use']!r} is not a plugin id",
            where=f"{where}.use",
            fix="write <slot>.<technique>, for instance optimizer.adamw",
        )
    return Ref(**{str(key): item for key, item in value.items()})
