"""`Decoder`: Llama-style models run layer by layer on memory that the engine owns, without padding.

Prompts are packed one after another, so linear layers see tokens alone; each sequence attends for itself. What a prompt
shares with a sequence that is there, or was there lately, is copied instead of computed. Decoding moves all rows on
together over one block of memory per layer. Attention plugins sit in the same layers on their views.

Shape legend: N rows of the batch, R rows computed (N, or more in a padded batch), T tokens of all prompts together,
L layers, G key/value heads, S capacity in tokens, D model width, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm, silu
from transformers import PreTrainedModel

from stackloom.engine.attention import HostedRows, OwnAttention, Step, hosted_mixer, rollback_together
from stackloom.engine.linear import Projection, project
from stackloom.engine.prefixes import BLOCK, Prefixes

ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
STEADY_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # the others depend on the length of the sequence
CAPACITY = 128  # tokens per row to begin with


def supports(model: PreTrainedModel) -> bool:
    """Whether `Decoder` computes what the model's own forward pass does."""
    config = model.config
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return (
        type(model).__name__ in ARCHITECTURES
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in STEADY_ROTATIONS
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and not kinds
        and not windowed
    )


@dataclass
class _Layer:
    norm: Callable[[Tensor], Tensor]
    attention: OwnAttention | HostedRows
    memory: int  # index of the layer's block of keys and values; -1 with a plugin
    mlp_norm: Callable[[Tensor], Tensor]
    gate_up: Projection
    down: Projection


class Decoder:
    """The runner for models that `supports` accepts.

    Args:
        model: in eval mode; its weights are copied in the layout that is fastest here.
        max_batch: most rows.
        deterministic: give every row the same bits whatever the batch. Prompts run alone, a step always computes
            `max_batch` rows (a linear layer of one fixed shape treats all its rows alike, which is checked here; if
            this machine's does not, rows step alone), and each row attends over its own length. Nothing is shared.
        prefix_bytes: most memory for what prompts may share with sequences that are there or have left.
    """

    def __init__(self, model: PreTrainedModel, *, max_batch: int, deterministic: bool, prefix_bytes: int = 0) -> None:
        decoder: Any = model.model
        self._rotary, self._embedding = decoder.rotary_emb, decoder.embed_tokens.weight.detach()
        self._norm, self._head = _norm(decoder.norm), project([model.lm_head])
        self._deterministic, self._max_batch = deterministic, max_batch
        self._layers = list(self._build(decoder.layers))
        self._hosted = [layer.attention for layer in self._layers if isinstance(layer.attention, HostedRows)]
        own = [layer.attention for layer in self._layers if isinstance(layer.attention, OwnAttention)]
        self._block = (own[0].kv_heads, own[0].width) if own else (1, 1)
        self._blocks = len(own)
        self._padded = deterministic and self._rows_are_alike()
        per_token = (self._blocks, 2, *self._block)
        shared = 0 if deterministic or self._hosted else prefix_bytes
        self._prefixes = Prefixes(per_token, self._embedding.dtype, self._embedding.device, shared)
        self._lengths: list[int] = []
        self._tokens: list[list[int]] = []
        self._memory = self._cos = self._sin = self._embedding
        self.clear()

    @property
    def lengths(self) -> list[int]:
        """Tokens cached per row."""
        return self._lengths

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Append rows; see `Runner`."""
        if self._deterministic and len(prompts) > 1:
            return torch.cat([self.join([prompt]) for prompt in prompts])
        first, sizes = len(self._lengths), [len(prompt) for prompt in prompts]
        self._reserve(first + len(prompts), max(self._lengths + sizes) + 1)
        self._lengths = self._lengths + sizes
        self._tokens += [list(prompt) for prompt in prompts]
        logits_V: dict[int, Tensor] = {}
        while waiting := [row for row in range(first, len(self._lengths)) if row not in logits_V]:
            wave = self._wave(waiting)
            logits_V |= zip(wave, self._prefill(wave), strict=True)
        return torch.stack([logits_V[row] for row in sorted(logits_V)])

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Move every row on; see `Runner`."""
        rows = len(self._lengths)
        self._reserve(rows, max(self._lengths) + 1)
        if self._padded:
            logits_NV = self._decode(token_ids, 0, self._max_batch)
        elif self._deterministic:
            logits_NV = torch.cat([self._decode([token], row, 1) for row, token in enumerate(token_ids)])
        else:
            logits_NV = self._decode(token_ids, 0, rows)
        self._lengths = [length + 1 for length in self._lengths]
        for tokens, token in zip(self._tokens, token_ids, strict=True):
            tokens.append(token)
        return logits_NV

    def leave(self, row: int) -> None:
        """Forget a row; see `Runner`."""
        self._prefixes.put(self._tokens[row], self._memory[:, :, row])
        last = len(self._lengths) - 1
        if row != last:
            length = self._lengths[last]
            self._memory[:, :, row, :, :length] = self._memory[:, :, last, :, :length]
            self._lengths[row] = self._lengths[last]
            self._tokens[row] = self._tokens[last]
        self._lengths.pop()
        self._tokens.pop()
        for hosted in self._hosted:
            hosted.leave(row)
        if not self._lengths:
            self.clear()

    def rollback(self, n: int) -> int:
        """Forget tokens; see `Runner`."""
        replay = rollback_together(self._hosted, n, self._lengths)
        self._lengths = [length - n - replay for length in self._lengths]
        for tokens, length in zip(self._tokens, self._lengths, strict=True):
            del tokens[length:]
        return replay

    def clear(self) -> None:
        """Forget every row and give its memory back; what prompts may share stays."""
        self._lengths, self._tokens = [], []
        weight = self._embedding
        self._memory = torch.zeros((self._blocks, 2, 0, self._block[0], CAPACITY, self._block[1]), dtype=weight.dtype)
        self._memory = self._memory.to(weight.device)
        self._cos = self._sin = torch.empty(0, 1, 0)
        for hosted in self._hosted:
            hosted.clear()

    def _build(self, layers: nn.ModuleList) -> Iterator[_Layer]:
        memory = 0
        weight = self._embedding
        for module in layers:
            layer: Any = module
            mixer = hosted_mixer(layer.self_attn)
            attention = (
                OwnAttention(layer.self_attn, one_by_one=self._deterministic)
                if mixer is None
                else HostedRows(mixer, weight.dtype, weight.device, one_by_one=self._deterministic)
            )
            yield _Layer(
                _norm(layer.input_layernorm),
                attention,
                memory if mixer is None else -1,
                _norm(layer.post_attention_layernorm),
                project([layer.mlp.gate_proj, layer.mlp.up_proj]),
                project([layer.mlp.down_proj]),
            )
            memory += mixer is None

    def _wave(self, waiting: Sequence[int]) -> dict[int, int]:
        """Copy what is known of the prompts' beginnings, and return how much per row that is computed next.

        A prompt that shares more with another one of the same wave waits for it.
        """
        wave: dict[int, int] = {}
        ahead: set[tuple[int, ...]] = set()
        for row in waiting:
            tokens = self._tokens[row][:-1]
            known = self._prefixes.known(tokens)
            if tuple(tokens[: known + BLOCK]) in ahead:
                continue
            if self._prefixes.capacity:
                ahead |= {tuple(tokens[:stop]) for stop in range(BLOCK, len(tokens) + 1, BLOCK)}
            wave[row] = self._prefixes.take(tokens, self._memory[:, :, row])
        return wave

    def _prefill(self, wave: dict[int, int]) -> Tensor:
        """Compute what is left of the rows' prompts, each behind its given number of cached tokens; (len(wave), V)."""
        left = [self._tokens[row][known:] for row, known in wave.items()]
        ids_T = self._ids([token for tokens in left for token in tokens])
        places = [range(known, len(self._tokens[row])) for row, known in wave.items()]
        positions_T = self._ids([place for part in places for place in part])
        spans = [slice(start, stop) for start, stop in pairwise(accumulate(map(len, left), initial=0))]
        lengths = [len(self._tokens[row]) for row in wave]
        step = Step(self._cos[positions_T], self._sin[positions_T], lengths, spans, tuple(wave))
        x_TD = embedding(ids_T, self._embedding)
        for layer in self._layers:
            h_TD = layer.norm(x_TD)
            if isinstance(layer.attention, OwnAttention):
                k_NGSK, v_NGSK = self._memory[layer.memory]
                x_TD = x_TD + layer.attention.prefill(h_TD, k_NGSK, v_NGSK, step)
            else:
                x_TD = x_TD + layer.attention.prefill(h_TD, step)
            x_TD = x_TD + _mlp(layer, x_TD)
        for row in wave:
            self._prefixes.put(self._tokens[row], self._memory[:, :, row])
        logits_NV: Tensor = self._head(self._norm(x_TD[self._ids([span.stop - 1 for span in spans])]))
        return logits_NV

    def _decode(self, token_ids: Sequence[int], first: int, computed: int) -> Tensor:
        """Feed a token to the rows from `first` on, as a batch of `computed` rows, and return (len(token_ids), V)."""
        rows = len(token_ids)
        lengths = self._lengths[first : first + rows]
        padding = [0] * (computed - rows)
        positions_R = self._ids([*lengths, *padding])
        after = [length + 1 for length in lengths]
        step = Step(
            self._cos[positions_R],
            self._sin[positions_R],
            after,
            slots=self._slots(positions_R[:rows]),
            mask=None if self._deterministic or min(after) == max(after) else self._mask(after),
        )
        x_RD = embedding(self._ids([*token_ids, *padding]), self._embedding)
        for layer in self._layers:
            h_RD = layer.norm(x_RD)
            if isinstance(layer.attention, OwnAttention):
                k_NGSK, v_NGSK = self._memory[layer.memory, :, first:]
                x_RD = x_RD + layer.attention.step(h_RD, k_NGSK, v_NGSK, step)
            else:
                x_RD = x_RD + layer.attention.step(h_RD, rows)
            x_RD = x_RD + _mlp(layer, x_RD)
        logits_NV: Tensor = self._head(self._norm(x_RD))[:rows]
        return logits_NV

    def _slots(self, positions_N: Tensor) -> Tensor:
        """Return where each head of each row's new token lies in a block of memory, (N * G,)."""
        heads_NG = torch.arange(len(positions_N) * self._block[0], device=positions_N.device).view(-1, self._block[0])
        slots_NG: Tensor = heads_NG * self._memory.shape[4] + positions_N[:, None]
        return slots_NG.flatten()

    def _mask(self, lengths: list[int]) -> Tensor:
        beyond_NS = torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]
        mask_NS = torch.zeros(beyond_NS.shape, dtype=self._embedding.dtype).masked_fill_(beyond_NS, float("-inf"))
        return mask_NS[:, None].to(self._embedding.device)

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._embedding.device)

    def _reserve(self, rows: int, tokens: int) -> None:
        """Grow memory and rotary factors by doubling. New memory is zeros: what lies past a length must be finite."""
        _, _, old_rows, heads, old_tokens, width = self._memory.shape
        if rows > old_rows or tokens > old_tokens:
            size = (_doubled(old_rows, rows), _doubled(old_tokens, tokens))
            grown = self._memory.new_zeros((self._blocks, 2, size[0], heads, size[1], width))
            for row, length in enumerate(self._lengths):
                grown[:, :, row, :, :length] = self._memory[:, :, row, :, :length]
            self._memory = grown
        if len(self._cos) < self._memory.shape[4]:
            positions_1S = torch.arange(self._memory.shape[4], device=self._embedding.device)[None]
            cos_1SK, sin_1SK = self._rotary(self._embedding[:1, None], positions_1S)
            low, high = sin_1SK.chunk(2, dim=-1)
            self._cos, self._sin = cos_1SK[0][:, None], torch.cat((-low, high), dim=-1)[0][:, None]

    def _rows_are_alike(self) -> bool:
        """Whether every linear layer gives one input the same bits in each of `max_batch` rows."""
        draw = torch.Generator().manual_seed(0)
        width = self._embedding.shape[1]
        with torch.inference_mode():
            for layer in self._layers[:1]:
                up = torch.randn(1, width, generator=draw).to(self._embedding)
                inner = _mlp_inner(layer, up)
                calls = [(layer.gate_up, up), (layer.down, inner), (self._head, up)]
                if isinstance(layer.attention, OwnAttention):
                    mixed = torch.randn(1, layer.attention.heads * layer.attention.width, generator=draw).to(up)
                    calls += [(layer.attention.qkv, up), (layer.attention.out, mixed)]
                for call, x in calls:
                    result = call(x.repeat(self._max_batch, 1))
                    if not torch.equal(result, result[:1].expand_as(result)):
                        return False
        return True


def _mlp(layer: _Layer, x_RD: Tensor) -> Tensor:
    return layer.down(_mlp_inner(layer, layer.mlp_norm(x_RD)))


def _mlp_inner(layer: _Layer, h_RD: Tensor) -> Tensor:
    gate, up = layer.gate_up(h_RD).chunk(2, dim=-1)
    return silu(gate).mul_(up)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    weight_D, eps = module.weight.detach(), module.variance_epsilon
    shape = tuple(weight_D.shape)
    return lambda x: rms_norm(x, shape, weight_D, eps)


def _doubled(now: int, wanted: int) -> int:
    size = max(now, 1)
    while size < wanted:
        size *= 2
    return size
