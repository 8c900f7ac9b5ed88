"""Finds a plugin's claim functions, runs one, and turns what it returns into a row of evidence."""

from __future__ import annotations

import importlib
import inspect
import json
import platform
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel, ValidationError

from stackloom.core.catalogue import PluginRecord
from stackloom.core.claims import ClaimContext, ClaimResult, Curve, Table, verdict
from stackloom.core.devices import find_device
from stackloom.core.errors import PluginError, StackloomError, did_you_mean
from stackloom.core.loading import IMPORT_SECONDS, blame, blamed, time_limit
from stackloom.core.manifest import Claim
from stackloom.core.rows import EvidenceRow
from stackloom.repro.context import Workbench

ClaimFunction = Callable[[ClaimContext], ClaimResult]
DRAWN: dict[str, type[BaseModel]] = {"curves": Curve, "tables": Table}
LIBRARIES = ("stackloom", "torch", "transformers")


def functions(record: PluginRecord, claims: Iterable[Claim]) -> dict[str, ClaimFunction]:
    """Import the plugin's claims.py and return the function of each claim.

    Raises:
        PluginError: there is no claims.py, importing it fails, or a claim has no function there.
    """
    found: dict[str, ClaimFunction] = {}
    for claim in claims:
        module = _module(record)
        function = getattr(module, claim.name, None)
        if not inspect.isfunction(function):
            there = [name for name, value in vars(module).items() if inspect.isfunction(value)]
            raise PluginError(
                f"claim {claim.name!r} has no function in claims.py",
                where=blame(record),
                fix=did_you_mean(claim.name, there, otherwise=f"write `def {claim.name}(ctx) -> ClaimResult`"),
            )
        found[claim.name] = function
    return found


def _module(record: PluginRecord) -> Any:
    if not (record.folder / "claims.py").is_file():
        raise PluginError(
            "the manifest states claims, but there is no claims.py",
            where=blame(record),
            fix="write it beside the manifest",
        )
    with blamed(record, "importing its claims"), time_limit(IMPORT_SECONDS):
        return importlib.import_module(f"{record.package}.claims")


def measure(
    record: PluginRecord, claim: Claim, function: ClaimFunction, bench: Workbench, stamp: Mapping[str, str]
) -> tuple[EvidenceRow, StackloomError | None]:
    """Run a claim and judge what it returns; what it raises becomes a row with the verdict "error".

    Args:
        record, claim, function: what is claimed, and by whom.
        bench: what the function works with.
        stamp: the row's `commit` and `command`.
    """
    result, failure = None, None
    try:
        with blamed(record, f"claim {claim.name}"):
            result = function(bench)
        details = _checked(record, claim, result)
    except StackloomError as error:
        failure, details = error, {}
    common = {
        "plugin": record.id,
        "claim": claim.name,
        "scale": bench.scale,
        "paper": claim.paper,
        "unit": claim.unit,
        "seconds": round(bench.seconds, 3),
        "device": _device(bench.device),
        "versions": _versions(record, bench),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **stamp,
    }
    if result is None or failure:
        unmeasured = {"verdict": "error", "ours": None, "interval": None, "seeds": tuple(bench.seeds)}
        return EvidenceRow(**common, **unmeasured, error=f"{type(failure).__name__}: {failure}"), failure
    measured = {"ours": result.ours, "interval": result.interval, "baseline": result.baseline, "seeds": result.seeds}
    return EvidenceRow(**common, **measured, verdict=verdict(claim, result), details=details), None


def _checked(record: PluginRecord, claim: Claim, result: Any) -> dict[str, Any]:
    """Return the result's details as JSON data.

    Raises:
        PluginError: it is no ClaimResult, or holds what no evidence can.
    """
    where = f"{blame(record)}, claim {claim.name}"
    if not isinstance(result, ClaimResult):
        raise PluginError(f"returned {type(result).__name__}, not a ClaimResult", where=where)
    try:
        details = dict(result.details)
        for name in DRAWN.keys() & details.keys():
            details[name] = [DRAWN[name].model_validate(item).model_dump(mode="json") for item in details[name]]
        json.dumps([result.ours, result.interval, result.baseline, details], allow_nan=False)
    except (TypeError, ValueError, ValidationError) as cause:
        raise PluginError(f"returned what evidence cannot hold: {cause}", where=where) from cause
    return details


def seed_everything(seed: int) -> None:
    """Let a claim that forgets a generator measure the same twice."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)


def _device(kind: str) -> str:
    if kind == "cpu":
        return find_device("cpu").title
    import torch

    return torch.cuda.get_device_name()


def _versions(record: PluginRecord, bench: Workbench) -> dict[str, str]:
    """Versions of Python and of the distributions that entered, and the digest of each plugin's files."""
    records = [record, *(bench.registry.get(plugin) for plugin in sorted(bench.used - {record.id}))]
    names = {*LIBRARIES, *(found.distribution for found in records), *record.manifest.needs}
    found = {"python": platform.python_version()}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {record.distribution: record.version} | {item.id: item.digest for item in records}
