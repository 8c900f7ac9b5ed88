"""Loads a Hugging Face causal language model, from safetensors or the embedded GGUF; puts in an attention plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from stackloom.core.config import ComponentConfig
from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.shapes import ModelShape
from stackloom.plugins.model.hf import embedded
from stackloom.plugins.model.hf.config import EMBEDDED, Fresh, HFConfig, find_known
from stackloom.plugins.model.hf.retrofit import retrofit
from stackloom.plugins.model.hf.unpacked import unpacked

HOSTED = ".self_attn.mixer."  # part of every tensor name that a replaced attention saves


class HF:
    """A causal language model of the hub or of a folder.

    Args:
        config: the plugin's options, `attention` resolved to a config.

    Raises:
        ConfigError: `attention` is still a reference.

    Example:
        >>> model = HF(HFConfig(checkpoint="./my-llama")).load(device="cpu", dtype="float32")
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape[:2]
        torch.Size([1, 3])
    """

    def __init__(self, config: HFConfig) -> None:
        if config.attention is not None and not isinstance(config.attention, ComponentConfig):
            raise ConfigError(
                f"{config.attention.use} is not resolved yet",
                where="attention",
                fix="plan the stack, or give the plugin's config object",
            )
        self.config = config

    def load(self, *, device: str, dtype: str) -> PreTrainedModel:
        """Return the model in eval mode.

        Args:
            device: a torch device.
            dtype: a torch dtype name; weights are cast to it.

        Raises:
            ConfigError: no such folder, device or dtype.
            FitError: an attention plugin that the model cannot take.
            ArtifactError: weights or config are missing, damaged, of another shape than planned, need the checkpoint's
                own code, or lack the attention plugin that they were saved with.
        """
        kind = _dtype(dtype)
        folder, attention = self.config.folder(), self.config.attention
        shape = self.config.shape() if folder or find_known(self.config.checkpoint) else None
        fresh = self.config.fresh
        hosted = fresh is None and folder is not None and any(HOSTED in name for name in _tensor_names(folder))
        if hosted and attention is None:
            raise ArtifactError(
                "it was saved with an attention plugin", where=self._where, fix="give the same `attention` as then"
            )
        model = self._fresh(kind) if hosted or fresh else self._pretrained(kind)
        found = ModelShape.from_hf_config(shape.name if shape else self.config.checkpoint, model.config.to_dict())
        if shape is not None and (differs := _difference(shape, found)):
            raise ArtifactError(
                f"the checkpoint is not the planned one: {differs}",
                where=self._where,
                fix="plan with the folder itself, or pin the revision",
            )
        if attention is not None:
            assert isinstance(attention, ComponentConfig)
            retrofit(model, attention, self.config.layers(found), found, self.config.attention_seed)
        if hosted:
            assert folder is not None
            _fill(model, folder)
        try:
            return model.to(device).eval()
        except RuntimeError as cause:
            raise ConfigError(f"cannot move the model to {device!r}: {cause}", where="device") from cause

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the checkpoint's tokenizer.

        Raises:
            ConfigError: no such folder.
            ArtifactError: there is none, or it is damaged.
        """
        source, whence = self._source, self._whence
        try:
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **whence)
        except Exception as cause:  # transformers and tokenizers raise whatever their parsers raise
            raise ArtifactError(
                f"cannot load its tokenizer: {_line(cause)}",
                where=self._where,
                fix=embedded.FIX if self._is_embedded else "save one beside the model with tokenizer.save_pretrained",
            ) from cause

    @property
    def _is_embedded(self) -> bool:
        """Whether this is the default checkpoint, which is never downloaded: no folder of that name, no revision."""
        config = self.config
        return config.checkpoint.lower() == EMBEDDED and not config.folder() and config.revision is None

    @property
    def _whence(self) -> dict[str, Any]:
        """Where transformers looks besides `_source`: nowhere, the hub's local copies, or the hub.

        Raises:
            ArtifactError: the embedded checkpoint is neither installed nor among the hub's local copies.
        """
        if not self._is_embedded:
            return {"revision": self._revision}
        if embedded.embedded_file():
            return {}
        if not isinstance(try_to_load_from_cache(self._source, "config.json"), str):
            raise ArtifactError("its weights are not installed", where=self._where, fix=embedded.FIX)
        return {"revision": self._revision, "local_files_only": True}

    @property
    def _source(self) -> str:
        if self._is_embedded and (file := embedded.embedded_file()):
            return str(unpacked(file))
        folder, known = self.config.folder(), find_known(self.config.checkpoint)
        return str(folder.absolute()) if folder else known.hub if known else self.config.checkpoint

    @property
    def _revision(self) -> str:
        return self.config.revision or "main"

    @property
    def _where(self) -> str:
        return self.config.checkpoint

    def _pretrained(self, dtype: torch.dtype) -> PreTrainedModel:
        """Load config and weights; every tensor must be there and fit."""
        source, whence = self._source, self._whence
        try:
            with _no_bars():
                model, report = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=dtype,
                    use_safetensors=True,
                    weights_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **whence,
                )
        except Exception as cause:  # as for the tokenizer
            raise ArtifactError(
                f"cannot load the model: {_line(cause)}",
                where=self._where,
                fix=embedded.FIX
                if self._is_embedded
                else "check that the folder holds config.json and *.safetensors, or that the hub can be reached",
            ) from cause
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(str(name) for name in report.get(kind) or ()):
                raise ArtifactError(
                    f"{len(names)} {kind.replace('_', ' ')}, the first: {names[0]}",
                    where=self._where,
                    fix="the weights are incomplete or of another model; fetch or save them anew",
                )
        return model

    def _fresh(self, dtype: torch.dtype) -> PreTrainedModel:
        """Build the checkpoint's architecture with random weights, in the sizes of `fresh` if there are any."""
        fresh = self.config.fresh
        try:
            config = AutoConfig.from_pretrained(self._source, trust_remote_code=False, **self._whence)
            if fresh is not None:
                config.update(_sizes(fresh))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0 if fresh is None else fresh.seed)
                return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        except Exception as cause:  # as for the tokenizer
            raise ArtifactError(f"cannot build the model: {_line(cause)}", where=self._where) from cause


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing over the run's own display."""
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _sizes(fresh: Fresh) -> dict[str, int]:
    """Return the sizes by the names of a Llama-style config.json."""
    return {
        "num_hidden_layers": fresh.layers,
        "hidden_size": fresh.hidden,
        "num_attention_heads": fresh.heads,
        "num_key_value_heads": fresh.kv_heads,
        "head_dim": fresh.hidden // fresh.heads,
        "intermediate_size": fresh.intermediate,
    }


def _tensor_names(folder: Path) -> dict[str, Path]:
    """Return each tensor's file from the headers of the folder's safetensors files.

    Raises:
        ArtifactError: a file is damaged, or two hold a tensor of the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as cause:
            raise ArtifactError(
                f"damaged weights: {cause}", where=str(path), fix="fetch or save the file anew"
            ) from cause
        if twice := sorted(found.keys() & set(names)):
            raise ArtifactError(f"tensor {twice[0]} is also in {found[twice[0]].name}", where=str(path))
        found |= dict.fromkeys(names, path)
    return found


def _fill(model: PreTrainedModel, folder: Path) -> None:
    """Copy the folder's tensors into a model with replaced attention.

    Raises:
        ArtifactError: a tensor is missing, unknown or of another shape.
    """
    state: dict[str, Any] = {}
    for path in sorted(set(_tensor_names(folder).values())):
        with safe_open(path, framework="pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as cause:
        raise ArtifactError(
            f"the weights do not fit the attention plugin: {_line(cause)}", where=str(folder)
        ) from cause
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if wrong := sorted((set(result.missing_keys) - tied) | set(result.unexpected_keys)):
        raise ArtifactError(
            f"the weights do not fit the attention plugin, for instance {wrong[0]}",
            where=str(folder),
            fix="give the same `attention` and `attention_layers` as when it was saved",
        )


def _difference(planned: ModelShape, found: ModelShape) -> str:
    for field in type(planned).model_fields:
        if getattr(planned, field) != getattr(found, field):
            return f"{field} is {getattr(found, field)}, planned {getattr(planned, field)}"
    return ""


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(
            f"{name!r} is no floating-point dtype of torch", where="dtype", fix="write float32 or bfloat16"
        )
    return dtype


def _line(cause: Exception) -> str:
    """Shorten an error of transformers, which may span a page, to its first line."""
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else ''}"[:300]
