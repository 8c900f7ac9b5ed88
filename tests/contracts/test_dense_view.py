"""`DenseView` keeps exactly what core's cache contract says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stackloom.core.cache import Buffer, CacheSpec
from stackloom.core.errors import EngineError, PluginError
from stackloom.engine.cache import DenseView

SPEC = CacheSpec(
    pages={"k": Buffer(shape=(2, 3)), "ids": Buffer(shape=(), dtype="int64")},
    state={"sum": Buffer(shape=(4,), dtype="float64")},
)
PAGES = CacheSpec(pages={"k": Buffer(shape=(3,))})
STATE = CacheSpec(state={"sum": Buffer(shape=())})


def view(spec=PAGES, batch=2, **options):
    return DenseView(spec, batch, dtype=torch.float32, poison=True, **options)


def numbered(start, tokens, batch=2):
    """Return (B, T, 3) entries that say which token and sequence they are."""
    return (
        (torch.arange(start, start + tokens)[None, :, None] + 1000.0 * torch.arange(batch)[:, None, None])
        .expand(-1, -1, 3)
        .clone()
    )


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_reads_what_was_appended_through_any_growth(pieces, capacity):
    cache, total = view(capacity=capacity), 0
    for tokens in pieces:
        cache.append(tokens, k=numbered(total, tokens))
        total += tokens
    assert torch.equal(cache.read("k"), numbered(0, total))
    assert cache.lengths_B.tolist() == [total, total]
    assert cache.used_bytes == 2 * total * 3 * 4


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=15))
@settings(max_examples=60, deadline=None)
def test_rollback_is_as_if_the_tokens_had_never_been(moves):
    cache, kept = view(), []
    for step, (back, n) in enumerate(moves):
        if back:
            n = min(n, len(kept))
            assert cache.rollback(n) == 0
            kept = kept[: len(kept) - n]
        else:
            cache.append(n, k=numbered(100 * step, n))
            kept += range(100 * step, 100 * step + n)
    expected = torch.tensor(kept, dtype=torch.float32)[None, :, None] + 1000.0 * torch.arange(2)[:, None, None]
    assert torch.equal(cache.read("k"), expected.expand(-1, -1, 3))


@given(steps=st.integers(1, 40), every=st.integers(1, 16), n=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_state_returns_to_the_newest_snapshot_and_asks_for_the_tokens_since(steps, every, n):
    cache, n = view(STATE, max_snapshots=64), min(n, steps)
    for step in range(1, steps + 1):
        cache.append(1)
        cache.write(sum=cache.state("sum") + step)
        if step % every == 0:
            cache.snapshot()
    replay = cache.rollback(n)
    at = steps - n - replay
    assert n == 0 or (replay < every and at % every == 0)
    assert cache.lengths_B.tolist() == [at, at]
    assert cache.state("sum").tolist() == [at * (at + 1) / 2] * 2


def test_rollback_of_state_takes_its_pages_along():
    cache = view(SPEC)
    for step in range(6):
        cache.append(1, k=torch.zeros(2, 1, 2, 3), ids=torch.full((2, 1), step))
        cache.write(sum=torch.full((2, 4), float(step), dtype=torch.float64))
        if step == 2:
            cache.snapshot()
    assert cache.rollback(1) == 2
    assert cache.read("ids").tolist() == [[0, 1, 2]] * 2
    assert cache.state("sum")[0, 0] == 2


def test_forgotten_snapshots_bound_the_rollback_and_a_refusal_changes_nothing():
    cache = view(STATE, max_snapshots=2)
    for _ in range(5):
        cache.append(1)
        cache.snapshot()
    with pytest.raises(EngineError, match="no snapshot reaches back that far"):
        cache.rollback(2)
    assert cache.lengths_B.tolist() == [5, 5]
    assert cache.rollback(1) == 0


def test_more_than_is_cached_cannot_be_rolled_back():
    cache = view()
    cache.append(3, k=numbered(0, 3))
    for n in (4, -1):
        with pytest.raises(EngineError, match="shortest sequence has 3"):
            cache.rollback(n)


def test_merged_views_keep_each_sequence_and_its_length():
    one, two = view(batch=1), view(batch=2)
    one.append(5, k=numbered(0, 5, batch=1))
    two.append(2, k=numbered(50, 2))
    both = DenseView.merge([one, two])
    both.append(1, k=torch.full((3, 1, 3), 7.0))
    assert both.lengths_B.tolist() == [6, 3, 3]
    assert both.read("k")[0, :, 0].tolist() == [0, 1, 2, 3, 4, 7]
    assert both.read("k")[2, :3, 0].tolist() == [1050, 1051, 7]
    assert both.read("k")[2, 3:].isnan().all()


def test_everything_past_a_length_is_poisoned():
    cache = view(SPEC, capacity=4)
    cache.append(3, k=torch.zeros(2, 3, 2, 3), ids=torch.zeros(2, 3, dtype=torch.int64))
    cache.rollback(3)
    assert cache._pages["k"].isnan().all()
    assert (cache._pages["ids"] == torch.iinfo(torch.int64).min).all()


def test_copy_is_independent():
    cache = view(SPEC)
    cache.append(1, k=torch.zeros(2, 1, 2, 3), ids=torch.zeros(2, 1, dtype=torch.int64))
    twin = cache.copy()
    twin.append(1, k=torch.ones(2, 1, 2, 3), ids=torch.ones(2, 1, dtype=torch.int64))
    twin.write(sum=torch.ones(2, 4, dtype=torch.float64))
    twin.rollback(2)
    assert cache.lengths_B.tolist() == [1, 1]
    assert cache.read("k").sum() == 0
    assert cache.state("sum").sum() == 0


def test_state_is_zero_at_first_and_not_the_writers_tensor():
    cache = view(STATE)
    assert cache.state("sum").tolist() == [0, 0]
    value = torch.ones(2)
    cache.write(sum=value)
    value.zero_()
    assert cache.state("sum").tolist() == [1, 1]


def test_cached_tokens_hold_no_gradients():
    cache = view()
    cache.append(1, k=torch.ones(2, 1, 3, requires_grad=True))
    assert not cache.read("k").requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: cache.append(1), "takes all pages at once"),
        (lambda cache: cache.append(1, k=torch.zeros(2, 1, 3), v=torch.zeros(2, 1, 3)), "takes all pages at once"),
        (lambda cache: cache.append(2, k=torch.zeros(2, 1, 3)), "the cache spec says"),
        (lambda cache: cache.append(1, k=torch.zeros(2, 1, 3, dtype=torch.float64)), "the cache spec says"),
        (lambda cache: cache.append(-1, k=torch.zeros(2, 0, 3)), "-1 tokens"),
        (lambda cache: cache.read("v"), "declares no page 'v'"),
        (lambda cache: cache.state("k"), "declares no state 'k'"),
        (lambda cache: cache.write(k=torch.zeros(2)), "declares no state 'k'"),
    ],
)
def test_what_the_spec_does_not_say_is_the_plugins_fault(call, message):
    with pytest.raises(PluginError, match=message):
        call(view())


def test_views_of_different_specs_cannot_be_merged():
    with pytest.raises(EngineError, match="all of one spec"):
        DenseView.merge([view(), view(STATE)])
    with pytest.raises(EngineError, match="at least one view"):
        DenseView.merge([])
