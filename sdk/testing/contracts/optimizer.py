"""What every optimizer must hold."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from stackloom.core.errors import StackloomError
from stackloom.testing.contracts.plugin import PluginContract, torch_dtype
from stackloom.testing.tiny import tiny_parameters, tiny_shape

ODD_SIZES = [
    ("a.weight", (1, 1)),
    ("b.weight", (1, 63)),
    ("c.weight", (63, 1)),
    ("d.weight", (5, 3, 2)),
    ("e.bias", (1,)),
    ("f.gain", ()),
]
Named = list[tuple[str, nn.Parameter]]


class OptimizerContract(PluginContract):
    """The laws of slot `optimizer`.

    Attributes:
        steps, decrease: after so many steps on a convex problem, the loss has fallen by at least this share.

    Example:
        >>> class TestMySGD(OptimizerContract):
        ...     plugin = "optimizer.my-sgd"
        ...     options = {"lr": 0.1}
    """

    steps: ClassVar[int] = 50
    decrease: ClassVar[float] = 1e-3

    def test_routes_name_every_parameter_once(self) -> None:
        named = tiny_parameters(tiny_shape())
        routes = self.component(named).routes()
        assert [name for name, _ in routes] == [name for name, _ in named]
        assert all(rule for _, rule in routes)

    def test_every_trainable_parameter_is_in_one_group_with_a_learning_rate(self) -> None:
        named = tiny_parameters(tiny_shape())
        groups = self.component(named).param_groups
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for _, parameter in named)
        assert all(group["lr"] >= 0 for group in groups)

    def test_state_bytes_are_what_cost_says(self, dtype: str) -> None:
        """0-dimensional counters are not counted."""
        for shape in (tiny_shape(), tiny_shape(tied=True, attention_bias=False, qk_norm=False, layers=3)):
            named = tiny_parameters(shape, torch_dtype(dtype))
            optimizer = self.component(named)
            _descend(optimizer, named, steps=2)
            state = optimizer.state_dict()["state"]
            held = sum(
                value.numel() * value.element_size()
                for entry in state.values()
                for value in entry.values()
                if isinstance(value, Tensor) and value.ndim
            )
            assert held == self.config().cost(self.work(dtype, model=shape)).optimizer_bytes

    def test_loss_falls_on_a_convex_problem(self) -> None:
        """The start is the origin, so that weight decay alone cannot help."""
        named = tiny_parameters(tiny_shape())
        _zero(named)
        optimizer = self.component(named)
        start = _distance(named).item()
        _descend(optimizer, named, steps=self.steps)
        assert _distance(named).item() < (1 - self.decrease) * start

    def test_learning_rate_of_the_groups_is_obeyed(self) -> None:
        moved = []
        for factor in (0, 1, 2):
            named = tiny_parameters(tiny_shape())
            before = _values(named)
            optimizer = self.component(named)
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor
            _descend(optimizer, named, steps=1)
            moved.append([(after - old).norm().item() for after, old in zip(_values(named), before, strict=True)])
        assert moved[0] == [0.0] * len(moved[0])
        assert all(0 < once < twice for once, twice in zip(moved[1], moved[2], strict=True))

    def test_parameter_without_gradient_stays(self) -> None:
        named = tiny_parameters(tiny_shape())
        before = _values(named)
        optimizer = self.component(named)
        for place, (_, parameter) in enumerate(named):
            parameter.grad = torch.ones_like(parameter) if place % 2 else None
        optimizer.step()
        for place, (old, new) in enumerate(zip(before, _values(named), strict=True)):
            assert torch.equal(old, new) == (place % 2 == 0), named[place][0]

    def test_frozen_parameter_stays(self) -> None:
        named = tiny_parameters(tiny_shape())
        for _, parameter in named[::2]:
            parameter.requires_grad_(False)
        before = _values(named[::2])
        optimizer = self.component(named)
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(_distance(named))
            optimizer.step()
        assert all(torch.equal(old, new) for old, new in zip(before, _values(named[::2]), strict=True))

    def test_step_needs_no_closure(self) -> None:
        named = tiny_parameters(tiny_shape())
        optimizer = self.component(named)
        torch.autograd.backward(_distance(named))
        assert optimizer.step() is None

    def test_nan_gradient_does_not_vanish(self) -> None:
        """A step on NaN either raises or leaves NaN behind, never a finite parameter that looks trained."""
        for place in range(len(tiny_parameters(tiny_shape()))):
            named = tiny_parameters(tiny_shape())
            optimizer = self.component(named)
            torch.autograd.backward(_distance(named))
            poisoned = named[place][1]
            assert poisoned.grad is not None
            poisoned.grad.view(-1)[0] = float("nan")
            try:
                optimizer.step()
            except StackloomError:
                continue
            assert not torch.isfinite(poisoned).all(), named[place][0]

    def test_computes_in_the_parameters_dtype(self, dtype: str) -> None:
        named = tiny_parameters(tiny_shape(), torch_dtype(dtype))
        before = _values(named)
        optimizer = self.component(named)
        _descend(optimizer, named, steps=3)
        for name, parameter in named:
            assert parameter.dtype == torch_dtype(dtype), name
            assert torch.isfinite(parameter).all(), name
        assert any(not torch.equal(old, new) for old, new in zip(before, _values(named), strict=True))

    def test_odd_sizes(self) -> None:
        named = _parameters(ODD_SIZES)
        before = _values(named)
        optimizer = self.component(named)
        _descend(optimizer, named, steps=3)
        for (name, parameter), old in zip(named, before, strict=True):
            assert torch.isfinite(parameter).all(), name
            assert not torch.equal(parameter, old), name

    def test_layout_of_the_gradient_does_not_matter(self) -> None:
        results = []
        for transposed in (False, True):
            named = _parameters([("a.weight", (6, 10)), ("b.weight", (10, 6))])
            optimizer = self.component(named)
            for seed in range(3):
                for _, parameter in named:
                    gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                    parameter.grad = gradient.t().contiguous().t() if transposed else gradient
                optimizer.step()
            results.append(_values(named))
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two)

    def test_resumes_bit_exactly(self, dtype: str) -> None:
        """Through torch.save and a load of weights only; a learning rate set before the save is part of it."""

        def start() -> tuple[Named, Any]:
            named = tiny_parameters(tiny_shape(), torch_dtype(dtype))
            return named, self.component(named)

        named, optimizer = start()
        _descend(optimizer, named, steps=3)
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        file = io.BytesIO()
        torch.save({"weights": _values(named), "optimizer": optimizer.state_dict()}, file)
        _descend(optimizer, named, steps=4, first=3)

        twin, resumed = start()
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for (_, parameter), value in zip(twin, saved["weights"], strict=True):
            parameter.data.copy_(value)
        resumed.load_state_dict(saved["optimizer"])
        _descend(resumed, twin, steps=4, first=3)
        for (name, one), (_, two) in zip(named, twin, strict=True):
            assert torch.equal(one, two), name
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in resumed.param_groups]

    def test_is_as_deterministic_as_claimed(self) -> None:
        if self.record().manifest.determinism == "statistical":
            pytest.skip("claims statistical determinism only")
        runs = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            named = tiny_parameters(tiny_shape())
            _descend(self.component(named), named, steps=5)
            runs.append(_values(named))
        assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))

    def test_matrix_feature_is_true(self) -> None:
        """An elementwise rule moves an entry by its own gradient alone; a matrix rule looks at the whole matrix."""
        entries = []
        for other in (0.5, 5.0):
            named = _parameters([("a.weight", (6, 10))])
            optimizer = self.component(named)
            gradient = torch.ones(6, 10)
            gradient[1:] = other
            gradient[:, 1:] *= torch.linspace(0.5, 2, 9)
            named[0][1].grad = gradient
            optimizer.step()
            entries.append(named[0][1].detach()[0, 0].item())
        assert (entries[0] != entries[1]) == ("matrix" in self.record().manifest.can.features)

    def test_nothing_to_train_is_refused(self) -> None:
        with pytest.raises((StackloomError, ValueError)):
            self.component([])


def _parameters(sizes: Iterable[tuple[str, tuple[int, ...]]]) -> Named:
    draw = torch.Generator().manual_seed(0)
    return [(name, nn.Parameter(torch.randn(size, generator=draw))) for name, size in sizes]


def _values(named: Named) -> list[Tensor]:
    return [parameter.detach().clone() for _, parameter in named]


def _zero(named: Named) -> None:
    for _, parameter in named:
        parameter.data.zero_()


def _target(place: int, parameter: Tensor) -> Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 + place)).to(parameter.dtype)


def _distance(named: Named) -> Tensor:
    """Half the squared distance of every parameter from a fixed target."""
    return torch.stack(
        [0.5 * (parameter - _target(place, parameter)).square().sum() for place, (_, parameter) in enumerate(named)]
    ).sum()


def _descend(
    optimizer: Any, named: Named, *, steps: int, first: int = 0, loss: Callable[[Named], Tensor] = _distance
) -> None:
    """Take steps on a loss whose weighting changes from step to step, so that momentum has something to remember."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        torch.autograd.backward((1 + step % 3) * loss(named))
        optimizer.step()
