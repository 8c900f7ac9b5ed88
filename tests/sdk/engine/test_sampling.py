"""Draws follow the distribution that the options describe."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.errors import ArtifactError
from stackloom.core.generation import Sampling
from stackloom.engine.sampling import choose, draw, uniform

LOGITS = torch.tensor([2.0, -1.0, 0.5, 2.0, -30.0, 1.0])
NUMBERS = [(place + 0.5) / 2000 for place in range(2000)]


def shares(sampling):
    """How often each token is drawn over an even grid of numbers: its probability, to within a grid step."""
    drawn = torch.tensor([draw(LOGITS, sampling, number) for number in NUMBERS])
    return torch.bincount(drawn, minlength=len(LOGITS)).double() / len(NUMBERS)


def reference(sampling):
    """The same distribution by plain filtering: temperature, then the k likeliest, then the nucleus."""
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
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.7, 1e-9])
def test_shares_are_those_of_the_filtered_distribution(temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
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
    ids, logprobs = choose(LOGITS[None, :3].bfloat16(), [(Sampling(), 0.9)])
    assert ids == [0]
    assert logprobs == pytest.approx([float(LOGITS[:3].log_softmax(-1)[0])], rel=1e-6)


def test_rows_chosen_together_or_one_by_one_agree():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    draws = [(Sampling(temperature=0.5 * (row % 3)), uniform(0, "", row)) for row in range(5)]
    ids, logprobs = choose(logits, draws)
    ids_alone, logprobs_alone = choose(logits, draws, one_by_one=True)
    assert ids == ids_alone
    assert logprobs == pytest.approx(logprobs_alone, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    logits = LOGITS[None].clone()
    logits[0, 2] = bad
    with pytest.raises(ArtifactError, match="not finite"):
        choose(logits, [(Sampling(), 0.0)])


def test_minus_infinity_forbids_a_token():
    logits = torch.tensor([0.0, -math.inf, 0.0])
    assert {draw(logits, Sampling(temperature=1.0), number) for number in NUMBERS} == {0, 2}
