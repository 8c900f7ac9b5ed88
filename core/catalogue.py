"""What planning needs to know about installed plugins: a protocol that the registry implements."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from stackloom.core.manifest import Manifest


@dataclass(frozen=True)
class PluginRecord:
    """One installed plugin, found without running its code.

    Attributes:
        manifest: its validated plugin.toml.
        distribution, version: the installed distribution that ships it.
        package: import name of the folder that holds the manifest ("stackloom.plugins.optimizer.adamw").
        folder: that folder.
    """

    manifest: Manifest
    distribution: str
    version: str
    package: str
    folder: Path

    @property
    def id(self) -> str:
        """The plugin's id."""
        return self.manifest.id

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and contents of the plugin folder's files, compiled Python aside."""
        total = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(self.folder).as_posix()}\0{content}\n".encode())
        return total.hexdigest()


class Catalogue(Protocol):
    """Finds plugins by id; implemented by the registry, by a dict in tests."""

    def get(self, plugin: str) -> PluginRecord:
        """Return the record of `plugin`.

        Raises:
            ConfigError: not installed; the message suggests the nearest id.
            PluginError: installed, but its manifest is broken or two distributions claim the id.
        """
        ...

    def ids(self) -> Iterable[str]:
        """All ids that can be asked for."""
        ...
