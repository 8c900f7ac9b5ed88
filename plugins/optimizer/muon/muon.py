"""Muon for matrices and AdamW for the rest, both torch's own, behind one `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from stackloom.core.errors import ArtifactError, ConfigError, FitError
from stackloom.plugins.optimizer.muon.config import NO_NESTEROV_IN_BFLOAT16, MuonConfig


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz, for 2-D weights; AdamW for embeddings, head, vectors and 3-D weights.

    `param_groups` holds each group once, with a "rule" beside torch's own keys; the two wrapped optimizers share groups
    and state with it, so that a schedule or a loaded state reaches both.

    Args:
        config: the plugin's options.
        named_parameters: (name, Parameter) pairs as `Module.named_parameters` yields; frozen ones are left alone.

    Raises:
        ConfigError: no parameter is trainable.
        FitError: bfloat16 matrices with nesterov off, which torch computes wrongly.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> Muon(MuonConfig(lr=1e-2), model.named_parameters()).routes()
        [('weight', 'muon, decay 0.1'), ('bias', 'adamw, no decay')]
    """

    def __init__(self, config: MuonConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.config = config
        named = list(named_parameters)
        self._routes = [(name, self._rule(name, parameter)) for name, parameter in named]
        by_rule: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for (name, parameter), (_, rule) in zip(named, self._routes, strict=True):
            if parameter.requires_grad:
                by_rule.setdefault(rule, []).append((name, parameter))
        if not by_rule:
            raise ConfigError(
                "no parameter is trainable", where="optimizer.muon", fix="unfreeze some, or give the stage an adapter"
            )
        groups = [{"params": group, "rule": rule} for rule, group in sorted(by_rule.items())]
        matrices = [group for group in groups if group["rule"].startswith("muon")]
        others = [
            group | {"weight_decay": 0.0 if "no decay" in group["rule"] else config.adamw_weight_decay}
            for group in groups
            if group["rule"].startswith("adamw")
        ]
        if not config.nesterov and any(
            parameter.dtype == torch.bfloat16 for group in matrices for _, parameter in group["params"]
        ):
            raise FitError(NO_NESTEROV_IN_BFLOAT16, where="optimizer.muon")
        self._muon = (
            torch.optim.Muon(
                matrices,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                ns_coefficients=config.ns_coefficients,
                ns_steps=config.ns_steps,
                eps=config.ns_eps,
                adjust_lr_fn=config.adjust_lr_fn,
            )
            if matrices
            else None
        )
        self._adamw = (
            torch.optim.AdamW(
                others,
                lr=config.lr if config.adamw_lr is None else config.adamw_lr,
                betas=(config.adamw_beta1, config.adamw_beta2),
                eps=config.adamw_eps,
            )
            if others
            else None
        )
        super().__init__([group for inner in self._inner() for group in inner.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for inner in self._inner():
            inner.step()

    def routes(self) -> list[tuple[str, str]]:
        """Return (parameter name, rule that updates it) for every parameter, in the model's order."""
        return list(self._routes)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`.

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
                where="optimizer.muon",
                fix="resume with the model, adapter and options that the checkpoint was written with",
            )
        super().load_state_dict(state_dict)
        self._share()

    def _inner(self) -> list[torch.optim.Optimizer]:
        return [inner for inner in (self._muon, self._adamw) if inner is not None]

    def _share(self) -> None:
        """Point the wrapped optimizers at this one's groups and state, the same objects."""
        for inner, rule in ((self._muon, "muon"), (self._adamw, "adamw")):
            if inner is not None:
                inner.param_groups = [group for group in self.param_groups if group["rule"].startswith(rule)]
                inner.state = self.state

    def _rule(self, name: str, parameter: nn.Parameter) -> str:
        if not parameter.requires_grad:
            return "frozen"
        if parameter.ndim == 2 and not any(fnmatchcase(name, pattern) for pattern in self.config.adamw_names):
            return f"muon, decay {self.config.weight_decay:g}"
        return f"adamw, decay {self.config.adamw_weight_decay:g}" if parameter.ndim >= 2 else "adamw, no decay"
