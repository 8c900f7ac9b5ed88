"""When noise grows, and how a batch is dealt out over its levels (LongCat-Flash-Thinking-2601, section 2.11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stackloom.core.errors import ConfigError
from stackloom.environments.tape import HIGHEST

SHARES = {"level": 0.5, "below": 0.3, "clean": 0.2}  # [inferred]


@dataclass
class Curriculum:
    """Raises the level when the agent is robust at the present one.

    Attributes:
        level: present one, 0 to 4.
        gap: largest difference of pass rates, clean minus noisy on the same tasks, that counts as robust.
        patience: evaluations in a row that must be robust.
        highest: where it ends.

    Example:
        >>> curriculum = Curriculum(level=1, patience=1)
        >>> curriculum.observe(clean=0.8, noisy=0.78)
        True
        >>> curriculum.level, curriculum.deal(10)
        (2, [2, 2, 2, 2, 2, 1, 1, 1, 0, 0])
    """

    level: int = 1
    gap: float = 0.05
    patience: int = 3
    highest: int = HIGHEST
    robust: int = field(default=0)

    def __post_init__(self) -> None:
        if not 0 <= self.level <= self.highest <= HIGHEST or self.patience < 1 or self.gap < 0:
            raise ConfigError(f"levels are 0 to {HIGHEST}, patience at least 1, gap at least 0", where="curriculum")

    def observe(self, clean: float, noisy: float) -> bool:
        """Count an evaluation; return whether the level has risen.

        Args:
            clean, noisy: pass rates on the same tasks.
        """
        self.robust = self.robust + 1 if clean - noisy <= self.gap else 0
        if self.robust < self.patience or self.level >= self.highest:
            return False
        self.level, self.robust = self.level + 1, 0
        return True

    def deal(self, count: int) -> Sequence[int]:
        """Return a level for each of `count` tasks: half at the level, 30 % spread below it, 20 % without noise.

        Largest remainders make the numbers whole. Without levels in between, their share is the level's.
        """
        between = range(self.level - 1, 0, -1)
        shares = {self.level: SHARES["level"] + (0.0 if between else SHARES["below"])}
        shares |= {level: SHARES["below"] / len(between) for level in between}
        shares[0] = shares.get(0, 0.0) + SHARES["clean"]
        whole = {level: int(count * share) for level, share in shares.items()}
        rest = sorted(shares, key=lambda level: (whole[level] - count * shares[level], -level))
        for level in rest[: count - sum(whole.values())]:
            whole[level] += 1
        return [level for level, number in whole.items() for _ in range(number)]

    def state(self) -> dict[str, int]:
        """Return what a resumed run needs."""
        return {"level": self.level, "robust": self.robust}
