"""Poisoned memory shows what a kernel did not write."""

import torch

from stackloom.kernels.tooling.poison import poisoned_allocations, poisoned_view


def test_fresh_memory_is_poison_inside_and_the_settings_are_restored():
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_allocations():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2, 2, dtype=torch.bfloat16)).isnan().all()
        assert (torch.empty(3, dtype=torch.uint8) == 255).all()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_poison_reaches_inside_a_custom_op():
    @torch.library.custom_op("stackloom_tests::forgets_to_write", mutates_args=())
    def forgets_to_write(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y[:-1] = x[:-1]
        return y

    with poisoned_allocations():
        assert forgets_to_write(torch.ones(4)).isnan().tolist() == [False, False, False, True]


def test_a_poisoned_view_holds_the_values_amid_poison():
    values = torch.arange(6.0).reshape(2, 3)
    view = poisoned_view(values, pad=2)
    assert torch.equal(view, values)
    assert view.stride() == (8, 2)
    assert view._base.isnan().sum() == 16 - 6
