"""The registry's own error: its files or its database cannot be used."""

from __future__ import annotations

from stackloom.core.errors import ArtifactError


class StorageError(ArtifactError):
    """The registry cannot be read or written: disk full, no permission, server gone, a foreign or newer file.

    Nothing of the refused operation is kept; what was acknowledged before stays.
    """
