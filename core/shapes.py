"""The shape of a causal language model, from which parameters, FLOPs and bytes follow without its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.errors import ConfigError


class ModelShape(BaseModel):
    """Sizes of a decoder-only transformer with Llama-style names.

    Attributes:
        name: what to call it in a plan.
        layers, hidden, heads, kv_heads, head_dim, intermediate, vocab: the usual sizes.
        tied: whether the head shares the embedding's weight.
        gated_mlp: three MLP matrices (gate, up, down) instead of two.
        attention_bias, mlp_bias: whether those linears carry biases.
        qk_norm: whether queries and keys have an RMSNorm of size head_dim each.
        experts, experts_per_token: 0 for a dense model; an expert has `intermediate` units.
        max_positions: longest sequence that the model was made for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    vocab: int = Field(gt=0)
    tied: bool = True
    gated_mlp: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: int = Field(0, ge=0)
    experts_per_token: int = Field(0, ge=0)
    max_positions: int = Field(2048, gt=0)

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """Yield (name within a layer, out features, in features) of one layer's attention and one MLP expert."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "self_attn.q_proj", query, self.hidden
        yield "self_attn.k_proj", key_value, self.hidden
        yield "self_attn.v_proj", key_value, self.hidden
        yield "self_attn.o_proj", self.hidden, query
        if self.gated_mlp:
            yield "mlp.gate_proj", self.intermediate, self.hidden
        yield "mlp.up_proj", self.intermediate, self.hidden
        yield "mlp.down_proj", self.hidden, self.intermediate

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield (name, elements) of every parameter, as transformers names those of a Llama."""
        yield "model.embed_tokens.weight", self.vocab * self.hidden
        for layer in range(self.layers):
            home = f"model.layers.{layer}"
            for name, rows, columns in self.linears():
                mlp = name.startswith("mlp.")
                many = self.experts if mlp and self.experts else 1
                path = f"{home}.mlp.experts.{name[4:]}" if many > 1 else f"{home}.{name}"
                yield f"{path}.weight", rows * columns * many
                if self.mlp_bias if mlp else self.attention_bias and not name.endswith("o_proj"):
                    yield f"{path}.bias", rows * many
            if self.experts:
                yield f"{home}.mlp.gate.weight", self.experts * self.hidden
            if self.qk_norm:
                yield from ((f"{home}.self_attn.{which}_norm.weight", self.head_dim) for which in "qk")
            yield from ((f"{home}.{which}_layernorm.weight", self.hidden) for which in ("input", "post_attention"))
        yield "model.norm.weight", self.hidden
        if not self.tied:
            yield "lm_head.weight", self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Number of parameters, embeddings and norms included."""
        return self._parameters(self.experts or 1) + (self.experts * self.hidden * self.layers)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all of a dense model, the routed experts of a mixture."""
        return self._parameters(self.experts_per_token or 1) + (self.experts * self.hidden * self.layers)

    def _parameters(self, experts: int) -> int:
        layer = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        for name, rows, columns in self.linears():
            mlp = name.startswith("mlp.")
            bias = rows if (self.mlp_bias if mlp else self.attention_bias and not name.endswith("o_proj")) else 0
            layer += (rows * columns + bias) * (experts if mlp else 1)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * layer + self.hidden

    def forward_flops(self, tokens: int, context: int) -> float:
        """FLOPs of a forward pass over `tokens` positions that each attend to `context` positions on average.

        Two per multiply-add; matrix products only (norms, softmax and rotations are below one per cent).
        """
        matrices = self.active_parameters - (0 if self.tied else self.vocab * self.hidden)
        attention = 2 * self.layers * self.heads * self.head_dim * context
        return 2.0 * tokens * (matrices + attention)

    def cache_bytes(self, tokens: int, element_bytes: float) -> float:
        """Bytes of keys and values for `tokens` cached positions under full attention."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * tokens * element_bytes

    @classmethod
    def from_hf_config(cls, name: str, config: Mapping[str, object]) -> ModelShape:
        """Read the shape from the content of a Hugging Face `config.json`.

        Raises:
            ConfigError: the file describes no decoder-only language model; the message names the missing keys.
        """
        text = config.get("text_config")
        source: Mapping[str, object] = text if isinstance(text, Mapping) else config
        needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        if missing := [key for key in needed if not isinstance(source.get(key), int)]:
            raise ConfigError(
                f"config.json has no {', '.join(missing)}: not a decoder-only language model",
                where=name,
                fix="give a folder written by save_pretrained of a causal language model",
            )

        def size(key: str, default: int) -> int:
            value = source.get(key)
            return value if isinstance(value, int) and not isinstance(value, bool) else default

        hidden, heads = size("hidden_size", 0), size("num_attention_heads", 0)
        family = str(source.get("model_type", ""))
        return cls(
            name=name,
            layers=size("num_hidden_layers", 0),
            hidden=hidden,
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", hidden // max(heads, 1)),
            intermediate=size("moe_intermediate_size", size("intermediate_size", 4 * hidden)),
            vocab=size("vocab_size", 0),
            tied=bool(source.get("tie_word_embeddings", True)),
            gated_mlp=family not in {"gpt2", "gpt_neox", "opt", "phi"},
            attention_bias=bool(source.get("attention_bias", family == "qwen2")),
            mlp_bias=bool(source.get("mlp_bias", False)),
            qk_norm=family.startswith("qwen3"),
            experts=size("num_local_experts", size("num_experts", size("n_routed_experts", 0))),
            experts_per_token=size("num_experts_per_tok", 0),
            max_positions=size("max_position_embeddings", 2048),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelShape:
        """Read the shape of a Hugging Face model folder; only `config.json` is opened, never the weights.

        Raises:
            ConfigError: the folder or its config.json is missing, is not JSON, or describes no language model.
        """
        path = folder / "config.json"
        fix = "give a folder written by save_pretrained"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{folder} is no model folder: it has no config.json", fix=fix) from None
        except (OSError, ValueError) as cause:
            raise ConfigError(f"cannot read {path}: {cause}", fix=fix) from cause
        if not isinstance(config, dict):
            raise ConfigError(f"{path} holds no JSON object", fix=fix)
        return cls.from_hf_config(folder.name, config)
