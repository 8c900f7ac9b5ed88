"""Options of `model.gated-delta-lm`."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.fit import Fit, FitContext
from stackloom.core.ref import Ref, RefTo
from stackloom.core.shapes import ModelShape
from stackloom.core.slots.model import ModelConfig
from stackloom.plugins.attention.delta_config import DeltaConfig

BYTES = 258  # single bytes, an end of text and a padding token


class GatedDeltaLMConfig(ModelConfig):
    """A language model from random weights, of gated-delta layers with full attention in between.

    Example:
        >>> GatedDeltaLMConfig(attention={"use": "attention.kda"}, layers=8).full_layers()
        (3, 7)
    """

    attention: Annotated[Ref | ComponentConfig, RefTo("attention")] = option(
        description="one of the gated-delta mixers: attention.gdn, attention.kda or attention.fg2-gdn"
    )
    layers: int = option(8, "decoder layers", unit="layers", ge=1)
    hidden: int = option(256, "width of the residual stream", ge=2)
    heads: int = option(4, "heads of a layer; hidden is a multiple of twice their number", ge=1)
    intermediate: int = option(768, "width of the MLP", ge=1)
    full_every: int = option(
        4, "every so many layers the last has full attention with rotary positions; 0 for none", source="inferred", ge=0
    )
    tokenizer: str | None = option(
        None, "folder that tokenizer.save_pretrained wrote; null takes single bytes", min_length=1
    )
    vocab: int = option(BYTES, "size of the embedding, at least the tokenizer's", ge=2)
    max_positions: int = option(8192, "longest sequence of the full layers", unit="tokens", ge=2)
    tied: bool = option(True, "share the embedding with the head")
    seed: int = option(0, "of the weights", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _sizes_fit(self) -> GatedDeltaLMConfig:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden {self.hidden} must be a multiple of twice the {self.heads} heads")
        if self.full_every == 1:
            raise ValueError("full_every: 1 leaves no gated-delta layer")
        return self

    def full_layers(self) -> tuple[int, ...]:
        """Return the numbers of the layers with full attention."""
        return full_layers(self.layers, self.full_every)

    def shape(self) -> ModelShape:
        """Return the sizes; a plan needs no weights."""
        return ModelShape(
            name="gated-delta-lm",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.hidden // self.heads,
            intermediate=self.intermediate,
            vocab=self.vocab,
            tied=self.tied,
            max_positions=self.max_positions,
        )

    def fit(self, ctx: FitContext) -> Fit:
        """The mixer must be of the gated-delta family: a saved model names its traits."""
        if isinstance(self.attention, ComponentConfig) and not isinstance(self.attention, DeltaConfig):
            return Fit.no(f"takes gated-delta mixers, got {self.attention.plugin_id}; give attention.kda or its kin")
        return Fit.yes()

    def cost(self, work: Work) -> Cost:
        """The weights, without the gated-delta mixers: they count themselves, as if they were in every layer."""
        parameters = self.shape().parameters
        if isinstance(self.attention, ComponentConfig):
            full = len(self.full_layers())
            own = sum(rows * columns for name, rows, columns in self.shape().linears() if name.startswith("self_attn."))
            theirs = self.attention.cost(work).parameters // work.model.layers
            parameters -= (self.layers - full) * own + full * theirs
        return Cost(parameters=parameters, weight_bytes=parameters * work.element_bytes)


def full_layers(layers: int, every: int) -> tuple[int, ...]:
    """Return the last layer of every group of `every`.

    Example:
        >>> full_layers(6, 3), full_layers(6, 0)
        ((2, 5), ())
    """
    return tuple(range(every - 1, layers, every)) if every else ()
