"""Builds a gated-delta language model from random weights."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.plugins.attention.delta_config import DeltaConfig
from stackloom.plugins.model.gated_delta_lm.config import GatedDeltaLMConfig
from stackloom.plugins.model.gated_delta_lm.modeling import WHERE, GatedDeltaForCausalLM, GatedDeltaLMHFConfig


class GatedDeltaLM:
    """A hybrid of gated-delta layers and full attention.

    Args:
        config: the plugin's options, `attention` resolved to a config.

    Raises:
        ConfigError: `attention` is no gated-delta mixer, or still a reference.

    Example:
        >>> model = GatedDeltaLM(GatedDeltaLMConfig(attention=KDAConfig())).load(device="cpu", dtype="float32")
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 258])
    """

    def __init__(self, config: GatedDeltaLMConfig) -> None:
        if not isinstance(config.attention, DeltaConfig):
            raise ConfigError(
                "takes a resolved gated-delta mixer",
                where="attention",
                fix="give attention.gdn, attention.kda or attention.fg2-gdn, and plan the stack",
            )
        self.config, self.attention = config, config.attention

    def load(self, *, device: str, dtype: str) -> PreTrainedModel:
        """Return the model in eval mode, its weights drawn from `seed`.

        Raises:
            ConfigError: no such device or dtype.
        """
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ConfigError(f"{dtype!r} is no floating-point dtype of torch", where="dtype", fix="write float32")
        tokenizer, config = self.tokenizer(), self.config
        sizes = GatedDeltaLMHFConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.hidden // config.heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tied,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            mixer=self.attention.traits().model_dump(mode="json"),
            full_every=config.full_every,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = GatedDeltaForCausalLM(sizes)
        try:
            return model.to(device=device, dtype=kind).eval()
        except RuntimeError as cause:
            raise ConfigError(f"cannot move the model to {device!r}: {cause}", where="device") from cause

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the folder's tokenizer, or one over single bytes.

        Raises:
            ArtifactError: the folder has none.
            ConfigError: it has more tokens than `vocab`.
        """
        if self.config.tokenizer is None:
            tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    self.config.tokenizer, trust_remote_code=False, local_files_only=True
                )
            except (OSError, ValueError) as cause:
                raise ArtifactError(
                    "holds no tokenizer", where=self.config.tokenizer, fix="give a folder of save_pretrained"
                ) from cause
        if len(tokenizer) > self.config.vocab:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens, vocab is {self.config.vocab}",
                where=f"{WHERE}.vocab",
                fix=f"set vocab to {len(tokenizer)} or more",
            )
        return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes, with an end of text and a padding token.

    Example:
        >>> byte_tokenizer().encode("hi")
        [71, 72]
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|end|>", "<|pad|>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
