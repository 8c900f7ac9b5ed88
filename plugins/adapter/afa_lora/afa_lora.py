"""AFA-LoRA: W x + scaling * B phi(A x), phi annealed from an activation to the identity while A and B train."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stackloom.core.errors import ArtifactError, FitError
from stackloom.plugins.adapter import low_rank, peft_files
from stackloom.plugins.adapter.afa_lora.config import AfaLoRAConfig
from stackloom.plugins.adapter.afa_lora.layer import AfaLinear
from stackloom.plugins.adapter.low_rank_adapter import LowRankAdapter

HISTORY = "afa.json"  # beside PEFT's files, which stay those of a LoRA, bit by bit
UNFINISHED = "AFA_LORA"  # a peft_type that PEFT and its servers do not know, and so refuse


class AfaLoRA(LowRankAdapter):
    """Low-rank adaptation that starts with an activation between its matrices and ends as a plain LoRA.

    Example:
        >>> adapter = AfaLoRA(AfaLoRAConfig(rank=4, activation="silu"))
        >>> names = adapter.inject(model, seed=0)
        >>> for step in range(100):
        ...     adapter.on_step(step, 100)         # beta is a function of the optimizer's step
        ...     train(model)
        >>> adapter.merge(model)                   # beta is 0: plain layers again
    """

    plugin = "adapter.afa-lora"
    config: AfaLoRAConfig

    def __init__(self, config: AfaLoRAConfig) -> None:
        super().__init__(config)
        self._layers: list[AfaLinear] = []
        self._betas: dict[torch.device, Tensor] = {}
        self._loaded = False

    @property
    def beta(self) -> float | None:
        """What beta is; None before the first step of a schedule."""
        return float(self._layers[0].beta) if self._layers and self._layers[0].started else None

    def inject(self, model: PreTrainedModel, *, seed: int) -> list[str]:
        """Wrap the targets as LoRA does; A starts as LoRA's for the same seed, and B at zero.

        Raises:
            FitError: as LoRA.
        """
        self._betas, self._loaded = {}, False
        names = super().inject(model, seed=seed)
        self._layers = list(_layers(model, self.plugin).values())
        return names

    def on_step(self, step: int, steps: int) -> None:
        """Set beta for optimizer step `step` of `steps`, from 0: one value for all micro-batches and recomputations.

        Raises:
            FitError: the number of steps is unknown; or a loaded LoRA would get an activation, which changes what it
                computes.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or step < 0:
            raise FitError(
                f"the schedule needs the number of optimizer steps, got step {step!r} of {steps!r}",
                where=self.plugin,
                fix="call on_step(step, steps) with the training's length",
            )
        beta = self.config.schedule_of_beta.beta(step, steps)
        if self._loaded and beta > 0:
            raise FitError(
                f"a loaded adapter is linear; at beta {beta:g} it would compute something else at once",
                where=self.plugin,
                fix="go on training it with rho: 0, or with adapter.lora",
            )
        self._set(beta)

    def merge(self, model: PreTrainedModel) -> None:
        """Fold scaling * B A into the weights, as LoRA does.

        Raises:
            FitError: as LoRA; or beta is above 0, where no weight equals the branch, and B is not zero.
        """
        self._must_be_linear(model, "cannot be merged")
        super().merge(model)

    def merge_with_residual(self, model: PreTrainedModel, calibrate: Callable[[Any], object]) -> dict[str, float]:
        """Fold although beta may be above 0, and say what that leaves out.

        Args:
            model: injected; changed in place.
            calibrate: runs the model on some inputs.

        Returns:
            By path, the norm of what the fold leaves out over the norm of the layer's output, on those inputs.

        Raises:
            FitError: nothing is injected, a folded weight is not finite, or a layer saw no input.
        """
        found = self.residuals(model, calibrate)
        super().merge(model)
        return found

    @torch.no_grad()
    def residuals(self, model: PreTrainedModel, calibrate: Callable[[Any], object]) -> dict[str, float]:
        """Return by path what a merge now would leave out, relative to the layer's output; 0 at beta 0.

        Args:
            model: injected; unchanged.
            calibrate: runs the model on some inputs.

        Raises:
            FitError: nothing is injected, or a layer saw no input.
        """
        squares: dict[str, list[tuple[float, float]]] = {}

        def watch(path: str) -> Callable[..., None]:
            def hook(layer: AfaLinear, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                left_out = layer.residual(arguments[0]).double().square().sum()
                squares.setdefault(path, []).append((float(left_out), float(output.double().square().sum())))

            return hook

        layers = _layers(model, self.plugin)
        hooks = [layer.register_forward_hook(watch(path)) for path, layer in layers.items()]
        try:
            calibrate(model)
        finally:
            for hook in hooks:
                hook.remove()
        if unseen := [path for path in layers if path not in squares]:
            raise FitError(f"{unseen[0]} saw no input", where=self.plugin, fix="calibrate on inputs that reach it")
        return {
            path: (sum(part for part, _ in seen) / max(sum(whole for _, whole in seen), 1e-300)) ** 0.5
            for path, seen in squares.items()
        }

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write PEFT's files of the LoRA that is left, bit by bit those of `adapter.lora`, and how it was trained.

        Raises:
            FitError: as LoRA; or beta is above 0 and B is not zero.
        """
        self._must_be_linear(model, "is no LoRA that PEFT's files could hold")
        super().save(model, folder, base)
        (folder / HISTORY).write_text(json.dumps(self._history(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def save_exact(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write the adapter as it is at any beta, for a rollout or a colleague with this plugin; PEFT refuses the file.

        Args:
            model, folder, base: as `save`.

        Raises:
            FitError: nothing is injected, no step was taken, or a matrix is not finite.
        """
        tensors = self._finite_matrices(model)
        if self.beta is None:
            raise FitError("has no beta yet", where=self.plugin, fix="call on_step(step, steps) first")
        fields = self._peft_fields(model, base) | {"peft_type": UNFINISHED, "afa": self._history()}
        peft_files.write(folder, tensors, fields)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Read PEFT's files of a LoRA (beta becomes 0), or what `save_exact` wrote (beta becomes what it was).

        Raises:
            FitError: nothing is injected.
            ArtifactError: as LoRA; or another activation than the adapter's.
        """
        ours = dict(low_rank.matrices(model, self.plugin))
        fields = peft_files.read_config(
            folder, self._expected_fields(), kinds=("LORA", UNFINISHED), own=frozenset({"afa"})
        )
        beta = self._stored_beta(fields, folder)
        self._fill(ours, folder)
        self._loaded = True
        self._set(beta)

    def rollout_weights(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return the merged weight of every target by its name in the base model, for an engine without adapters.

        The injected model is unchanged.

        Raises:
            FitError: nothing is injected; or beta is above 0, where the engine would sample from another policy than
                the trained one, unless `rollout: off-policy` says that the trainer corrects for it.
        """
        if self.config.rollout == "refuse":
            self._must_be_linear(model, "is another policy than any merged weight")
        return {f"{path}.weight": layer.folded() for path, layer in _layers(model, self.plugin).items()}

    @contextmanager
    def disabled(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, the model is the base, bit by bit: a reference policy, for instance.

        Raises:
            FitError: nothing is injected.
        """
        layers = _layers(model, self.plugin).values()
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enabled = True

    def _wrapper(self, linear: nn.Linear) -> AfaLinear:
        device = linear.weight.device
        if device not in self._betas:
            self._betas[device] = torch.ones((), dtype=torch.float32, device=device)
        config = self.config
        return AfaLinear(
            linear,
            beta=self._betas[device],
            activation=config.activation,
            implementation=config.implementation,
            **self._sizes(linear),
        )

    @torch.no_grad()
    def _set(self, beta: float) -> None:
        """Write beta where the layers and a captured graph read it."""
        for layer in self._layers:
            layer.started, layer.linear = True, beta == 0
            if layer.beta.dtype != torch.float32:  # a model that was cast took the buffer along
                layer.beta = layer.beta.float()
        for tensor in {id(layer.beta): layer.beta for layer in self._layers}.values():
            tensor.fill_(beta)

    def _must_be_linear(self, model: nn.Module, what: str) -> None:
        for path, layer in _layers(model, self.plugin).items():
            if not layer.linear and layer.lora_B.weight.any():
                raise FitError(
                    f"{path} {what}: beta is {float(layer.beta):g}, and its branch is not linear",
                    where=self.plugin,
                    fix="train until beta is 0 (a smaller rho gets there sooner); save_exact keeps the branch as it "
                    "is, merge_with_residual folds anyway and says what that leaves out",
                )

    def _history(self) -> dict[str, Any]:
        config = self.config
        names = {
            "linear": ("rho", "hold"),
            "cosine": ("rho", "hold"),
            "warmup_cosine_patient": ("warmup", "patience"),
            "exponential": ("decay", "cutoff_step"),
        }[config.schedule]
        return {
            "activation": config.activation,
            "schedule": config.schedule,
            "final_beta": self._layers[0].beta.item() if self._layers else 0.0,
            **{name: getattr(config, name) for name in names},
        }

    def _stored_beta(self, fields: dict[str, Any], folder: Path) -> float:
        if fields["peft_type"] == "LORA":
            return 0.0
        history, where = fields.get("afa"), str(folder / peft_files.CONFIG)
        beta = history.get("final_beta") if isinstance(history, dict) else None
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
            raise ArtifactError(f"afa.final_beta is {beta!r}, not a number from 0 to 1", where=where)
        if (activation := history.get("activation")) != self.config.activation:
            raise ArtifactError(
                f"the activation is {activation!r}, the injected adapter's is {self.config.activation!r}",
                where=where,
                fix="give the adapter the options that the file was made with",
            )
        return float(beta)


def _layers(model: nn.Module, where: str) -> dict[str, AfaLinear]:
    """Return the wrapped layers by path.

    Raises:
        FitError: there are none, or another adapter wrapped them.
    """
    found = low_rank.must_be_wrapped(model, where)
    layers = {path: layer for path, layer in found.items() if isinstance(layer, AfaLinear)}
    if len(layers) != len(found):
        raise FitError("the model holds another adapter", where=where, fix="ask the one that injected it")
    return layers
