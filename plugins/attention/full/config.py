"""Options of `attention.full`."""

from __future__ import annotations

from stackloom.core.config import ComponentConfig
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext


class FullAttentionConfig(ComponentConfig):
    """Causal softmax attention over all earlier tokens. It has no options: the layer's shape says everything.

    Example:
        >>> FullAttentionConfig().plugin_id
        'attention.full'
    """

    def fit(self, ctx: FitContext) -> list[Fit]:
        """Heads must divide into groups, head widths be even, and sequences stay within the positions."""
        model, found = ctx.model, []
        if model.heads % model.kv_heads:
            found.append(Fit.no(f"needs heads to be a multiple of kv_heads, got {model.heads} and {model.kv_heads}"))
        if model.head_dim % 2:
            found.append(Fit.no(f"rotary positions need an even head_dim, got {model.head_dim}"))
        length = ctx.stage_options.get("sequence_length")
        if isinstance(length, int) and length > model.max_positions:
            found.append(Fit.no(f"sequence_length {length} exceeds the model's {model.max_positions} positions"))
        return found or [Fit.yes()]

    def cost(self, work: Work) -> Cost:
        """All layers: four projections, and the keys and values of one forward pass's tokens."""
        model = work.model
        parameters = model.layers * sum(
            rows * columns + (rows if model.attention_bias and not name.endswith("o_proj") else 0)
            for name, rows, columns in model.linears()
            if name.startswith("self_attn.")
        )
        return Cost(
            parameters=parameters,
            weight_bytes=parameters * work.element_bytes,
            cache_bytes=model.cache_bytes(work.tokens, work.element_bytes),
        )
