"""A model by what a user calls it: a folder, a known name, a run, or a stack that was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackloom.core.devices import find_device
from stackloom.core.errors import ConfigError
from stackloom.registry import Registry

DTYPES = ("auto", "float32", "bfloat16", "float16")


def open_checkpoint(target: str, registry: Registry, *, dtype: str = "auto") -> tuple[str, Any, Any]:
    """Load a model onto this machine's CPU and return its name, itself and its tokenizer.

    Args:
        target: a folder of `save_pretrained`, a name that `model.hf` knows, a run's folder, or a stack's YAML file,
            whose run in its default folder is meant.
        registry: where plugins are found.
        dtype: "auto" takes the one that this CPU is fast in; a run keeps its own.

    Raises:
        ConfigError: no such model, a stack that has not been run, or an unknown dtype.
        ArtifactError: its files are missing or damaged.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}", where="--dtype", fix=f"one of {', '.join(DTYPES)}")
    path = Path(target).expanduser()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _open_run(_folder_of(path), registry)
    if (path / "plan.json").is_file():
        return _open_run(path, registry)
    from stackloom.repro.context import resolve

    config: Any = resolve(registry, "model.hf", {"checkpoint": target})
    config.shape()  # a name that nobody knows is told at once, and not looked for in the net
    builder = config.build()
    device = find_device("cpu")
    model = builder.load(device="cpu", dtype=device.dtype if dtype == "auto" else dtype)
    return path.resolve().name if path.is_dir() else target, model, builder.tokenizer()


def _folder_of(stack: Path) -> Path:
    from stackloom.run.runner import default_folder
    from stackloom.stack import Stack

    folder = default_folder(Stack.from_file(stack).plan())
    if not folder.is_dir():
        raise ConfigError(
            f"was not run: there is no {folder}",
            where=str(stack),
            fix=f"stackloom run {stack}, or name a folder",
        )
    return folder


def _open_run(folder: Path, registry: Registry) -> tuple[str, Any, Any]:
    from stackloom.run.context import StageContext
    from stackloom.run.lineage import model_lineage, plan_of

    plan, lineage = plan_of(folder), tuple(model_lineage(folder))
    ctx = StageContext("", plan, plan.stages[-1], "", folder, folder, lineage, registry)
    return (plan.name, *ctx.load_model())
