"""`environment.remote` keeps the slot's laws over a served environment."""

from typing import ClassVar

import pytest

from stackloom.plugins.environment.arithmetic.config import ArithmeticConfig
from stackloom.testing import EnvironmentContract
from tests.sdk.worlds.conftest import serving


class TestContract(EnvironmentContract):
    plugin = "environment.remote"
    options: ClassVar = {"url": "http://127.0.0.1:1"}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def server(cls):
        with serving(ArithmeticConfig().build(), most=1000) as (_, url):
            cls.options = {"url": url}
            yield
