"""Options of `environment.reasoning-gym`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import JsonValue, model_validator

from stackloom.core.config import ComponentConfig, option

# Those whose scorers were read at reasoning-gym 0.1.25 and only compare text and numbers. Others evaluate the agent's
# answer as code (binary_matrix, countdown, n_queens, puzzle24, spiral_matrix, string_insertion,
# polynomial_multiplication, the integrations) or have not been read.
Dataset: TypeAlias = Literal[
    "aiw",
    "base_conversion",
    "basic_arithmetic",
    "caesar_cipher",
    "calendar_arithmetic",
    "chain_sum",
    "count_bits",
    "count_primes",
    "course_schedule",
    "family_relationships",
    "gcd",
    "gsm_symbolic",
    "isomorphic_strings",
    "knights_knaves",
    "largest_island",
    "lcm",
    "leg_counting",
    "letter_counting",
    "letter_jumble",
    "maze",
    "mini_sudoku",
    "number_filtering",
    "number_sequence",
    "products",
    "ransom_note",
    "rotate_matrix",
    "sentence_reordering",
    "shortest_path",
    "simple_equations",
    "simple_geometry",
    "spell_backward",
    "string_manipulation",
    "syllogism",
    "tower_of_hanoi",
    "word_sequence_reversal",
    "word_sorting",
    "zebra_puzzles",
]


class ReasoningGymConfig(ComponentConfig):
    """Tasks of some of reasoning-gym's data sets, in turn.

    Example:
        >>> ReasoningGymConfig(datasets=["chain_sum"], dataset_options={"chain_sum": {"max_terms": 3}}).seed
        0
    """

    datasets: tuple[Dataset, ...] = option(
        ("chain_sum", "gcd", "spell_backward"), "reasoning-gym's names; tasks come from each in turn", min_length=1
    )
    dataset_options: dict[str, dict[str, JsonValue]] = option(
        {}, "per data set, the options of its own configuration other than seed and size"
    )
    seed: int = option(0, "item i of a data set is drawn with seed + i", ge=0, lt=2**31)
    size: int = option(10_000, "items of each data set from which both splits are taken", unit="items", ge=2, lt=2**24)
    max_answer_chars: int = option(
        4096, "longer answers get no reward and never reach a scorer", unit="characters", ge=1, le=1_000_000
    )

    @model_validator(mode="after")
    def _names_agree(self) -> ReasoningGymConfig:
        if twice := sorted({name for name in self.datasets if self.datasets.count(name) > 1}):
            raise ValueError(f"datasets named twice: {', '.join(twice)}")
        if unread := sorted(set(self.dataset_options) - set(self.datasets)):
            raise ValueError(f"dataset_options for data sets that are not used: {', '.join(unread)}")
        for name, options in self.dataset_options.items():
            if taken := sorted({"seed", "size"} & options.keys()):
                raise ValueError(f"dataset_options.{name}: {', '.join(taken)} is set for all data sets at once")
        return self
