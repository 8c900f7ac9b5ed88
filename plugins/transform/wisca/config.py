"""Options of `transform.wisca`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from stackloom.core.config import option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.slots.transform import Invariant, TransformConfig, rounding_bound
from stackloom.core.touch import Touch

NARROW = ("bfloat16", "float16")
ONLY_TRAIN = ("at_init", "every_n_steps", "until_step", "state", "state_degrees", "control")
DEGREES = {
    "exp_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "momentum_buffer": 1,
    "velocity": 1,
    "gradient_average": 1,
    "previous_gradient": 1,
    "acceleration": 1,
}


class WiscaConfig(TransformConfig):
    """Balance query with key, value with output, and on request up with down and the two matrices of a LoRA.

    Example:
        >>> WiscaConfig(every_n_steps=None).due(0), WiscaConfig().due(250), WiscaConfig().due(251)
        (True, True, False)
    """

    qk: Literal["off", "tensor", "head", "channel"] = option(
        "tensor",
        "factors of query against key: one per layer, per key-value head, or per channel (pairs that rotate together "
        "share one)",
        source="paper",
    )
    vo: Literal["off", "tensor", "head", "channel"] = option(
        "tensor", "factors of value against output: one per layer, per key-value head, or per channel", source="paper"
    )
    up_down: Literal["off", "tensor", "channel"] = option(
        "off", "factors of up against down in gated MLPs: one per layer, or per unit", source="inferred"
    )
    lora: Literal["off", "tensor", "rank"] = option(
        "off", "factors of A against B of every wrapped layer: one, or one per rank", source="inferred"
    )
    norm: Literal[1, 2] = option(
        1, "which norm is balanced: the sum of magnitudes, or the root of squares", source="paper"
    )
    norm_with_bias: bool = option(False, "whether biases count in the norms", source="inferred")
    at_init: bool = option(True, "apply it before the first step", source="paper")
    every_n_steps: int | None = option(
        250,
        "optimizer steps between two applications; null applies it at init alone",
        unit="steps",
        source="paper",
        ge=1,
    )
    until_step: int | None = option(None, "last step at which it is applied; null never ends", source="inferred", ge=0)
    min_change: float = option(
        1e-3, "a pair all of whose factors are within this of 1 (in log space) is left alone", source="inferred", ge=0
    )
    max_factor: float = option(1e3, "factors beyond it, or below its inverse, are cut", source="inferred", gt=1)
    pow2: Literal["auto", "always", "never"] = option(
        "auto",
        "round factors to powers of two, which change no bit of the outputs; auto does where weights are narrower than "
        "float32. Norms are then balanced within a factor of two",
        source="inferred",
    )
    state: Literal["rescale", "keep", "reset"] = option(
        "rescale",
        "what optimizers remember of rewritten weights: follows them, stays stale, or is zeroed with its step counter",
        source="inferred",
    )
    state_degrees: dict[str, int] = option(
        DEGREES,
        "name of an optimizer's buffer to its degree in the gradient, for state: rescale",
        source="inferred",
    )
    control: Literal["off", "scale-invariant", "sgd"] = option(
        "off",
        "the sceptic's arm: weights stay, and each member gets the learning rate that the rewrite at init amounts to; "
        "scale-invariant for AdamW, Muon and sign updates (lr / s), sgd (lr / s^2)",
        source="inferred",
    )
    allow_frozen: bool = option(False, "rewrite frozen weights, too", source="inferred")
    strict: bool = option(False, "raise where a norm is zero or not finite, instead of leaving that pair alone")

    @model_validator(mode="after")
    def _adds_up(self) -> WiscaConfig:
        if {self.qk, self.vo, self.up_down, self.lora} == {"off"}:
            raise ValueError("nothing to balance: qk, vo, up_down and lora are all off")
        if self.control == "off":
            if not self.at_init and self.every_n_steps is None:
                raise ValueError("never applied: set at_init or every_n_steps")
            return self
        if not self.at_init or self.every_n_steps is not None:
            raise ValueError("control stands for a rewrite at init: set at_init: true and every_n_steps: null")
        if not {self.qk, self.vo, self.up_down, self.lora} <= {"off", "tensor"}:
            raise ValueError("control gives whole tensors a learning rate: set granularities to tensor or off")
        return self

    def due(self, step: int) -> bool:
        """Whether it is applied before a step, from 0."""
        if step == 0:
            return self.at_init
        ended = self.until_step is not None and step > self.until_step
        return self.every_n_steps is not None and not ended and step % self.every_n_steps == 0

    def exact(self, dtype: str) -> bool:
        """Whether outputs keep every bit in this dtype."""
        return self.control != "off" or self.pow2 == "always" or (self.pow2 == "auto" and dtype in NARROW)

    def invariant(self, dtype: str, layers: int) -> Invariant:
        """The logits: bit for bit with powers of two or without rewrites, else up to the rounding of the weights."""
        if self.exact(dtype):
            return Invariant("the logits, bit for bit", 0.0)
        return Invariant("the logits, up to rounding", rounding_bound(dtype, layers))

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Query and key need a free scale, frozen weights permission, and options their stage."""
        answers = [Fit.yes(f"keeps {self.invariant(ctx.dtype, ctx.model.layers).statement}")]
        if self.qk != "off" and ctx.model.qk_norm:
            answers.append(
                Fit.no(
                    "queries and keys are normalised after their projections, which leaves no free scale: set qk: off"
                )
            )
        if self.up_down != "off" and (not ctx.model.gated_mlp or ctx.model.experts):
            answers.append(Fit.no("up_down needs dense gated MLPs (down(act(gate) * up)): set up_down: off"))
        adapted = any(plugin.startswith("adapter.") for plugin in ctx.neighbours)
        if ctx.stage == "train" and adapted and {self.qk, self.vo, self.up_down} != {"off"}:
            answers.append(
                Fit.no(
                    "the weights under an adapter are frozen, and only the adapter is saved: set qk, vo and up_down: "
                    "off and lora: tensor, or balance in a transform stage of its own before"
                )
            )
        if self.lora != "off" and not adapted:
            answers.append(Fit.no("lora needs a low-rank adapter in the same train stage: set lora: off"))
        unread = [name for name in ONLY_TRAIN if name in self.model_fields_set]
        if ctx.stage == "transform" and unread:
            answers.append(Fit.no(f"{', '.join(unread)} say nothing in a transform stage, which applies it once"))
        if ctx.stage == "train" and self.every_n_steps is not None and self.pow2 == "never" and ctx.dtype in NARROW:
            answers.append(Fit.warn(f"each application rounds every {ctx.dtype} weight once more: take pow2: auto"))
        return answers

    def cost(self, work: Work) -> Cost:
        """One matrix in float64 while it is scaled; FLOPs of two norms and one product, spread over the steps."""
        model = work.model
        paired = [rows * columns for name, rows, columns in model.linears() if self._pairs(name)]
        if self.lora != "off":
            per_layer, largest = work.trainable / model.layers, work.trainable / model.layers / 7
        else:
            per_layer, largest = float(sum(paired)), float(max(paired, default=0))
        times = 1.0
        if work.steps > 1:
            repeated = 0 if self.every_n_steps is None else (work.steps - 1) // self.every_n_steps
            times = (self.at_init + repeated) / work.steps
        return Cost(activation_bytes=8 * largest, flops=5.0 * per_layer * model.layers * times)

    def _pairs(self, name: str) -> bool:
        ends = {
            "q_proj": self.qk,
            "k_proj": self.qk,
            "v_proj": self.vo,
            "o_proj": self.vo,
            "up_proj": self.up_down,
            "down_proj": self.up_down,
        }
        return ends.get(name.rpartition(".")[2], "off") != "off"

    def touches(self, ctx: FitContext) -> list[Touch]:
        """Rewrites the projections of its pairs; an adapter's matrices lie under the adapter's own touch."""
        names = [name for name, _, _ in ctx.model.linears() if self._pairs(name)]
        nodes = tuple(f"model.layers.*.{name}" for name in names)
        return [Touch(nodes=nodes, mode="rewrite", needs="float")] if nodes and self.control == "off" else []
