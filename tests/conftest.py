"""Settings of every test."""

from __future__ import annotations

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the kernel tests also run on a bare image
    pass
else:
    settings.register_profile("stackloom", deadline=None, max_examples=100)
    settings.load_profile("stackloom")
