"""A pair of low-rank matrices beside a frozen linear layer: wrapping, seeding, folding.

Shape legend: N out features, K in features, R rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor, nn

from stackloom.core.errors import FitError
from stackloom.plugins.adapter.targets import named_by


class LowRankLinear(nn.Module):
    """`base_layer(x) + scaling * B between(A dropout(x))`, the base frozen.

    The matrices may be wider than the model's dtype: they are cast to the input's dtype for the products, and their
    gradients arrive in their own.

    Args:
        base_layer: the layer that is wrapped; its parameters are not changed.
        rank: R.
        scaling: factor of the branch.
        dropout: probability that an input feature of the branch is dropped in training.
        dtype: of the two matrices.

    Attributes:
        lora_A, lora_B: (R, K) and (N, R) linears without bias, both zero until `draw`.
    """

    def __init__(self, base_layer: nn.Linear, *, rank: int, scaling: float, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        place = {"device": base_layer.weight.device, "dtype": dtype}
        self.base_layer, self.rank, self.scaling, self.dropout = base_layer, rank, scaling, dropout
        self.lora_A = nn.utils.skip_init(nn.Linear, base_layer.in_features, rank, bias=False, **place)
        self.lora_B = nn.utils.skip_init(nn.Linear, rank, base_layer.out_features, bias=False, **place)
        nn.init.zeros_(self.lora_A.weight)
        nn.init.zeros_(self.lora_B.weight)
        self.train(base_layer.training)

    @property
    def weight(self) -> Tensor:
        """The base's weight (N, K), for code that looks at it."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias (N,)."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """K."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """N."""
        return self.base_layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        output = self.base_layer(x)
        inner = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.weight.to(x.dtype))
        return output + F.linear(self.between(inner), self.lora_B.weight.to(x.dtype)) * self.scaling

    def between(self, inner: Tensor) -> Tensor:
        """What happens between A and B, (..., R) to (..., R); a technique with a non-linearity overrides it."""
        return inner

    @torch.no_grad()
    def draw(self, init: Literal["kaiming", "gaussian"], generator: torch.Generator) -> None:
        """Draw A and zero B. On the CPU in float32, so that device and dtype do not change the numbers.

        Args:
            init: "kaiming" is uniform in [-1/sqrt(K), 1/sqrt(K)]; "gaussian" is normal with deviation 1/R.
            generator: on the CPU.
        """
        drawn = torch.empty(self.rank, self.in_features)
        if init == "kaiming":
            bound = 1 / math.sqrt(self.in_features)
            drawn.uniform_(-bound, bound, generator=generator)
        else:
            drawn.normal_(0, 1 / self.rank, generator=generator)
        self.lora_A.weight.copy_(drawn)
        self.lora_B.weight.zero_()

    @torch.no_grad()
    def folded(self) -> Tensor:
        """Return weight + scaling B A (N, K): computed in float64, rounded once to the weight's dtype."""
        product = self.lora_B.weight.double() @ self.lora_A.weight.double()
        return torch.add(self.weight.double(), product, alpha=self.scaling).to(self.weight.dtype)


def wrapped(model: nn.Module) -> dict[str, LowRankLinear]:
    """Return the model's wrapped layers by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LowRankLinear)}


def must_be_wrapped(model: nn.Module, where: str) -> dict[str, LowRankLinear]:
    """Return the wrapped layers.

    Raises:
        FitError: there are none.
    """
    found = wrapped(model)
    if not found:
        raise FitError("the model has no adapter", where=where, fix="call inject first")
    return found


def find_targets(model: nn.Module, patterns: Iterable[str], where: str) -> dict[str, nn.Linear]:
    """Return the linear layers that the patterns name, in the model's order.

    Args:
        model: without an adapter.
        patterns: see `named_by`.
        where: the plugin's id, for messages.

    Raises:
        FitError: the model has an adapter already; a pattern names no linear layer, an embedding, a layer whose weight
            another module shares, or one that holds no floating-point weight.
    """
    if held := wrapped(model):
        raise FitError(
            f"the model has an adapter already, at {next(iter(held))}", where=where, fix="merge it before the next one"
        )
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    named: set[str] = set()
    for pattern in patterns:
        matches = [(path, module) for path, module in model.named_modules() if path and named_by(path, pattern)]
        for path, module in matches:
            _refuse_shared(path, module, pattern, owners, where)
        linears = [path for path, module in matches if type(module) is nn.Linear]
        if not linears:
            raise FitError(_nothing_named(model, pattern, matches), where=where, fix="change targets")
        named.update(linears)
    return {path: module for path, module in model.named_modules() if path in named and isinstance(module, nn.Linear)}


def _refuse_shared(path: str, module: nn.Module, pattern: str, owners: dict[int, list[str]], where: str) -> None:
    if isinstance(module, nn.Embedding):
        raise FitError(
            f"target {pattern!r} names {path}, an embedding; adapters go around linear layers",
            where=where,
            fix="leave it out of targets",
        )
    if type(module) is nn.Linear:
        if others := [name for name in owners[id(module.weight)] if name != f"{path}.weight"]:
            raise FitError(
                f"target {pattern!r} names {path}, whose weight is also {others[0]}: folding into one changes both",
                where=where,
                fix="leave it out of targets",
            )
        if not module.weight.is_floating_point():
            raise FitError(f"{path} holds {module.weight.dtype} weights", where=where, fix="dequantize the model first")


def _nothing_named(model: nn.Module, pattern: str, matches: list[tuple[str, nn.Module]]) -> str:
    if matches:
        path, module = matches[0]
        return f"target {pattern!r} names {path}, a {type(module).__name__} and no torch.nn.Linear"
    ends = sorted({path.rpartition(".")[2] for path, module in model.named_modules() if type(module) is nn.Linear})
    return f"target {pattern!r} names no module; linear layers of the model: {', '.join(ends) or 'none'}"


def wrap(
    model: nn.Module,
    targets: dict[str, nn.Linear],
    make: Callable[[nn.Linear], LowRankLinear],
    *,
    init: Literal["kaiming", "gaussian"],
    seed: int,
) -> list[tuple[nn.Parameter, bool]]:
    """Freeze the model and put wrappers around its targets.

    Every layer draws from its own generator, derived from the seed and the layer's path: a change of targets leaves the
    other layers' draws as they were, and the global generator is not used.

    Returns:
        (parameter, requires_grad before) for `unwrap`.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for path, linear in targets.items():
        digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
        wrapper = make(linear)
        wrapper.draw(init, torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))
        _put(model, path, wrapper)
    return before


@torch.no_grad()
def fold(model: nn.Module, where: str) -> None:
    """Fold every wrapper into its base and put the base back in its place. All or nothing.

    Raises:
        FitError: nothing is wrapped, or a folded weight is not finite.
    """
    found = must_be_wrapped(model, where)
    for path, wrapper in found.items():  # a second pass over the products is cheaper than a second copy of the model
        if not torch.isfinite(wrapper.folded()).all():
            raise FitError(
                f"the folded weight of {path} is not finite in {wrapper.weight.dtype}",
                where=where,
                fix="use an earlier checkpoint or a wider dtype",
            )
    for path, wrapper in found.items():
        wrapper.base_layer.weight.copy_(wrapper.folded())
        wrapper.base_layer.train(wrapper.training)
        _put(model, path, wrapper.base_layer)


def restore(before: Iterable[tuple[nn.Parameter, bool]]) -> None:
    """Give parameters back the requires_grad that `wrap` noted."""
    for parameter, flag in before:
        parameter.requires_grad_(flag)


def matrices(model: nn.Module, where: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield ("<path>.lora_A.weight", (R, K)) and ("<path>.lora_B.weight", (N, R)) of every wrapped layer.

    Raises:
        FitError: nothing is wrapped.
    """
    for path, wrapper in must_be_wrapped(model, where).items():
        yield f"{path}.lora_A.weight", wrapper.lora_A.weight
        yield f"{path}.lora_B.weight", wrapper.lora_B.weight


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
