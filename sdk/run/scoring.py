"""What a change of the weights does to a model's predictions: token by token, and on multiple-choice items.

Shape legend: B choices, T tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor

from stackloom.core.errors import ConfigError
from stackloom.core.statistics import mean_interval, pass_rate

Step = Callable[[int, int, dict[str, float]], None]  # step, steps, values


class Item(NamedTuple):
    """A context and what may follow it.

    Attributes:
        context: token ids (T,).
        choices: continuations of equal length (B, T'), token ids.
        answer: number of the true one.
    """

    context: Tensor
    choices: Tensor
    answer: int


def compare(model: Any, reference: Any, rows: Sequence[Tensor], progress: Step) -> dict[str, Any]:
    """Compare two models' predictions on the same tokens.

    Args:
        model: the one that is judged.
        reference: what it was made from.
        rows: token ids (T,).
        progress: called after each row.

    Returns:
        "kl": mean over tokens of KL(reference || model) in nats; "nll_difference": mean of the model's minus the
        reference's negative log-likelihood, paired by token; "agreement": share of tokens on which both rank the same
        token first. Each with its 95 per cent interval, which treats tokens as independent.
    """
    divergences: list[float] = []
    differences: list[float] = []
    same: list[bool] = []
    for number, row in enumerate(rows):
        found, expected = (log_probabilities(each, row[None])[0, :-1] for each in (model, reference))
        divergences += (expected.exp() * (expected - found)).sum(-1).tolist()
        targets = row[1:, None].to(found.device)
        differences += (expected.gather(1, targets) - found.gather(1, targets))[:, 0].tolist()
        same += (found.argmax(-1) == expected.argmax(-1)).tolist()
        progress(number + 1, len(rows), {})
    return {
        "kl": mean_interval(divergences),
        "nll_difference": mean_interval(differences),
        "agreement": pass_rate(same),
    }


@torch.inference_mode()
def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """Return (B, T, V) log-probabilities in float32, of the token after each of ids (B, T)."""
    return F.log_softmax(model(input_ids=ids.to(model.device), use_cache=False).logits.float(), dim=-1)


def cloze_items(
    rows: Sequence[Tensor], count: int, seed: int, *, context: int = 48, continuation: int = 16, choices: int = 4
) -> list[Item]:
    """Draw items whose true continuation is what the text says, and whose others come from other rows.

    Args:
        rows: token ids (T,), each of at least `context + continuation`.
        count: how many items.
        seed: draws places and distractors; equal arguments, equal items.
        context, continuation: tokens of each.
        choices: how many continuations, the true one included.

    Raises:
        ConfigError: too few rows, or a row that is too short.
    """
    length = context + continuation
    if len(rows) < choices or min(map(len, rows)) < length:
        raise ConfigError(
            f"multiple choice takes {choices} sequences of {length} tokens",
            where="cloze",
            fix="raise sequences or sequence_length, or give more data",
        )
    draw = random.Random(seed)
    items = []
    for index in range(count):
        row = rows[index % len(rows)]
        start = draw.randrange(len(row) - length + 1)
        others = [other for number, other in enumerate(rows) if number != index % len(rows)]
        spans = [row[start + context : start + length]]
        for other in draw.sample(others, choices - 1):
            first = draw.randrange(len(other) - continuation + 1)
            spans.append(other[first : first + continuation])
        answer = draw.randrange(choices)
        spans[0], spans[answer] = spans[answer], spans[0]
        items.append(Item(row[start : start + context], torch.stack(spans), answer))
    return items


def choose(model: Any, item: Item) -> int:
    """Return the number of the continuation with the largest mean log-likelihood per token, the first among equals."""
    count, length = item.choices.shape
    ids = torch.cat((item.context.expand(count, -1), item.choices), dim=1)
    scores = log_probabilities(model, ids)[:, -length - 1 : -1]
    return int(scores.gather(2, item.choices[..., None].to(scores.device)).mean((1, 2)).argmax())


def cloze(model: Any, items: Sequence[Item], progress: Step) -> dict[str, Any]:
    """Return the share of items answered right with its 95 per cent interval, and each outcome for pairing."""
    passed = []
    for number, item in enumerate(items):
        passed.append(choose(model, item) == item.answer)
        progress(number + 1, len(items), {})
    return pass_rate(passed) | {"chance": 1 / len(items[0].choices), "passed": passed}
