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
        """sha256 over the plugin folder's files and the modules that its slot's folder shares, names included."""
        shared = self.folder.parent.glob("*.py") if "." in self.package else ()
        own = (path for path in self.folder.rglob("*") if "__pycache__" not in path.parts)
        total = hashlib.sha256()
        for path in sorted(path for path in (*own, *shared) if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(self.folder.parent).as_posix()}\0{content}\n".encode())
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
