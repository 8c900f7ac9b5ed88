"""What a slot is: a name, the version of its contract, and where a stack spells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stackloom.core.config import ComponentConfig


@dataclass(frozen=True)
class Slot:
    """One kind of component.

    Attributes:
        name: as in plugin ids.
        version: of the contract; a manifest's slot_api is "<name>/<version>".
        sits_in: the places of a stack that take it: "model", or a stage's kind.
        summary: one line for `stackloom show <slot>`.
        protocol: what the component must look like.
        config: base class of the config; a slot that needs more than ComponentConfig has its own.
        features: capability flags that a manifest may list under can.features, each with its meaning.
    """

    name: str
    version: int
    sits_in: tuple[str, ...]
    summary: str
    protocol: type[Any]
    config: type[ComponentConfig]
    features: dict[str, str]

    @property
    def api(self) -> str:
        """The string that a manifest's slot_api must equal."""
        return f"{self.name}/{self.version}"
