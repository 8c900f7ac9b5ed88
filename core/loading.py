"""Imports a chosen plugin's config module, and turns whatever goes wrong there into an error that names the plugin."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ValidationError

from stackloom.core.catalogue import PluginRecord
from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ConfigError, ErrorGroup, PluginError, StackloomError
from stackloom.core.manifest import dotted, explain
from stackloom.core.slots import slots

IMPORT_SECONDS = 20.0
T = TypeVar("T")


def load_config(record: PluginRecord) -> type[ComponentConfig]:
    """Import `record`'s config class.

    Raises:
        PluginError: the import raises, exits or takes longer than IMPORT_SECONDS; the class is missing, is no config of
            the slot, or the slot's version is not ours. Names the distribution, its version and the cause.
    """
    slot = slots().get(record.manifest.slot)
    if slot is None or slot.api != record.manifest.slot_api:
        ours = slot.api if slot else f"no slot {record.manifest.slot!r}"
        raise PluginError(
            f"made for {record.manifest.slot_api}; this stackloom has {ours}",
            where=blame(record),
            fix="install versions of stackloom and the plugin that go together",
        )
    module, _, name = record.manifest.config.partition(":")
    with blamed(record, "importing its config"), time_limit(IMPORT_SECONDS):
        found = getattr(importlib.import_module(f"{record.package}.{module}"), name, None)
    if not (isinstance(found, type) and issubclass(found, slot.config)):
        raise PluginError(f"{record.manifest.config} is no {slot.config.__name__}", where=blame(record))
    return found


def validate_options(config: type[ComponentConfig], options: Mapping[str, Any], where: str) -> ComponentConfig:
    """Construct a config from raw options.

    Raises:
        ErrorGroup: every bad option with its path in the stack; unknown keys with a suggestion.
    """
    try:
        return config.model_validate(dict(options))
    except ValidationError as error:
        errors = [
            ConfigError(explain(item, config), where=dotted((where, *_without_union_arms(item["loc"]))))
            for item in error.errors()
        ]
        raise ErrorGroup(errors, f"{where}: {len(errors)} bad option{'s' if len(errors) > 1 else ''}") from None


def _without_union_arms(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop the class names that pydantic puts into the location of a `Ref | ComponentConfig` field."""
    return tuple(part for part in location if part not in {"Ref", "ComponentConfig"})


def blame(record: PluginRecord) -> str:
    """Name a plugin with the distribution that ships it: "optimizer.mona (stackloom 0.1.0)"."""
    return f"{record.id} ({record.distribution} {record.version})"


@contextmanager
def blamed(record: PluginRecord, doing: str) -> Iterator[None]:
    """Turn anything that a plugin's code raises, SystemExit included, into a PluginError that names it."""
    try:
        yield
    except StackloomError:
        raise
    except (Exception, SystemExit) as cause:
        raise PluginError(
            f"{doing} failed: {type(cause).__name__}: {cause}",
            where=blame(record),
            fix=f"see `stackloom doctor --import {record.id}`; update or uninstall {record.distribution}",
        ) from cause


def ask(record: PluginRecord, method: Callable[..., T], *arguments: Any) -> T:
    """Call one of a config's methods (`fit`, `cost`, `touches`, `shape`) on the plugin's account."""
    with blamed(record, f"{method.__name__}()"):
        return method(*arguments)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, where signals allow it (POSIX, main thread)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(*_: object) -> None:
        raise TimeoutError(f"still not done after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
