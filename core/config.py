"""`ComponentConfig`: the options of a component, and what follows from them without torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined

from stackloom.core.cost import Cost, Work
from stackloom.core.errors import PluginError
from stackloom.core.fit import Fit, FitContext
from stackloom.core.ref import Ref, RefTo
from stackloom.core.touch import Touch

Source: TypeAlias = Literal["paper", "official code", "inferred", "house"]


def option(
    default: Any = PydanticUndefined,
    description: str = "",
    *,
    unit: str = "",
    source: Source = "house",
    **constraints: Any,
) -> Any:
    """Declare one option of a component.

    Args:
        default: the default value; leave it out for a required option.
        description: what it does, in one sentence.
        unit: "tokens", "fraction", "bytes", ...; empty for a pure number or a choice.
        source: where the default comes from: "house" is our own choice, "inferred" a point that a paper leaves open.
        constraints: anything `pydantic.Field` takes (gt, ge, le, max_length, ...).
    """
    return Field(default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints)


class ComponentConfig(BaseModel):
    """Base of every component's options: frozen, finite, no unknown keys, every field described.

    A subclass lives in its plugin folder's `config.py`, imports no torch, and overrides `fit`, `cost` and `touches`
    where it has something to say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field without description or source, when the class is made rather than when a user reads it."""
        super().__pydantic_init_subclass__(**kwargs)
        bare = [
            name
            for name, field in cls.model_fields.items()
            if not field.description
            or not isinstance(field.json_schema_extra, dict)
            or "source" not in field.json_schema_extra
        ]
        if bare:
            raise PluginError(
                f"options without description and source: {', '.join(bare)}",
                where=f"{cls.__module__}.{cls.__qualname__}",
                fix="declare each with option(default, 'what it does', unit=..., source=...)",
            )

    def fit(self, ctx: FitContext) -> Fit | list[Fit]:
        """Say whether the component works in this place; the default says yes."""
        return Fit.yes()

    def cost(self, work: Work) -> Cost:
        """Say what the component adds to one step of `work`; the default is nothing."""
        return Cost()

    def touches(self, ctx: FitContext) -> list[Touch]:
        """Name the model's nodes that the component reads, wraps, rewrites or replaces; the default is none."""
        return []

    @cached_property
    def plugin_id(self) -> str:
        """The id in the `plugin.toml` that names this class."""
        return _manifest_beside(type(self))["id"]

    def as_ref(self) -> Ref:
        """The reference that resolves to this config; nested configs become nested references."""
        options = {
            name: value.as_ref().model_dump() if isinstance(value, ComponentConfig) else value
            for name, value in ((name, getattr(self, name)) for name in self.model_fields_set)
        }
        return Ref(use=self.plugin_id, **options)

    def nested(self) -> Iterator[tuple[str, str, Ref | ComponentConfig]]:
        """Yield (place, slot, component) for each component that an option holds; see `RefTo.each` for places."""
        for name, mark in self.slotted().items():
            for place, value in mark.each(name, getattr(self, name)):
                yield place, mark.slot, value

    @classmethod
    def slotted(cls) -> dict[str, RefTo]:
        """The fields that hold components, with their marks."""
        marks = ((name, mark) for name, field in cls.model_fields.items() for mark in field.metadata)
        return {name: mark for name, mark in marks if isinstance(mark, RefTo)}

    def build(self, *dependencies: Any, **named: Any) -> Any:
        """Import the component that the manifest names and construct it as `Component(config, *dependencies)`.

        This is the first moment at which torch may be imported.

        Raises:
            PluginError: the component cannot be imported or the manifest names none.
        """
        return self.component_class()(self, *dependencies, **named)

    def component_class(self) -> Any:
        """Import and return what the manifest's `component` names, without constructing it."""
        module, _, name = _manifest_beside(type(self))["component"].partition(":")
        package = type(self).__module__.rpartition(".")[0]
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), name)
        except (ImportError, AttributeError) as cause:
            raise PluginError(f"cannot load its component {module}:{name}: {cause}", where=self.plugin_id) from cause


def _manifest_beside(config: type[ComponentConfig]) -> Mapping[str, str]:
    """The raw `plugin.toml` table that names `config`, from the folder of the module that defines it."""
    from stackloom.core.manifest import read_toml  # a manifest names configs; configs need it only to find themselves

    folder = Path(inspect.getfile(config)).parent
    for path in sorted(folder.glob("*plugin.toml")):
        table = read_toml(path)
        if table.get("config", "").partition(":")[2] == config.__name__:
            return table
    raise PluginError(
        f"no plugin.toml beside {folder} names {config.__name__}",
        where=config.__module__,
        fix='add a plugin.toml with config = "config:' + config.__name__ + '"',
    )
