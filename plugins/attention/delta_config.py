"""Options and sizes that the gated-delta mixers share, without torch. `delta_layer.py` is the layer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext

WIDEST = 256  # channels of a head that the op takes


class DeltaTraits(BaseModel):
    """What makes one gated-delta layer differ from another; plain data, so that a saved model can hold it.

    Attributes:
        decay: one log decay per head, or one per key channel.
        beta: one step size per head, or one per key channel.
        value_beta: whether values have a step size of their own, one per channel.
        beta_rank: rank of the step sizes' projections; None for full ones.
        beta_bias: whether they carry biases.
        beta_init: "random", or "kda" for equal rows within each head.
        value_scale: "sqrt" scales values by the root of their step size, "linear" by the step size itself.
        decay_rank, gate_rank: rank of those projections; None takes the value width of a head. `decay_rank` is for a
            decay per channel.
        output_gate: "sigmoid" of a low-rank projection, or "silu" of a full one.
        max_beta: 1, or 2 for eigenvalues down to -1.
        lower_bound: of the log decay in its safe form, or None.
        rate_range: of the uniform draw behind A_log.
        value_width: channels of a value per head, over those of a key.
        conv_size: taps of the short convolutions.
        norm_eps: of the output norm.
        implementation: of the op.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decay: Literal["head", "channel"]
    beta: Literal["head", "channel"] = "head"
    value_beta: bool = False
    beta_rank: int | None = None
    beta_bias: bool = False
    beta_init: Literal["random", "kda"] = "random"
    value_scale: Literal["sqrt", "linear"] = "sqrt"
    decay_rank: int | None = None
    gate_rank: int | None = None
    output_gate: Literal["sigmoid", "silu"] = "sigmoid"
    max_beta: Literal[1, 2] = 1
    lower_bound: float | None = None
    rate_range: tuple[float, float] = (1.0, 16.0)
    value_width: float = 1.0
    conv_size: int = 4
    norm_eps: float = 1e-5
    implementation: Literal["auto", "reference", "triton"] = "auto"

    def values(self, head_dim: int) -> int:
        """Value channels per head."""
        return round(head_dim * self.value_width)

    def parameters(self, hidden: int, heads: int, kv_heads: int, head_dim: int, bias: bool) -> int:
        """Parameters of one layer."""
        values = self.values(head_dim)
        keys_out, values_out = heads * head_dim, heads * values
        projected = keys_out + kv_heads * (head_dim + values)
        total = projected * (hidden + bias + self.conv_size) + values_out * hidden + values
        decays = heads if self.decay == "head" else keys_out
        total += heads + decays
        total += hidden * heads if self.decay == "head" else _low_rank(hidden, keys_out, self.decay_rank or values)
        if self.output_gate == "silu":
            total += hidden * values_out
        else:
            total += _low_rank(hidden, values_out, self.gate_rank or values) + values_out
        gates = [heads if self.beta == "head" else keys_out, *([values_out] if self.value_beta else [])]
        for width in gates:
            rank = self.beta_rank if self.beta == "channel" else None
            total += (_low_rank(hidden, width, rank) if rank else hidden * width) + self.beta_bias * width
        return total

    def state_elements(self, heads: int, head_dim: int) -> int:
        """Numbers of one sequence's recurrent state, in float32."""
        return heads * head_dim * self.values(head_dim)

    def tail_elements(self, heads: int, kv_heads: int, head_dim: int) -> int:
        """Numbers of one sequence's convolution tail, in the compute dtype."""
        return (self.conv_size - 1) * (heads * head_dim + kv_heads * (head_dim + self.values(head_dim)))


def _low_rank(inputs: int, outputs: int, rank: int) -> int:
    return rank * (inputs + outputs)


class DeltaConfig(ComponentConfig):
    """Base of the gated-delta mixers' options."""

    expand_v: float = option(1.0, "value width of a head over its key width", unit="x", source="official code", gt=0)
    conv_size: int = option(
        4, "taps of the causal convolutions on queries, keys and values", source="official code", ge=2, le=16
    )
    allow_neg_eigval: bool = option(
        False, "step sizes up to 2, so that a write can flip a stored value's sign", source="official code"
    )
    norm_eps: float = option(1e-5, "inside the output norm's root", source="official code", gt=0)
    implementation: Literal["auto", "reference", "triton"] = option("auto", "which kernels run the rule")

    def traits(self) -> DeltaTraits:
        """Return what the layer is built from."""
        raise NotImplementedError

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Heads must divide into groups, value widths be whole, and heads be narrow enough for the op."""
        model, found, traits = ctx.model, [], self.traits()
        if model.heads % model.kv_heads:
            found.append(Fit.no(f"needs heads to be a multiple of kv_heads, got {model.heads} and {model.kv_heads}"))
        if reason := width_problem(traits, model.head_dim):
            found.append(Fit.no(reason))
        return found or [Fit.yes()]

    def cost(self, work: Work) -> Cost:
        """All layers: weights, and the state of each sequence, which does not grow."""
        model, traits = work.model, self.traits()
        parameters = model.layers * traits.parameters(
            model.hidden, model.heads, model.kv_heads, model.head_dim, model.attention_bias
        )
        state = traits.state_elements(model.heads, model.head_dim) * max(4.0, work.element_bytes)
        tail = traits.tail_elements(model.heads, model.kv_heads, model.head_dim) * work.element_bytes
        return Cost(
            parameters=parameters,
            weight_bytes=parameters * work.element_bytes,
            cache_bytes=model.layers * work.sequences * (state + tail),
        )


def width_problem(traits: DeltaTraits, head_dim: int) -> str:
    """Return why heads of that width do not fit, or an empty string."""
    values = traits.values(head_dim)
    if abs(values - head_dim * traits.value_width) > 1e-9 or values < 1:
        return f"expand_v {traits.value_width:g} of head_dim {head_dim} is no whole number of channels"
    if max(values, head_dim) > WIDEST:
        return f"a head holds at most {WIDEST} channels, got {head_dim} for keys and {values} for values"
    if traits.beta == "channel" and not traits.value_beta and values != head_dim:
        return f"one vector of step sizes for keys and values needs equal widths, got {head_dim} and {values}"
    return ""
