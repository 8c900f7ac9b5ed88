"""run, resume, diff, report, export: stacks that run, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stackloom.output import console, print_json, print_table, registry

if TYPE_CHECKING:
    from stackloom.core.stack import StackSpec
    from stackloom.run.display import QuietDisplay
    from stackloom.stack import Plan

_QUIET = typer.Option(False, "--quiet", "-q", help="Print errors only.")
_EXECUTOR = typer.Option("local", help="Who starts the workers: local or ray.")
_ADDRESS = typer.Option(None, help="Of a Ray cluster; without one, Ray starts on this machine's loopback.")
_JSON = typer.Option(False, "--json", help="Print one JSON object per event.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(run)
    app.command()(resume)
    app.command()(diff)
    app.command()(report)
    app.command()(export)


def run(
    stack: Path = typer.Argument(help="A stack (YAML), a saved plan (JSON), or a Python file that runs stacks itself."),
    folder: Path = typer.Option(None, help="For everything the run makes; default runs/NAME-DIGEST."),
    device: str = typer.Option(None, help="Run on this device instead of the stack's: cpu, or the GPU's name."),
    executor: str = _EXECUTOR,
    address: str = _ADDRESS,
    sweep: list[str] = typer.Option(
        [],
        help="PATH=VALUE,VALUE,...: run once for each value, compare, and pick the best; repeatable. "
        "Takes the place of the stack's own `sweep`.",
    ),
    quiet: bool = _QUIET,
    as_json: bool = _JSON,
) -> None:
    """Plan a stack, print the plan, and run it; the same call goes on with a run that was stopped."""
    from stackloom.core.errors import ConfigError
    from stackloom.stack import Plan, Stack

    if stack.suffix == ".py":
        if folder or device or sweep or address or executor != "local" or quiet or as_json:
            raise ConfigError(
                "a Python file has its own options", where=str(stack), fix=f"run `python {stack} ...` with them"
            )
        raise typer.Exit(subprocess.run([sys.executable, str(stack)], check=False).returncode)
    if stack.suffix == ".json":
        if device or sweep:
            what = "device" if device else "values"
            raise ConfigError(f"a saved plan has its {what}", where=str(stack), fix="run the stack file for others")
        _run(Plan.from_file(stack), folder, quiet, as_json, executor, address)
        return
    read = Stack.from_file(stack)
    if sweep or read.spec.sweep:
        _sweep(read.spec, sweep, folder, device, quiet, as_json, executor, address)
    else:
        _run(read.plan(device=device), folder, quiet, as_json, executor, address)


def resume(
    folder: Path = typer.Argument(help="The folder of a run that was stopped."),
    executor: str = _EXECUTOR,
    address: str = _ADDRESS,
    quiet: bool = _QUIET,
    as_json: bool = _JSON,
) -> None:
    """Go on with a run where it stopped, with the plan that it began with."""
    from stackloom.run.lineage import plan_of
    from stackloom.stack import Plan

    _run(Plan(**dict(plan_of(folder))), folder, quiet, as_json, executor, address)


def _run(plan: Plan, folder: Path | None, quiet: bool, as_json: bool, executor: str, address: str | None) -> None:
    from stackloom.plan_table import plan_table
    from stackloom.run.runner import default_folder

    folder = folder or default_folder(plan)
    if not (quiet or as_json):
        console().print(plan_table(plan))
        typer.echo(f"\nrunning in {folder}; stop it at any time, `stackloom resume {folder}` goes on\n")
    display = _display(quiet, as_json)
    with display:
        made = plan.run(folder=folder, display=display, executor=executor, address=address)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "event": "finished",
                    "folder": str(made.folder),
                    "report": str(made.folder / "report.html"),
                    "seconds": sum(made.seconds),
                }
            )
        )
    elif not quiet:
        peak, planned = max(made.peak_bytes) / 2**30, plan.peak_bytes / 2**30
        typer.echo(f"\ndone in {sum(made.seconds):.0f} s, peak memory {peak:.2f} GiB (planned {planned:.2f})")
        typer.echo(
            f"report: {made.folder / 'report.html'}\nagain, skipping what is done: stackloom resume {made.folder}"
        )


def _sweep(
    spec: StackSpec,
    axes: list[str],
    folder: Path | None,
    device: str | None,
    quiet: bool,
    as_json: bool,
    executor: str,
    address: str | None,
) -> None:
    from stackloom.report.endings import titles
    from stackloom.sweep import PAGE, Axis, as_data, best, sweep

    def before(number: int, count: int, label: str) -> None:
        if not (quiet or as_json):
            console().print(f"run {number} of {count}: {label}", highlight=False)

    display = _display(quiet, as_json)
    with registry() as opened, display:
        place, found = sweep(
            spec,
            [Axis.read(each) for each in axes] or Axis.of(spec),
            opened,
            folder=folder,
            device=device,
            display=display,
            before=before,
            executor=executor,
            address=address,
        )
    if as_json:
        typer.echo(json.dumps({"event": "finished", "folder": str(place), **as_data(found)}))
        return
    winner = best(found)
    if quiet or winner is None or winner.ending is None:
        return
    measure = winner.ending.measure
    others = titles((point.measured for point in found), {measure})
    rows = [
        [
            point.label,
            "-" if point.ending is None else str(point.ending),
            "best" if point is winner else point.failure,
            *(point.measured.get(name, "-") for name in others),
        ]
        for point in found
    ]
    print_table(("run", measure, "", *others), rows)
    typer.echo(f"compared in {place / PAGE}, each run in {place}/RUN/report.html")


def _display(quiet: bool, as_json: bool) -> QuietDisplay:
    from stackloom.run.display import JsonDisplay, LiveDisplay, QuietDisplay

    return QuietDisplay() if quiet else JsonDisplay(sys.stdout) if as_json else LiveDisplay(console())


def diff(
    first: Path = typer.Argument(help="A run folder or a saved plan."),
    second: Path = typer.Argument(help="Another."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for machines."),
) -> None:
    """Compare two runs or plans: what was asked for, and what came out, with paired intervals."""
    from stackloom.run.lineage import differences

    found = differences(first, second)
    if as_json:
        print_json(found)
        return
    rows = [[key, *(json.dumps(value) for value in values)] for key, values in found["plan"].items()]
    if rows:
        print_table(("plan", str(first), str(second)), rows)
    else:
        typer.echo("the plans are the same")
    for index, metrics in found["metrics"].items():
        shown = [
            [name, *(f"{value:.4g}" for value in values)]
            for name, values in metrics.items()
            if isinstance(values, list)
        ]
        print_table((f"stage {index}", str(first), str(second)), shown)
        if (change := metrics.get("pass_rate_difference")) and change["interval"]:
            low, high = change["interval"]
            shown_change = f"{change['value']:+.3f} (95 % {low:+.3f} to {high:+.3f})"
            typer.echo(f"pass rate, second minus first on {change['count']} shared tasks: {shown_change}")


def report(
    folders: list[Path] = typer.Argument(help="A run folder, finished or not; or several, to be compared."),
    out: Path = typer.Option(Path("comparison.html"), help="Of a comparison: where it goes."),
) -> None:
    """Write a run's report.html anew; of several runs, one page with their curves over one another."""
    from stackloom.report import write_report
    from stackloom.report.comparison import labels_of, write_comparison
    from stackloom.run.lineage import plan_of

    for folder in folders:
        plan_of(folder)
    with registry() as opened:
        if len(folders) == 1:
            typer.echo(f"wrote {write_report(folders[0], opened)}")
        else:
            labels = labels_of(folders)
            title = f"{len(labels)} runs compared"
            typer.echo(f"wrote {write_comparison(labels, opened, out, title=title)}")


def export(
    folder: Path = typer.Argument(help="A run folder."),
    target: Path = typer.Argument(help="Where the Hugging Face folder goes; must not exist."),
    dtype: str = typer.Option("bfloat16", help="Of the written weights: float32, bfloat16, float16."),
) -> None:
    """Write a run's model as a folder that transformers loads without stackloom."""
    from stackloom.core.errors import ConfigError
    from stackloom.core.plan import PlannedStage
    from stackloom.run import export as stage
    from stackloom.run.context import StageContext
    from stackloom.run.lineage import model_lineage, plan_of

    if target.exists():
        raise ConfigError("is there already", where=str(target), fix="name another folder")
    if dtype not in {"float32", "bfloat16", "float16"}:
        raise ConfigError(f"unknown dtype {dtype!r}", where="--dtype", fix="float32, bfloat16 or float16")
    plan = plan_of(folder)
    last: PlannedStage = plan.stages[-1]
    made = last.model_copy(update={"kind": "export", "options": {"format": "hf", "dtype": dtype}, "components": ()})
    with registry() as opened:
        lineage = tuple(model_lineage(folder))
        stage.run(StageContext("", plan, made, "", target, target, lineage, opened))
    typer.echo(f"wrote {target}; AutoModelForCausalLM.from_pretrained({str(target)!r}) loads it")
