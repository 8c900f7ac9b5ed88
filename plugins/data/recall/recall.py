"""Associative recall, and a needle in real text: what a state of constant size must remember."""

from __future__ import annotations

import random
from typing import Any

from stackloom.core.errors import ConfigError
from stackloom.core.slots.data import Example, Tokenizer
from stackloom.plugins.data.recall.config import RecallConfig

WHERE = "data.recall"
BLANK = 1  # symbols besides keys and values: one blank, and NOISE kinds of noise
NOISE = 16
PLACES = ("harbour", "orchard", "library", "quarry", "station", "chapel", "mill", "garden")
COLOURS = ("red", "blue", "green", "white", "black", "grey", "brown", "golden")


class Recall:
    """Examples of exactly `length` tokens, each a pure function of the options and its index.

    Symbols of the first three tasks are token ids: keys, then values, then a blank, then noise; what a tokenizer calls
    these ids does not matter. An example shows its bindings, then fills up, then asks: key, answer, key, answer.

    Args:
        config: the plugin's options.
        tokenizer: of the model that is trained; `len(tokenizer)` bounds the symbols.

    Raises:
        ConfigError: the tokenizer has too few tokens for the symbols, or `needle` finds no text or no room.

    Example:
        >>> data = Recall(RecallConfig(length=8, pairs=2, queries=2), tokenizer)
        >>> sum(data[0].loss_mask)
        2
    """

    def __init__(self, config: RecallConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self._text: list[int] = []
        if config.task == "needle":
            self._text = tokenizer.encode(_real_text(), add_special_tokens=False)
            self._needle(random.Random(0))  # says at once whether there is room
            return
        have, need = len(tokenizer), config.keys + config.values + BLANK + NOISE  # type: ignore[arg-type]
        if need > have:
            raise ConfigError(
                f"{config.keys} keys and {config.values} values need {need} tokens, the tokenizer has {have}",
                where=WHERE,
                fix="lower keys or values",
            )

    def __len__(self) -> int:
        """Number of examples."""
        return self.config.examples

    def __getitem__(self, index: int) -> Example:
        """Return example `index`, counted from 0.

        Raises:
            IndexError: no such example.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        config = self.config
        draw = random.Random(f"{config.seed}/{config.split}/{config.task}/{index}")
        return self._needle(draw) if config.task == "needle" else self._pairs(draw)

    def problems(self) -> tuple[str, ...]:
        """Return nothing: no example is left out."""
        return ()

    def _pairs(self, draw: random.Random) -> Example:
        config = self.config
        first_value, blank = config.keys, config.keys + config.values
        chosen = draw.sample(range(config.keys), config.pairs)
        rounds = 1 + config.rebinds if config.task == "overwrite" else 1
        bindings, bound = [], {}
        for _ in range(rounds):
            for key in draw.sample(chosen, len(chosen)):
                bound[key] = first_value + draw.randrange(config.values)
                bindings.append((key, bound[key]))
        room = config.length - 2 * (len(bindings) + config.queries)
        gaps = [0] * (len(bindings) + 1)
        if config.task == "noise":
            for _ in range(room):
                gaps[draw.randrange(len(gaps))] += 1
        else:
            gaps[-1] = room
        tokens: list[int] = []
        for gap, binding in zip(gaps, [*bindings, ()], strict=True):
            noise = config.task == "noise"
            tokens += [blank + BLANK + draw.randrange(NOISE) if noise else blank for _ in range(gap)]
            tokens += binding
        mask = [False] * len(tokens)
        for key in draw.sample(chosen, config.queries):
            tokens += (key, bound[key])
            mask += (False, True)
        return Example(tokens, mask)

    def _needle(self, draw: random.Random) -> Example:
        encode: Any = lambda text: self.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        name = f"{draw.choice(COLOURS)} {draw.choice(PLACES)}"
        statement = f"\nThe number of the {name} is"
        answer = encode(f" {draw.randrange(1000, 10_000)}.\n")
        needle, question = encode(statement) + answer, encode(statement)
        room = self.config.length - len(needle) - len(question) - len(answer)
        if not 1 <= room <= len(self._text):
            raise ConfigError(
                f"a needle, its question and text in between do not make {self.config.length} tokens",
                where=f"{WHERE}.length",
                fix=f"choose a length between {self.config.length - room + 1} and {len(self._text)}",
            )
        start, place = draw.randrange(len(self._text) - room + 1), draw.randrange(room + 1)
        text = self._text[start : start + room]
        tokens = text[:place] + needle + text[place:] + question + answer
        return Example(tokens, [False] * (len(tokens) - len(answer)) + [True] * len(answer))


def _real_text() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigError(
            "this Python comes without pydoc_data.topics, the text that needles lie in",
            where=WHERE,
            fix="use a complete CPython, or another task",
        ) from None
    return "\n\n".join(topics[name].strip() for name in sorted(topics))
