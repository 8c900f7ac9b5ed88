"""A plan as tables that a person can read."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from stackloom.core.plan import Plan, PlannedComponent, gib

_STYLE = {"info": "green", "warning": "yellow", "error": "bold red"}


def plan_text(plan: Plan, width: int = 110) -> str:
    """Return the plan as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(plan_table(plan))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def plan_table(plan: Plan) -> RenderableType:
    """Return the plan as rich tables: picks with their fits, cost per stage, then the verdict."""
    head = Text.assemble(
        (plan.name, "bold"),
        f" on {plan.device.title}, {plan.resources.dtype}, ",
        _workers(plan),
        f", seed {plan.seed}\n",
        f"{plan.shape.name}: ",
        count(plan.shape.parameters),
        " parameters",
    )
    return Group(head, _picks(plan), _costs(plan), _verdict(plan))


def _workers(plan: Plan) -> str:
    shard = f" ({plan.resources.shard})" if plan.resources.shard != "none" else ""
    return f"{plan.resources.workers} worker{'s' if plan.resources.workers > 1 else ''}{shard}"


def _picks(plan: Plan) -> Table:
    table = Table(title="Picks", title_justify="left", expand=False)
    for column in ("where", "plugin", "adds", "fit"):
        table.add_column(column, overflow="fold")
    for part in plan.components():
        table.add_row(part.path, f"{part.plugin} {part.version}", adds(part), _fit(part))
    return table


def adds(part: PlannedComponent) -> str:
    """Say what a pick holds in memory: "weights 257 MiB"; "-" where it holds nothing of its own."""
    cost = part.cost
    held = {
        "weights": cost.weight_bytes,
        "gradients": cost.gradient_bytes,
        "state": cost.optimizer_bytes,
        "activations": cost.activation_bytes,
        "cache": cost.cache_bytes,
    }
    return ", ".join(f"{name} {gib(size)}" for name, size in held.items() if size) or "-"


def _fit(part: PlannedComponent) -> Text:
    lines = [Text(fit.reason or "fits", style=_STYLE[fit.severity]) for fit in part.fits]
    lines += [Text(need.partition("\n")[0], style="yellow") for need in part.missing]
    return Text("\n").join(lines)


def _costs(plan: Plan) -> Table:
    table = Table(title="Cost per stage and worker", title_justify="left", expand=False)
    for column in (
        "stage",
        "process",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "peak",
        "FLOPs/step",
        "wire/step",
        "time",
    ):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for stage in plan.stages:
        cost = stage.cost
        sizes = (
            cost.process_bytes,
            cost.weight_bytes,
            cost.gradient_bytes,
            cost.optimizer_bytes,
            cost.activation_bytes + cost.cache_bytes,
            cost.memory_bytes,
        )
        table.add_row(
            f"{stage.index} {stage.kind}",
            *map(gib, sizes),
            count(cost.flops) if cost.flops else "-",
            gib(cost.wire_bytes),
            "no estimate" if stage.seconds is None else duration(stage.seconds),
        )
    return table


def _verdict(plan: Plan) -> Text:
    problems = plan.problems()
    share = plan.peak_bytes / plan.device.memory_bytes
    lines = [
        Text(f"estimate: peak {gib(plan.peak_bytes)} of {gib(plan.device.memory_bytes)} ({share:.0%}), " + _time(plan))
    ]
    if plan.missing():
        fixes = dict.fromkeys(need.partition("fix: ")[2] for need in plan.missing())
        lines.append(Text(f"to run it here: {'; '.join(filter(None, fixes))}", style="yellow"))
    if problems:
        lines.append(
            Text(f"this stack cannot work: {len(problems)} problem{'s' if len(problems) > 1 else ''}", style="bold red")
        )
        lines += [Text(f"- {problem}", style="red") for problem in problems]
    else:
        lines.append(Text("no conflicts; everything fits", style="bold green"))
    return Text("\n").join(lines)


def _time(plan: Plan) -> str:
    open_ended = sum(stage.seconds is None for stage in plan.stages)
    if open_ended == len(plan.stages):
        return "time not estimated"
    return f"about {duration(plan.seconds)}" + (f" and {open_ended} without an estimate" if open_ended else "")


def count(number: float) -> str:
    """Write a count for people: 135 M, 2.1 T."""
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Write a duration for people: 12 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return (
        f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
        if seconds < 172_800
        else f"{seconds / 86_400:.1f} d"
    )
