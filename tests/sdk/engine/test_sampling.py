"""Draws follow the distribution that the options describe."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.errors import ArtifactError
from stackloom.core.generation import Sampling
from stackloom.engine.sampling import Choice, choose, draw, uniform

LOGITS = torch.tensor([2.0, -1.0, 0.5, 2.0, -30.0, 1.0])
NUMBERS = [(place + 0.5) / 2000 for place in range(2000)]


def shares(sampling):
    """How often each token is drawn over an even grid of numbers: its probability, to within a grid step."""
    drawn = torch.tensor([draw(LOGITS, sampling, number) for number in NUMBERS])
    return torch.bincount(drawn, minlength=len(LOGITS)).double() / len(NUMBERS)


def reference(sampling):
    """The same distribution by plain filtering: temperature, the k likeliest, the nucleus, the share of the best."""
    logits = LOGITS.double() / sampling.temperature
    order = logits.argsort(descending=True, stable=True)
    if sampling.top_k:
        logits[order[sampling.top_k :]] = -math.inf
    probabilities = logits.softmax(-1)
    total = 0.0
    for token in order.tolist():
        if total >= sampling.top_p:
            probabilities[token] = 0.0
        total += float(probabilities[token])
    probabilities[probabilities < sampling.min_p * probabilities.max()] = 0.0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 1e-9])
@pytest.mark.parametrize("min_p", [0.0, 0.3, 1.0])
def test_shares_are_those_of_the_filtered_distribution(temperature, top_k, top_p, min_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = reference(sampling)
    torch.testing.assert_close(shares(sampling), expected, rtol=0, atol=2 / len(NUMBERS))
    assert not shares(sampling)[expected == 0].any()


@given(st.integers(), st.text(), st.integers(0, 10_000))
def test_uniform_is_a_fixed_number_below_one(seed, key, position):
    number = uniform(seed, key, position)
    assert 0 <= number < 1
    assert number == uniform(seed, key, position)
    assert number != uniform(seed + 1, key, position)
    assert number != uniform(seed, key + "x", position)
    assert number != uniform(seed, key, position + 1)


def test_uniform_fills_its_interval_evenly():
    numbers = torch.tensor([uniform(0, "", position) for position in range(4000)], dtype=torch.float64).sort().values
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert float((numbers - steps).abs().max()) < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov at 1 %


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    st.floats(5e-324, 1e30),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 60),
    st.floats(5e-324, 1),
)
def test_any_finite_logits_and_options_give_a_token_that_is_possible(logits, temperature, number, top_k, top_p):
    given_V = torch.tensor(logits)
    token = draw(given_V, Sampling(temperature=temperature, top_k=top_k, top_p=top_p), number)
    scaled = (given_V.double() - given_V.max().double()) / temperature
    assert scaled.exp()[token] > 0


def test_temperature_zero_takes_the_likeliest_and_reports_its_logprob():
    (found,) = choose(LOGITS[None, :3].bfloat16(), [Choice(Sampling(), 0.9)])
    assert found.token == 0
    assert found.logprob == pytest.approx(float(LOGITS[:3].log_softmax(-1)[0]), rel=1e-6)


def test_rows_chosen_together_or_one_by_one_agree():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    choices = [Choice(Sampling(temperature=0.5 * (row % 3)), uniform(0, "", row)) for row in range(5)]
    together, alone = choose(logits, choices), choose(logits, choices, one_by_one=True)
    assert [one.token for one in together] == [one.token for one in alone]
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits = LOGITS[None].clone()
    logits[0, 2] = bad
    with pytest.raises(ArtifactError, match="not finite"):
        choose(logits, [Choice(Sampling())])


def test_minus_infinity_forbids_a_token():
    logits = torch.tensor([0.0, -math.inf, 0.0])
    assert {draw(logits, Sampling(temperature=1.0), number) for number in NUMBERS} == {0, 2}


def test_penalties_are_those_of_transformers_and_of_openais_page():
    from transformers import RepetitionPenaltyLogitsProcessor

    read, written = (0, 1), (2, 2, 5)
    shaped = Choice(Sampling(repetition_penalty=1.7), read=read, written=written).shape(LOGITS)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*read, *written]]), LOGITS[None].clone())[0]
    torch.testing.assert_close(shaped, expected)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    shaped = Choice(sampling, read=read, written=written).shape(LOGITS)
    torch.testing.assert_close(shaped, LOGITS - torch.tensor([0, 0, 0.5 + 2 * 0.25, 0, 0, 0.75]))
    assert Choice(Sampling(), read=read, written=written).shape(LOGITS) is LOGITS


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_moves_the_choice_and_not_the_reported_distribution(temperature):
    sampling = Sampling(temperature=temperature, presence_penalty=100.0)
    (found,) = choose(LOGITS[None], [Choice(sampling, 0.01, written=(0,), likeliest=2)])
    assert found.token == (3 if temperature == 0 else 1)
    logprobs = LOGITS.log_softmax(-1)
    assert found.logprob == pytest.approx(float(logprobs[found.token]), rel=1e-5)
    assert [token for token, _ in found.likeliest] == [0, 3]
    assert found.likeliest[0][1] == pytest.approx(float(logprobs[0]), rel=1e-5)


@given(st.integers(1, 5).flatmap(lambda size: st.sets(st.integers(0, 5), min_size=size)), st.floats(0, 2))
def test_only_what_is_allowed_is_chosen(allowed, temperature):
    mask = torch.zeros(6, dtype=torch.bool)
    mask[list(allowed)] = True
    for number in (0.0, 0.5, 0.999):
        (found,) = choose(LOGITS[None], [Choice(Sampling(temperature=temperature), number, allowed=mask)])
        assert found.token in allowed
