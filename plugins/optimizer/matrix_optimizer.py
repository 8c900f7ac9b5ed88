"""The optimizer of orthogonalised matrices: routing, state, stacks, shards, and AdamW for the rest.

A technique says what it feeds to the orthogonalisation (`_direct`) and which buffers that takes (`_start`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stackloom.core.errors import ArtifactError, ConfigError, FitError
from stackloom.kernels.muon_update.each import descend_each_
from stackloom.kernels.newton_schulz import POLAR_EXPRESS, QUINTIC, orthogonalize
from stackloom.plugins.optimizer import routing
from stackloom.plugins.optimizer.matrix_config import MatrixConfig, rule_of
from stackloom.plugins.optimizer.scale import scale
from stackloom.plugins.optimizer.sharding import (
    RowShards,
    local,
    orthogonalise_by_owner,
    orthogonalise_everywhere,
    row_shards,
)

LOG = logging.getLogger("stackloom.optimizer")
EMBEDDING_OR_HEAD = ("*embed*", "*wte*", "*wpe*", "*lm_head*")
STACK_ELEMENTS = 1 << 24  # of matrices that are orthogonalised together, so that the copies stay small


@dataclass(frozen=True)
class Matrix:
    """One parameter that is orthogonalised.

    Attributes:
        index: its place among all of them; seeds what is drawn for it.
        name, parameter: as in the model.
        parts: rows of each matrix that it holds one above the other.
        shards: how it is dealt out, or None.
    """

    index: int
    name: str
    parameter: nn.Parameter
    parts: tuple[int, ...]
    shards: RowShards | None

    @property
    def offset(self) -> int:
        """Index, within the whole parameter, of the first element that this worker holds."""
        return self.shards.bounds[self.shards.rank] * self.shards.row_elements if self.shards else 0


class MatrixOptimizer(torch.optim.Optimizer):
    """Base of `optimizer.muon` and `optimizer.mona`: matrices by a rule of their own, everything else by AdamW.

    `param_groups` holds each group once, with a "rule" beside torch's own keys; the wrapped AdamW shares groups and
    state with it, so that a schedule or a loaded state reaches both. Works on plain tensors (one process, or the same
    gradients in every process, as DDP gives them) and on row-sharded ones (`fully_shard`).

    Args:
        config: the plugin's options.
        named_parameters: (name, Parameter) pairs as `Module.named_parameters` yields; frozen ones are left alone.

    Raises:
        ConfigError: no parameter is trainable; an embedding or head is routed to the matrices without being forced; a
            vector is forced; row_parts do not add up.
        FitError: a matrix is complex, or sharded in a way that cannot be made whole.
    """

    plugin: ClassVar[str]
    rule: ClassVar[str]

    def __init__(self, config: MatrixConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.config = config
        named = list(named_parameters)
        self._routes = [(name, rule_of(name, p.ndim, p.requires_grad, config, self.rule)) for name, p in named]
        self._shapes = [tuple(parameter.shape) for _, parameter in named]
        by_rule: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for (name, parameter), (_, rule) in zip(named, self._routes, strict=True):
            if parameter.requires_grad:
                by_rule.setdefault(rule, []).append((name, parameter))
        if not by_rule:
            raise ConfigError(
                "no parameter is trainable", where=self.plugin, fix="unfreeze some, or give the stage an adapter"
            )
        matrices = [pair for rule, pairs in sorted(by_rule.items()) for pair in pairs if rule.startswith(self.rule)]
        self._check_routes(named, {name for name, _ in matrices})
        self._matrices = {
            parameter: Matrix(index, name, parameter, self._parts(name, parameter), row_shards(parameter, name))
            for index, (name, parameter) in enumerate(matrices)
        }
        self._adamw = self._wrapped_adamw(by_rule)
        groups: list[dict[str, Any]] = [self._matrix_group() | {"params": matrices}] if matrices else []
        super().__init__(groups + (self._adamw.param_groups if self._adamw else []), {})
        self._share()
        LOG.info("%s\n%s", self.plugin, self.table())

    def routes(self) -> list[tuple[str, str]]:
        """Return (parameter name, rule that updates it) for every parameter, in the model's order."""
        return list(self._routes)

    def table(self) -> str:
        """Return the routes as an aligned table, with shapes and totals."""
        return routing.table((*route, shape) for route, shape in zip(self._routes, self._shapes, strict=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; one without keeps its value and all its buffers.

        Args:
            closure: computes the loss again and returns it; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            FitError: a matrix has a sparse gradient; nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["rule"].startswith(self.rule):
                self._step_matrices(group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; every buffer keeps the dtype that it was saved in.

        Raises:
            ArtifactError: it was saved for other parameters, or for the same under other rules.
        """
        saved, ours = (
            [(group.get("rule"), group.get("param_names")) for group in groups]
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        if saved != ours:
            raise ArtifactError(
                "the optimizer state belongs to other parameters",
                where=self.plugin,
                fix="resume with the model, adapter and options that the checkpoint was written with",
            )
        super().load_state_dict(state_dict)
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(keys, parameters, strict=True):  # torch casts buffers to the parameter's dtype
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().clone().to(self.state[parameter][name].device)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it takes a rule of this optimizer's, and one of AdamW's reaches the wrapped AdamW."""
        super().add_param_group(param_group)
        self._share()

    def _matrix_group(self) -> dict[str, Any]:
        """Keys of the matrices' parameter group that a step reads."""
        config = self.config
        return {
            "rule": f"{self.rule}, decay {config.weight_decay:g}",
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
            "nesterov": config.nesterov,
        }

    def _start(self, matrix: Matrix) -> dict[str, Tensor]:
        """Return the buffers of a matrix that has its first gradient."""
        dtype = torch.bfloat16 if self.config.momentum_dtype == "bfloat16" else matrix.parameter.dtype
        return {
            "momentum_buffer": torch.zeros_like(matrix.parameter, dtype=dtype, memory_format=torch.contiguous_format)
        }

    def _direct(
        self,
        matrices: Sequence[Matrix],
        group: dict[str, Any],
        states: Sequence[dict[str, Tensor]],
        Gs: Sequence[Tensor],
        Us: Sequence[Tensor],
    ) -> None:
        """Update each matrix's buffers with this worker's gradient G; write what is to be orthogonalised into U."""
        raise NotImplementedError

    def _implementation(self, tensor: Tensor) -> str:
        """On a CPU `auto` means the reference, without asking."""
        on_cpu = self.config.implementation == "auto" and tensor.device.type == "cpu"
        return "reference" if on_cpu else self.config.implementation

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices = [self._matrices[parameter] for parameter in group["params"] if parameter.grad is not None]
        for matrix in matrices:
            if matrix.parameter.grad.is_sparse:
                raise FitError("has a sparse gradient, and a matrix needs a dense one", where=matrix.name)
        for batch in _batches(matrices):
            updates = self._updates(batch, group)
            shards = [matrix.shards for matrix in batch if matrix.shards]
            orthogonalise = partial(self._orthogonalised_among, batch)
            if not shards:
                results = self._orthogonalised(batch, updates)
            elif self.config.sharded == "owner":
                results = orthogonalise_by_owner(shards, updates, orthogonalise)
            else:
                results = orthogonalise_everywhere(shards, updates, orthogonalise)
            Ws = [local(matrix.parameter) for matrix in batch]
            lr, decay = group["lr"], group["weight_decay"]
            rates = [
                lr * (self._scale(matrix.parts[0], W.shape[-1]) if len(matrix.parts) == 1 else 1.0)
                for matrix, W in zip(batch, Ws, strict=True)
            ]
            descend_each_(Ws, results, 1 - lr * decay, rates, implementation=self._implementation(Ws[0]))

    def _updates(self, batch: list[Matrix], group: dict[str, Any]) -> list[Tensor]:
        for matrix in batch:
            if not self.state[matrix.parameter]:
                self.state[matrix.parameter].update(self._start(matrix))
        states = [{name: local(value) for name, value in self.state[matrix.parameter].items()} for matrix in batch]
        Gs = [local(matrix.parameter.grad) for matrix in batch]
        Us = [torch.empty(G.shape, dtype=self._product_dtype(G.dtype), device=G.device) for G in Gs]
        self._direct(batch, group, states, Gs, Us)
        return Us

    def _product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if dtype == torch.float64 else getattr(torch, self.config.ns_dtype)

    def _orthogonalised_among(self, batch: list[Matrix], chosen: list[int], whole: list[Tensor]) -> list[Tensor]:
        return self._orthogonalised([batch[index] for index in chosen], whole)

    def _orthogonalised(self, matrices: list[Matrix], updates: list[Tensor]) -> list[Tensor]:
        """Orthogonalise each matrix of each update, those of one shape together; fused parts come back scaled."""
        pieces = [
            (place, piece)
            for place, (matrix, update) in enumerate(zip(matrices, updates, strict=True))
            for piece in update.split(matrix.parts, dim=-2)
        ]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for number, (_, piece) in enumerate(pieces):
            by_shape.setdefault(tuple(piece.shape), []).append(number)
        done: dict[int, Tensor] = {}
        for numbers in by_shape.values():
            results = self._orthogonalise(torch.stack([pieces[number][1] for number in numbers]))
            done.update(zip(numbers, results.unbind(), strict=True))
        joined: list[list[Tensor]] = [[] for _ in matrices]
        for number, (place, piece) in enumerate(pieces):
            fused = len(matrices[place].parts) > 1
            joined[place].append(done[number] * self._scale(*piece.shape[-2:]) if fused else done[number])
        return [torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0] for parts in joined]

    def _orthogonalise(self, stack: Tensor) -> Tensor:
        config = self.config
        return orthogonalize(
            stack,
            coefficients(config),
            config.ns_eps,
            config.ns_form,
            stack.dtype,
            implementation=self._implementation(stack),
        )

    def _scale(self, rows: int, columns: int) -> float:
        return scale(self.config.adjust_lr_fn, rows, columns)

    def _parts(self, name: str, parameter: nn.Parameter) -> tuple[int, ...]:
        parts = routing.row_parts(name, parameter.shape[-2], self.config.row_parts)
        if sum(parts) != parameter.shape[-2]:
            raise ConfigError(
                f"{name} has {parameter.shape[-2]} rows, its parts {parts} have {sum(parts)}",
                where=f"{self.plugin}.row_parts",
                fix="name the rows of every matrix that the weight holds",
            )
        if parameter.is_complex():
            raise FitError("is complex, and the singular values of real matrices are meant", where=name)
        return parts

    def _check_routes(self, named: list[tuple[str, nn.Parameter]], matrices: set[str]) -> None:
        forced = self.config.force_names
        for name, parameter in named:
            if parameter.requires_grad and routing.matches(name, forced) and name not in matrices:
                raise ConfigError(
                    f"{name} has {parameter.ndim} dimensions and is no matrix",
                    where=f"{self.plugin}.force_names",
                    fix="force 2-D weights only, or name a 3-D stack of matrices in stacked_names",
                )
        for name in sorted(matrices):
            if routing.matches(name, EMBEDDING_OR_HEAD) and not routing.matches(name, forced):
                raise ConfigError(
                    f"{name} looks like an embedding or a head, whose rows are no directions to balance",
                    where=f"{self.plugin}.adamw_names",
                    fix="add it to adamw_names, or to force_names if it is meant",
                )

    def _wrapped_adamw(self, by_rule: dict[str, list[tuple[str, nn.Parameter]]]) -> torch.optim.AdamW | None:
        config = self.config
        groups = [
            {"params": pairs, "rule": rule, "weight_decay": 0.0 if "no decay" in rule else config.adamw_weight_decay}
            for rule, pairs in sorted(by_rule.items())
            if rule.startswith("adamw")
        ]
        if not groups:
            return None
        lr = config.lr if config.adamw_lr is None else config.adamw_lr
        return torch.optim.AdamW(groups, lr=lr, betas=(config.adamw_beta1, config.adamw_beta2), eps=config.adamw_eps)

    def _share(self) -> None:
        """Point the wrapped AdamW at this one's groups and state, the same objects."""
        if self._adamw is not None:
            self._adamw.param_groups = [group for group in self.param_groups if group["rule"].startswith("adamw")]
            self._adamw.state = self.state


def coefficients(config: MatrixConfig) -> tuple[tuple[float, float, float], ...]:
    """The triple (a, b, c) of each Newton-Schulz step that the options ask for."""
    if config.ns_coefficients == "polar-express":
        last = POLAR_EXPRESS[-1:] * max(0, config.ns_steps - len(POLAR_EXPRESS))
        return POLAR_EXPRESS[: config.ns_steps] + last
    triple = QUINTIC[0] if config.ns_coefficients == "quintic" else config.ns_coefficients
    return (triple,) * config.ns_steps


def _batches(matrices: list[Matrix]) -> Iterator[list[Matrix]]:
    """Split into batches of one layout, whole matrices of one shape together, each of a bounded size.

    Shards of one process group make one batch however large, so that a step exchanges them once.
    """
    layouts: dict[Any, list[Matrix]] = {}
    for matrix in matrices:
        p = matrix.parameter
        key = (matrix.shards.group if matrix.shards else tuple(p.shape), matrix.parts if not matrix.shards else ())
        layouts.setdefault((*key, p.dtype, p.device), []).append(matrix)
    for batch in layouts.values():
        limit = len(batch) if batch[0].shards else max(1, STACK_ELEMENTS // max(1, batch[0].parameter.numel()))
        for first in range(0, len(batch), limit):
            yield batch[first : first + limit]
