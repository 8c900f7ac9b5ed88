from __future__ import annotations

import math

import pytest
from pydantic import Field, ValidationError

from stackloom.core.config import ComponentConfig, option
from stackloom.core.errors import PluginError


class Example(ComponentConfig):
    lr: float = option(0.1, "learning rate", gt=0)
    name: str = option("a", "a word")


def test_an_option_without_description_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(PluginError, match="rate"):

        class Bare(ComponentConfig):
            rate: float = 0.1


def test_an_option_without_source_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(PluginError, match="rate"):

        class Bare(ComponentConfig):
            rate: float = Field(0.1, description="declared without option()")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_are_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Example(lr=value)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Example(learning_rate=0.1)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().lr = 0.2  # type: ignore[misc]


def test_the_schema_carries_unit_and_source_of_every_option() -> None:
    fields = Example.model_json_schema()["properties"]
    assert all({"unit", "source", "description"} <= field.keys() for field in fields.values())


def test_a_bad_default_is_a_plugin_author_s_error_at_once() -> None:
    class Wrong(ComponentConfig):
        lr: float = option(-1.0, "learning rate", gt=0)

    with pytest.raises(ValidationError, match="greater than 0"):
        Wrong()


def test_a_config_outside_a_plugin_folder_has_no_id() -> None:
    with pytest.raises(PluginError, match=r"plugin\.toml"):
        _ = Example().plugin_id
