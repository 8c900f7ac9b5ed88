"""The model's nodes that a component works on, so that two of them are told apart before any change."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Mode: TypeAlias = Literal["read", "rewrite", "wrap", "replace"]

# Which modes may meet on one node within one stage, in either order. Rewriting weights under a wrapper is fine (a
# weight transform beside an adapter); two of a kind, or a replacement beside anything, depend on an order nobody gave.
_COMPATIBLE = {frozenset({"rewrite", "wrap"})}


class Touch(BaseModel):
    """One component's claim on a set of nodes.

    Attributes:
        nodes: dotted module paths; `*` stands for one path segment or part of one, `[a|b]` for a choice. A node
            stands for its whole subtree: "model.layers.*.self_attn" covers "...self_attn.q_proj".
        mode: "read" looks, "rewrite" changes weights in place, "wrap" adds around, "replace" swaps the module.
        needs: state that the nodes must be in ("float" or what an earlier stage left); "any" accepts each.
        leaves: state after the stage ("float", "int4", ...), seen by later stages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: tuple[str, ...] = Field(min_length=1)
    mode: Mode
    needs: str = "any"
    leaves: str = ""

    def clash(self, other: Touch) -> str:
        """Return a node that both claim in modes that do not go together, or "" when they do. Symmetric."""
        if "read" in (self.mode, other.mode) or frozenset({self.mode, other.mode}) in _COMPATIBLE:
            return ""
        return self.meets(other)

    def meets(self, other: Touch) -> str:
        """Return a node that both name, directly or through a subtree, or ""."""
        return min(
            (
                max(mine, theirs, key=lambda node: (node.count("."), node))
                for mine in self.nodes
                for theirs in other.nodes
                if overlap(mine, theirs)
            ),
            default="",
        )


@lru_cache(maxsize=65536)
def overlap(one: str, two: str) -> bool:
    """Whether some module path lies in both subtrees."""
    return all(_segments_meet(a, b) for a, b in zip(one.split("."), two.split("."), strict=False))


def _segments_meet(one: str, two: str) -> bool:
    return any(
        fnmatchcase(a, b) or fnmatchcase(b, a) or _stars_meet(a, b) for a in _choices(one) for b in _choices(two)
    )


def _choices(segment: str) -> list[str]:
    match = re.fullmatch(r"\[(.*)\]", segment)
    return match[1].split("|") if match else [segment]


def _stars_meet(one: str, two: str) -> bool:
    """Whether two segments that both hold `*` can name the same string: their fixed ends must agree."""
    if "*" not in one or "*" not in two:
        return False
    head_a, head_b, tail_a, tail_b = one.split("*")[0], two.split("*")[0], one.split("*")[-1], two.split("*")[-1]
    return (head_a.startswith(head_b) or head_b.startswith(head_a)) and (
        tail_a.endswith(tail_b) or tail_b.endswith(tail_a)
    )
