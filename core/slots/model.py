"""Slot `model`: builds or loads a language model that transformers can save, load and generate with."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.shapes import ModelShape
from stackloom.core.slot import Slot


class ModelConfig(ComponentConfig):
    """Base of a model plugin's options."""

    @abstractmethod
    def shape(self) -> ModelShape:
        """Return the model's shape without reading any weights.

        Raises:
            ConfigError: the checkpoint does not exist or is no causal language model.
        """


class Model(Protocol):
    """The component: constructed as `Component(config)`, loads on request."""

    def load(self, *, device: str, dtype: str) -> Any:
        """Return a `transformers.PreTrainedModel` on `device` in `dtype` (a torch dtype name), in eval mode.

        Raises:
            ArtifactError: weights are missing or damaged.
        """
        ...

    def tokenizer(self) -> Any:
        """Return the `transformers.PreTrainedTokenizerBase` that belongs to the model.

        Raises:
            ArtifactError: the folder has none.
        """
        ...


SLOT = Slot(
    name="model",
    version=1,
    sits_in=("model",),
    protocol=Model,
    config=ModelConfig,
    summary="builds or loads a transformers model",
    features={"attention": "takes an attention plugin for its token mixers", "pretrained": "loads trained weights"},
)
