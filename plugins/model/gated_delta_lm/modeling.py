"""The model as transformers knows it: a Llama whose chosen layers mix tokens by a gated delta rule.

Importing this module makes `AutoConfig` and `AutoModelForCausalLM` read folders that such a model was saved in; no code
of a folder is ever run.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stackloom.core.slots.attention import LayerShape
from stackloom.plugins.attention.delta_config import DeltaTraits
from stackloom.plugins.attention.delta_layer import DeltaLayer
from stackloom.plugins.model.gated_delta_lm.config import full_layers
from stackloom.plugins.model.hosted_attention import HostedAttention, guard

WHERE = "model.gated-delta-lm"


class GatedDeltaLMHFConfig(LlamaConfig):
    """A Llama's config and the mixer of its gated-delta layers.

    Attributes:
        mixer: fields of `DeltaTraits`.
        full_every: the last of every so many layers keeps Llama's attention; 0 for none.
    """

    model_type = "gated-delta-lm"

    mixer: dict[str, Any] | None = None
    full_every: int = 4


class GatedDeltaForCausalLM(LlamaForCausalLM):
    """Llama's embedding, MLPs, norms and head around gated-delta layers; save, load, `generate` and training as ever.

    It takes no padding: group sequences by length, or pack them.

    Args:
        config: sizes and the mixer's traits.

    Raises:
        FitError: a head's width does not fit the mixer.
    """

    config_class = GatedDeltaLMHFConfig

    def __init__(self, config: GatedDeltaLMHFConfig) -> None:
        super().__init__(config)
        traits = DeltaTraits.model_validate(config.mixer or {"decay": "channel"})
        kept = full_layers(config.num_hidden_layers, config.full_every)
        for index, layer in enumerate(self.model.layers):
            if index in kept:
                continue
            shape = LayerShape(
                hidden=config.hidden_size,
                heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                max_positions=config.max_position_embeddings,
                index=index,
            )
            layer.self_attn = HostedAttention(DeltaLayer(traits, shape, where=WHERE), index)
        self.model.register_forward_pre_hook(guard, with_kwargs=True)


AutoConfig.register(GatedDeltaLMHFConfig.model_type, GatedDeltaLMHFConfig, exist_ok=True)
AutoModelForCausalLM.register(GatedDeltaLMHFConfig, GatedDeltaForCausalLM, exist_ok=True)
