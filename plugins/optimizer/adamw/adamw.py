"""AdamW: torch's own, with parameters routed by name and shape."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.plugins.optimizer.adamw.config import AdamWConfig

SWITCHES: dict[str, dict[str, bool | None]] = {
    "auto": {"foreach": None, "fused": None},
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` over named parameters, in a group that decays and one that does not.

    Args:
        config: the plugin's options.
        named_parameters: (name, Parameter) pairs as `Module.named_parameters` yields; frozen ones are left alone.

    Raises:
        ConfigError: no parameter is trainable.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> AdamW(AdamWConfig(lr=1e-2), model.named_parameters()).routes()
        [('weight', 'adamw, decay 0.1'), ('bias', 'adamw, no decay')]
    """

    def __init__(self, config: AdamWConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.config = config
        named = list(named_parameters)
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        if not trained:
            raise ConfigError(
                "no parameter is trainable", where="optimizer.adamw", fix="unfreeze some, or give the stage an adapter"
            )
        self._routes = [(name, self._rule(name, parameter)) for name, parameter in named]
        decays = [(name, parameter) for name, parameter in trained if self._decays(name, parameter)]
        stays = [(name, parameter) for name, parameter in trained if not self._decays(name, parameter)]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((decays, config.weight_decay), (stays, 0.0))
            if group
        ]
        super().__init__(
            groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, **SWITCHES[config.implementation]
        )

    def routes(self) -> list[tuple[str, str]]:
        """Return (parameter name, rule that updates it) for every parameter, in the model's order."""
        return list(self._routes)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ArtifactError: it was saved for other parameters, or for the same in another order.
        """
        saved, ours = (
            [group.get("param_names") for group in groups] for groups in (state_dict["param_groups"], self.param_groups)
        )
        if saved != ours:
            raise ArtifactError(
                "the optimizer state belongs to other parameters",
                where="optimizer.adamw",
                fix="resume with the model, adapter and options that the checkpoint was written with",
            )
        super().load_state_dict(state_dict)

    def _rule(self, name: str, parameter: nn.Parameter) -> str:
        if not parameter.requires_grad:
            return "frozen"
        return f"adamw, decay {self.config.weight_decay:g}" if self._decays(name, parameter) else "adamw, no decay"

    def _decays(self, name: str, parameter: nn.Parameter) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.config.embedding_names):
            return self.config.decay_embeddings
        return parameter.ndim >= 2 or self.config.decay_vectors
