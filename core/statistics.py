"""Estimates with 95 per cent intervals, for evaluations and claims; plain numbers in, JSON data out."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

_Z = 1.959963984540054  # the normal distribution's 97.5 per cent point


def pass_rate(passed: Sequence[bool]) -> dict[str, Any]:
    """Return the share of passes with its 95 per cent Wilson interval, which holds for small counts and at 0 and 1."""
    count = len(passed)
    if not count:
        return {"value": None, "interval": None, "count": 0}
    share = sum(passed) / count
    centre = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z * _Z / (4 * count * count)) / (1 + _Z * _Z / count)
    return {"value": share, "interval": [max(0.0, centre - half), min(1.0, centre + half)], "count": count}


def paired_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the second minus the first pass rate on tasks that both attempted, with its paired 95 per cent interval.

    Args:
        first, second: the "tasks" of two evaluations.
    """
    shared = [task for task in first if task in second and first[task]["valid"] and second[task]["valid"]]
    return mean_interval([float(second[task]["passed"]) - float(first[task]["passed"]) for task in shared])


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with its 95 per cent Student interval, which holds for a few seeds; None below two values."""
    count = len(values)
    if count < 2:
        return {"value": values[0] if values else None, "interval": None, "count": count}
    mean = math.fsum(values) / count
    half = student(count - 1) * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return {"value": mean, "interval": [mean - half, mean + half], "count": count}


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> dict[str, Any]:
    """Return the mean of second minus first with its 95 per cent percentile interval over resampled pairs.

    For skewed measurements of many pairs (losses of sequences, times); below about 20 pairs `mean_interval` of the
    differences covers better.

    Args:
        first, second: the two arms, measured on the same things in the same order.
        seed: of the resampling.
        resamples: how often the pairs are drawn again.
    """
    differences = [after - before for before, after in zip(first, second, strict=True)]
    count = len(differences)
    if count < 2:
        return mean_interval(differences)
    draw = random.Random(seed)
    means = sorted(math.fsum(draw.choices(differences, k=count)) / count for _ in range(resamples))
    low, high = (means[round(share * (resamples - 1))] for share in (0.025, 0.975))
    return {"value": math.fsum(differences) / count, "interval": [low, high], "count": count}


def student(freedom: int) -> float:
    """Return the 97.5 per cent point of Student's t distribution within 0.2 per cent.

    Exact for one and two degrees of freedom, the expansion of Abramowitz and Stegun 26.7.5 above.
    """
    if freedom < 3:
        return (12.706204736432095, 4.302652729911275)[freedom - 1]
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
