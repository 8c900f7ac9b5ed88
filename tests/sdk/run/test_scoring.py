"""Comparison with the float model, and multiple choice: on models whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import stackloom as sl
from stackloom.core.errors import ConfigError, FitError
from stackloom.run import runner, scoring


def silent(step: int, steps: int, values: dict[str, float]) -> None:
    """Report to nobody."""


class Table:
    """A model whose logits depend on the last token alone: row i follows token i."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids])


def drawn(seed: int) -> Table:
    return Table(torch.randn(11, 11, generator=torch.Generator().manual_seed(seed)))


def rows(count: int = 6, length: int = 20) -> list[torch.Tensor]:
    return list(torch.randint(0, 11, (count, length), generator=torch.Generator().manual_seed(1)))


def test_a_model_does_not_differ_from_itself() -> None:
    found = scoring.compare(drawn(0), drawn(0), rows(), silent)
    assert found["kl"]["value"] == 0
    assert found["nll_difference"] == {"value": 0.0, "interval": [0.0, 0.0], "count": 6 * 19}
    assert found["agreement"]["value"] == 1


def test_divergence_is_that_of_the_reference_from_the_model() -> None:
    model, reference = drawn(1), drawn(2)
    found = scoring.compare(model, reference, rows(), silent)
    q, p = (torch.log_softmax(each.logits.double(), -1) for each in (model, reference))
    tokens = torch.cat([row[:-1] for row in rows()])
    targets = torch.cat([row[1:] for row in rows()])
    assert found["kl"]["value"] == pytest.approx(((p.exp() * (p - q)).sum(-1))[tokens].mean().item(), rel=1e-5)
    assert found["nll_difference"]["value"] == pytest.approx((p - q)[tokens, targets].mean().item(), rel=1e-5)
    assert found["kl"]["interval"][0] > 0


def test_items_are_a_pure_function_of_their_arguments_and_hold_the_true_continuation() -> None:
    texts = rows(8, 70)
    one, two = (scoring.cloze_items(texts, 20, seed=3) for _ in range(2))
    for index, (item, again) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(item.choices, again.choices)
        whole = torch.cat((item.context, item.choices[item.answer]))
        windows = texts[index % 8].unfold(0, 64, 1)
        assert (windows == whole).all(1).any()
        assert item.choices.shape == (4, 16)
    assert len({item.answer for item in one}) == 4
    assert any(
        not torch.equal(a.context, b.context) for a, b in zip(one, scoring.cloze_items(texts, 20, 4), strict=True)
    )


def test_a_model_that_knows_the_text_answers_right_and_one_that_hates_it_wrong() -> None:
    """Counting upwards modulo 11 is certain to the one, impossible to the other; distractors start elsewhere."""
    texts = [(torch.arange(70) + start) % 11 for start in range(8)]
    knows = Table(8 * torch.eye(11).roll(1, 1))
    items = scoring.cloze_items(texts, 40, seed=0)
    apart = [item for item in items if len({tuple(choice.tolist()) for choice in item.choices}) == 4]
    assert scoring.cloze(knows, apart, silent)["value"] == 1.0
    assert scoring.cloze(Table(-knows.logits), apart, silent)["value"] < 0.25
    assert scoring.cloze(knows, apart, silent)["chance"] == 0.25


def test_choice_is_by_the_likelihood_of_the_continuation_given_its_context() -> None:
    model = drawn(5)
    for item in scoring.cloze_items(rows(8, 70), 10, seed=1):
        table = torch.log_softmax(model.logits.double(), -1)
        scores = []
        for choice in item.choices:
            before = torch.cat((item.context[-1:], choice[:-1]))
            scores.append(table[before, choice].mean().item())
        assert scoring.choose(model, item) == scores.index(max(scores))


def test_too_few_or_too_short_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple choice takes 4 sequences of 64 tokens"):
        scoring.cloze_items(rows(3, 70), 5, seed=0)
    with pytest.raises(ConfigError, match="multiple choice takes 4 sequences of 64 tokens"):
        scoring.cloze_items(rows(8, 63), 5, seed=0)


@pytest.fixture
def evaluate(lines: Path):
    """`evaluate(compare_to_float=True, ...)`: an evaluate stage over the lines."""

    def make(**options):
        data = sl.use("data.jsonl", path=str(lines), format="messages")
        return sl.evaluate(data=data, sequences=5, sequence_length=64, **options)

    return make


def quantize(**options):
    return sl.quantize(quantizer=sl.use("quantizer.rtn", group_size=16, **options))


def test_evaluate_compares_with_the_model_before_quantization(planned, train, evaluate, registry, tmp_path) -> None:
    found = {}
    for scheme in ("w8a8", "w4a8"):
        stages = (train(steps=4), quantize(scheme=scheme), evaluate(compare_to_float=True, cloze=12))
        made = runner.run(planned(*stages), registry, folder=tmp_path / scheme)
        found[scheme] = made.metrics(2)
    floats = runner.run(planned(train(steps=4), evaluate()), registry, folder=tmp_path / "float").metrics(1)
    eight, four = found["w8a8"]["against_float"], found["w4a8"]["against_float"]
    assert 0 < eight["kl"]["value"] < four["kl"]["value"]
    assert eight["agreement"]["value"] >= four["agreement"]["value"]
    for metrics in found.values():
        difference = math.log(metrics["perplexity"]["value"] / floats["perplexity"]["value"])
        assert metrics["against_float"]["nll_difference"]["value"] == pytest.approx(difference, abs=1e-4)
        assert metrics["cloze"]["count"] == len(metrics["cloze"]["passed"]) == 12
    tokens = [loss for row in floats["perplexity"]["token_nll"] for loss in row]
    assert math.fsum(tokens) / len(tokens) == pytest.approx(math.log(floats["perplexity"]["value"]), abs=1e-5)


def test_comparison_without_a_quantized_model_is_refused(planned, evaluate, registry, tmp_path) -> None:
    with pytest.raises(FitError, match="no earlier stage quantizes"):
        runner.run(planned(evaluate(compare_to_float=True)), registry, folder=tmp_path / "run")


def test_comparison_and_cloze_need_data(planned) -> None:
    for options in ({"compare_to_float": True}, {"cloze": 5}):
        with pytest.raises(ConfigError, match="need data"):
            planned(sl.evaluate(environment=sl.use("environment.arithmetic"), **options))


def test_plan_counts_the_second_model(planned, evaluate) -> None:
    one, two = (planned(quantize(), evaluate(compare_to_float=flag)) for flag in (False, True))
    difference = two.stages[1].cost.weight_bytes - one.stages[1].cost.weight_bytes
    assert difference == one.shape.parameters * 4
