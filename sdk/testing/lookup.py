"""Finds installed plugins by id, builds their components, and picks the contract of their slot."""

from __future__ import annotations

import importlib
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackloom.core.catalogue import PluginRecord
from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ConfigError
from stackloom.core.loading import load_config, validate_options
from stackloom.registry import open_registry

if TYPE_CHECKING:
    from stackloom.testing.contracts.plugin import PluginContract


@cache
def record(plugin: str) -> PluginRecord:
    """Return the record of an installed plugin; the user's own registry is neither read nor written.

    Raises:
        ConfigError: not installed; the message suggests the nearest id.
        PluginError: installed, but its manifest is broken.

    Example:
        >>> record("optimizer.adamw").manifest.slot_api
        'optimizer/1'
    """
    with (
        tempfile.TemporaryDirectory() as home,
        open_registry(url=f"sqlite:///{home}/registry.db", home=Path(home)) as registry,
    ):
        return registry.get(plugin)


def make_config(plugin: PluginRecord, options: dict[str, Any]) -> ComponentConfig:
    """Return the plugin's validated config, nested references resolved as a plan resolves them.

    Raises:
        ErrorGroup: every bad option.
        PluginError: the config cannot be imported.
    """
    config = validate_options(load_config(plugin), options, plugin.id)
    nested = {
        name: make_config(record(value.use), value.options)
        for name, _, value in config.nested()
        if not isinstance(value, ComponentConfig)
    }
    return config.model_copy(update=nested)


def build(plugin: str, /, *dependencies: Any, **options: Any) -> Any:
    """Build the component of an installed plugin.

    Args:
        plugin: its id.
        dependencies: what the slot hands over after the config (a layer shape, named parameters, a tokenizer).
        options: the plugin's options.

    Example:
        >>> build("optimizer.adamw", torch.nn.Linear(4, 2).named_parameters(), lr=1e-2).routes()
        [('weight', 'adamw, decay 0.1'), ('bias', 'adamw, no decay')]
    """
    return make_config(record(plugin), options).build(*dependencies)


def contract_for(plugin: str, **options: Any) -> type[PluginContract]:
    """Return the contract class of the plugin's slot, ready to be collected by pytest.

    Args:
        plugin: its id.
        options: the plugin's options.

    Raises:
        ConfigError: its slot has no contract.

    Example:
        >>> TestMySGD = contract_for("optimizer.my-sgd", lr=0.1)
    """
    slot = plugin.partition(".")[0]
    name = f"{slot.capitalize()}Contract"
    try:
        contract = getattr(importlib.import_module(f"stackloom.testing.contracts.{slot}"), name)
    except ModuleNotFoundError as cause:
        raise ConfigError(f"slot {slot!r} has no contract", where=plugin) from cause
    made: type[PluginContract] = type(f"Test{name}", (contract,), {"plugin": plugin, "options": options})
    return made
