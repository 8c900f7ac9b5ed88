from __future__ import annotations

import pytest

from stackloom.core.errors import PluginError
from stackloom.core.events import Metric
from stackloom.core.hooks import hook_manager, hookimpl


class Keeps:
    def __init__(self) -> None:
        self.seen: list[Metric] = []

    @hookimpl
    def on_metric(self, metric: Metric) -> None:
        self.seen.append(metric)


def test_only_the_listeners_of_the_stack_are_called() -> None:
    kept = Keeps()
    manager = hook_manager({"tracker.keeps": kept})
    metric = Metric("run", 0, 1, "loss", 0.5)
    manager.hook.on_metric(metric=metric)
    assert kept.seen == [metric]
    assert [name for name, _ in manager.list_name_plugin()] == ["tracker.keeps"]


def test_a_hook_that_does_not_exist_is_the_plugin_s_error_and_names_it() -> None:
    class Wrong:
        @hookimpl
        def on_metrics(self, metric: Metric) -> None: ...

    with pytest.raises(PluginError, match="on_metrics") as caught:
        hook_manager({"tracker.wrong": Wrong()})
    assert caught.value.where == "tracker.wrong"


def test_a_hook_with_an_unknown_argument_is_the_plugin_s_error() -> None:
    class Wrong:
        @hookimpl
        def on_metric(self, value: float) -> None: ...

    with pytest.raises(PluginError, match="value"):
        hook_manager({"tracker.wrong": Wrong()})
