"""Factors on the learning rate of an orthogonalised update, from the matrix's shape. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

ScaleRule: TypeAlias = Literal["original", "match_rms_adamw", "spectral_unclamped", "none"]

RULES: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,  # KellerJordan/Muon
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,  # Moonlight, arXiv 2502.16982
    "spectral_unclamped": lambda rows, columns: (rows / columns) ** 0.5,  # Bernstein
    "none": lambda rows, columns: 1.0,
}


def scale(rule: ScaleRule, rows: int, columns: int) -> float:
    """The factor for a matrix of that shape, (out features, in features).

    Example:
        >>> scale("spectral_unclamped", 16, 4)
        2.0
    """
    return RULES[rule](rows, columns)
