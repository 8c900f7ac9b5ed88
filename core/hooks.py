"""Lifecycle hooks: what an activated plugin may listen to. Components are typed slots, never hook results."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from stackloom.core.errors import PluginError
from stackloom.core.events import Failure, Metric, StageEvent
from stackloom.core.plan import Plan

PROJECT = "stackloom"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hook specifications. Hot paths never cross them: metrics arrive after the step that made them."""

    @hookspec
    def on_plan(self, plan: Plan) -> None:
        """Called once, after the plan was made and before anything runs; raise a FitError to refuse it."""

    @hookspec
    def on_stage_start(self, event: StageEvent) -> None:
        """Called before a stage's first step."""

    @hookspec
    def on_stage_end(self, event: StageEvent) -> None:
        """Called after a stage's artifact was written."""

    @hookspec
    def on_metric(self, metric: Metric) -> None:
        """Called for each reported value."""

    @hookspec
    def on_error(self, failure: Failure) -> None:
        """Called when the run stops with an error, before it is raised."""


def hook_manager(listeners: Mapping[str, object]) -> pluggy.PluginManager:
    """Return a manager with the stack's own listeners and nothing else: installed never means active.

    Args:
        listeners: plugin id to an object whose methods are marked with `hookimpl`.

    Raises:
        PluginError: a listener implements a hook that does not exist or takes other arguments.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    for name, listener in listeners.items():
        try:
            manager.register(listener, name=name)
            manager.check_pending()
        except pluggy.PluginValidationError as cause:
            raise PluginError(
                str(cause), where=name, fix="see `stackloom.core.hooks.Hooks` for the hooks and their arguments"
            ) from cause
    return manager
