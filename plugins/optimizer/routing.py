"""Which rule updates a parameter, from its name and shape: orthogonalised matrices, or AdamW. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import Protocol


class Routes(Protocol):
    """The options that routing reads."""

    @property
    def adamw_names(self) -> tuple[str, ...]:
        """Patterns of parameters that AdamW takes although they are matrices."""
        ...

    @property
    def stacked_names(self) -> tuple[str, ...]:
        """Patterns of 3-D parameters that are stacks of matrices."""
        ...

    @property
    def force_names(self) -> tuple[str, ...]:
        """Patterns of parameters that are orthogonalised against `adamw_names`."""
        ...


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of the shell patterns.

    Example:
        >>> matches("model.embed_tokens.weight", ("*embed*",))
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_matrix(name: str, ndim: int, options: Routes) -> bool:
    """Whether a trainable parameter is orthogonalised: a 2-D weight, or a stack of them, that AdamW does not take."""
    if not (ndim == 2 or (ndim == 3 and matches(name, options.stacked_names))):
        return False
    return matches(name, options.force_names) or not matches(name, options.adamw_names)


def row_parts(name: str, rows: int, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The rows of each matrix that a fused weight holds one above the other; (rows,) for a weight that is not fused.

    Example:
        >>> row_parts("attn.qkv_proj.weight", 8, {"*qkv_proj*": (4, 2, 2)})
        (4, 2, 2)
    """
    return next((tuple(part) for pattern, part in parts.items() if fnmatchcase(name, pattern)), (rows,))


def table(routes: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    """Lines of (name, shape, rule), aligned, with the number of elements under each rule at the end.

    Example:
        >>> print(table([("w", "muon, decay 0.1", (4, 2)), ("b", "adamw, no decay", (4,))]))
        w  4x2  muon, decay 0.1
        b  4    adamw, no decay
        8 elements: muon, decay 0.1
        4 elements: adamw, no decay
    """
    rows = [(name, "x".join(map(str, shape)) or "1", rule, prod(shape)) for name, rule, shape in routes]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    totals: dict[str, int] = {}
    for *_, rule, count in rows:
        totals[rule] = totals.get(rule, 0) + count
    lines = [f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {rule}" for name, shape, rule, _ in rows]
    return "\n".join(lines + [f"{count} elements: {rule}" for rule, count in totals.items()])
