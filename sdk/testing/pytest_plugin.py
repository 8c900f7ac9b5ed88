"""The pytest plugin of the author kit: readable assertions in contracts, and one test per dtype that a manifest lists.

Loads without torch.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.register_assert_rewrite("stackloom.testing.contracts", "stackloom.testing.comparison")


def pytest_generate_tests(metafunc: Any) -> None:
    """Run a contract's law that takes `dtype` once per dtype of the manifest's `[can]`."""
    # A contract is told by its attribute: importing the class here would import torch into every pytest run.
    if "dtype" in metafunc.fixturenames and getattr(metafunc.cls, "is_contract", False):
        metafunc.parametrize("dtype", metafunc.cls.record().manifest.can.dtypes)
