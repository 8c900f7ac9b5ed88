"""The run report: one self-contained page in a run's folder, from the plan, the ledger and the artifacts.

Nothing heavy is imported before a report is written: `import stackloom.report` loads neither torch nor matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stackloom.core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from stackloom.registry import Registry

REPORT_FILE = "report.html"


def write_report(folder: Path, registry: Registry) -> Path:
    """Write the report of a run, finished or not, and return its path.

    Equal plans, ledgers and artifacts give equal bytes. What was not measured is shown as "not measured".

    Args:
        folder: of the run; it holds `plan.json`.
        registry: whose ledger and evidence are read.

    Raises:
        ConfigError: the folder holds no run, or a package that the report needs is absent.
        ArtifactError: the plan is damaged, or the report cannot be written.
    """
    from stackloom.registry import StorageError
    from stackloom.registry.atomic import write_atomic
    from stackloom.report.record import read_run

    run = read_run(folder, registry)
    try:
        from stackloom.report.page import render

        page = render(run)
    except ModuleNotFoundError as absent:
        if (absent.name or "").split(".")[0] == "stackloom":
            raise
        raise ConfigError(
            f"the report needs {absent.name}, which is not installed",
            where=str(folder),
            fix="pip install 'stackloom[train]'",
        ) from None
    path = folder / REPORT_FILE
    try:
        write_atomic(path, page.encode("utf-8", "replace"))
    except StorageError as cause:
        raise ArtifactError(
            "the report cannot be written", where=str(path), fix="free some space or make the folder writable"
        ) from cause
    return path
