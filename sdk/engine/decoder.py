"""`Decoder`: Llama-style models run layer by layer on memory that the engine owns, without padding.

Prompts are packed one after another, so linear layers see tokens alone; each sequence attends for itself. Keys and
values lie in pages: what a prompt shares with a sequence that is there, or was there lately, is not computed again, and
equal prompts are computed once. Decoding moves all rows on together. Attention plugins sit in the same layers on their
views.

Shape legend: N rows that step, R rows computed (N, or more in a padded batch), T tokens of all prompts together,
L layers, G key/value heads, H = 2 G heads in memory, P pages, S tokens of a page or a sequence, D model width,
K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm, silu
from transformers import PreTrainedModel

from stackloom.engine.attention import HostedRows, OwnAttention, Step, hosted_mixer, rollback_together
from stackloom.engine.graphs import StepGraphs
from stackloom.engine.linear import Projection, project
from stackloom.engine.pages import BLOCK, Pages

ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
STEADY_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # the others depend on the length of the sequence
ALIGNED = 256  # tokens of a chunk in a deterministic engine: chunks must not depend on what else there is to do
CONTEXT = 32_768  # tokens that a row may come to hold where the model sets no bound


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
class _Row:
    """One sequence.

    Attributes:
        tokens: read and fed so far, and what is left of the prompt.
        length: how many of them are computed.
        pages: that hold their keys and values.
    """

    tokens: list[int]
    length: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def filling(self) -> bool:
        """Whether some of its prompt is not computed yet."""
        return self.length < len(self.tokens)


@dataclass
class _Layer:
    norm: Callable[[Tensor], Tensor]
    attention: OwnAttention | HostedRows
    memory: int  # index of the layer's part of the pages; -1 with a plugin
    mlp_norm: Callable[[Tensor], Tensor]
    gate_up: Projection
    down: Projection


class Decoder:
    """The runner for models that `supports` accepts.

    Args:
        model: in eval mode; its weights are copied in the layout that is fastest here.
        max_batch: most rows.
        deterministic: give every row the same bits whatever the batch. Prompts run alone in chunks of ALIGNED tokens, a
            step always computes `max_batch` rows (a linear layer of one fixed shape treats all its rows alike, which is
            checked here; if this machine's does not, rows step alone), and each row attends over its own length. Only
            equal prompts share what was computed.
        cache_bytes: most memory for keys and values; it is taken as it is needed.
        prefix_bytes: how much of it what prompts may share, and no sequence uses now, may keep.
        paged: let single steps attend over pages where they lie (`kernels.paged_attention`), instead of copying them
            side by side; None does on a GPU. Not with attention plugins, nor in a deterministic engine.
        graphs: replay such steps on a GPU as CUDA graphs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_batch: int,
        deterministic: bool,
        cache_bytes: int = 4 * 1024**3,
        prefix_bytes: int = 0,
        paged: bool | None = None,
        graphs: bool = True,
    ) -> None:
        decoder: Any = model.model
        self._rotary, self._embedding = decoder.rotary_emb, decoder.embed_tokens.weight.detach()
        self._norm, self._head = _norm(decoder.norm), project([model.lm_head])
        self._deterministic, self._max_batch = deterministic, max_batch
        self._layers = list(self._build(decoder.layers))
        self._hosted = [layer.attention for layer in self._layers if isinstance(layer.attention, HostedRows)]
        own = [layer.attention for layer in self._layers if isinstance(layer.attention, OwnAttention)]
        self._kv_heads: int = own[0].kv_heads if own else 1
        self._width: int = own[0].width if own else 1
        self._padded = deterministic and self._rows_are_alike()
        context = getattr(model.config, "max_position_embeddings", None) or CONTEXT
        shape = (len(own), 2, self._kv_heads, self._width)
        per_page = max(1, BLOCK * prod(shape) * self._embedding.dtype.itemsize)
        kept = 0 if deterministic or self._hosted else prefix_bytes
        needed = max_batch * (-(-context // BLOCK) + 1) * per_page
        # Plugins keep whole sequences on views of their own, which cannot be given back and computed again in parts.
        limit = needed if self._hosted else min(cache_bytes, needed + kept)
        self.pages = Pages(shape, self._embedding.dtype, self._embedding.device, limit=limit, kept=kept)
        self.capacity = self.pages.capacity * BLOCK
        heads = torch.arange(2 * self._kv_heads, device=self._embedding.device)
        self._heads_2G = heads.view(2, self._kv_heads)
        self._rows: list[_Row] = []
        self._tables: tuple[list[int], int, Tensor, Tensor] | None = None  # of the last step: pages, width, index, room
        self._cos = self._sin = torch.empty(0, 1, 0)
        on_gpu = self._embedding.device.type == "cuda"
        self._paged = (on_gpu if paged is None else paged) and not (deterministic or self._hosted)
        self._graphs = StepGraphs() if self._paged and graphs and on_gpu else None

    @property
    def lengths(self) -> list[int]:
        """Tokens cached per row."""
        return [row.length for row in self._rows]

    @property
    def filling(self) -> list[int]:
        """Rows whose prompt is not wholly computed; see `Runner`."""
        return [number for number, row in enumerate(self._rows) if row.filling]

    @property
    def room(self) -> int:
        """Tokens for which there is memory, after what the prompts that are being computed still need."""
        owed = sum(-(-len(row.tokens) // BLOCK) - len(row.pages) for row in self._rows if row.filling)
        return max(0, self.pages.available - owed) * BLOCK

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Append rows; see `Runner`."""
        self._rows += [_Row(list(prompt)) for prompt in prompts]

    def fill(self, tokens: int) -> dict[int, Tensor]:
        """Compute prompts; see `Runner`. With attention plugins, each prompt is computed whole."""
        logits_V: dict[int, Tensor] = {}
        while (tokens > 0 or self._hosted) and (wave := self._wave(tokens)):
            tokens -= sum(stop - self._rows[number].length for number, stop in wave.items())
            logits_V |= self._prefill(wave)
        return logits_V

    def reserve(self, rows: Sequence[int]) -> bool:
        """Take memory for one more token of each row; see `Runner`."""
        for number in rows:
            row = self._rows[number]
            if not self._extend(row, row.length + 1):
                return False
            page = self.pages.own(row.pages[-1])
            if page is None:
                return False
            row.pages[-1] = page
        return True

    def step(self, token_ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Move rows on; see `Runner`."""
        if self._padded:
            logits_NV = self._decode(token_ids, rows, self._max_batch)
        elif self._deterministic:
            one_by_one = zip(token_ids, rows, strict=True)
            logits_NV = torch.cat([self._decode([token], [row], 1) for token, row in one_by_one])
        elif self._paged:
            logits_NV = self._decode_paged(token_ids, rows)
        else:
            logits_NV = self._decode(token_ids, rows, len(rows))
        for token, number in zip(token_ids, rows, strict=True):
            self._rows[number].tokens.append(token)
            self._rows[number].length += 1
        return logits_NV

    def leave(self, row: int) -> None:
        """Forget a row; see `Runner`."""
        leaving = self._rows[row]
        self.pages.keep(leaving.tokens[: leaving.length], leaving.pages)
        self.pages.release(leaving.pages)
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        for hosted in self._hosted:
            hosted.leave(row)

    def rollback(self, n: int) -> int:
        """Forget tokens; see `Runner`."""
        replay = rollback_together(self._hosted, n, self.lengths)
        for row in self._rows:
            row.length -= n + replay
            del row.tokens[row.length :]
            kept = -(-row.length // BLOCK)
            self.pages.release(row.pages[kept:])
            del row.pages[kept:]
        return replay

    def clear(self) -> None:
        """Forget every row and give its memory back; what prompts may share stays."""
        for row in self._rows:
            self.pages.release(row.pages)
        self._rows = []
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

    def _wave(self, budget: int) -> dict[int, int]:
        """Return which rows are computed next, and up to where; their pages are taken.

        A prompt that shares more with another one of the same wave waits for it, and so does one that equals it.
        """
        wave: dict[int, int] = {}
        ahead: set[tuple[int, ...]] = set()
        for number, row in enumerate(self._rows):
            if not row.filling:
                continue
            if (budget <= 0 and not self._hosted) or (wave and self._deterministic):
                break
            whole = tuple(row.tokens)
            known = row.length or self.pages.known(whole[:-1])
            if not self._hosted and (whole in ahead or (self.pages.keeps and whole[: known + BLOCK] in ahead)):
                continue
            ahead |= {whole} | {whole[:stop] for stop in range(BLOCK, len(whole), BLOCK) if self.pages.keeps}
            if not row.pages:
                row.pages = self.pages.take(whole[:-1])
                row.length = len(row.pages) * BLOCK
            stop = self._stop(row, budget)
            if not self._extend(row, stop):
                break
            wave[number] = stop
            budget -= stop - row.length
        return wave

    def _stop(self, row: _Row, budget: int) -> int:
        """Return up to where a prompt is computed next."""
        if self._hosted:
            return len(row.tokens)
        if self._deterministic:
            return min(len(row.tokens), (row.length // ALIGNED + 1) * ALIGNED)
        return min(len(row.tokens), row.length + budget)

    def _extend(self, row: _Row, tokens: int) -> bool:
        """Give a row the pages that so many tokens need; the last one is clean. False where there are too few."""
        missing = -(-tokens // BLOCK) - len(row.pages)
        if missing <= 0:
            return True
        pages = self.pages.new(missing)
        if pages is None:
            return False
        self.pages.clean(pages[-1])
        row.pages += pages
        return True

    def _prefill(self, wave: dict[int, int]) -> dict[int, Tensor]:
        """Compute the rows' prompts up to the given places, and return the logits of those that end there."""
        rows = [self._rows[number] for number in wave]
        stops = list(wave.values())
        self._reserve_positions(max(stops))
        starts = [row.length for row in rows]
        ids_T = self._ids([t for row, stop in zip(rows, stops, strict=True) for t in row.tokens[row.length : stop]])
        places = [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
        positions_T = self._ids([place for part in places for place in part])
        pages_T = self._ids(
            [row.pages[place // BLOCK] for row, part in zip(rows, places, strict=True) for place in part]
        )
        spans = [slice(start, stop) for start, stop in pairwise(accumulate(map(len, places), initial=0))]
        step = Step(
            self._cos[positions_T],
            self._sin[positions_T],
            stops,
            self._slots(pages_T, positions_T),
            spans,
            [self._table([row.pages]).flatten() if start else None for row, start in zip(rows, starts, strict=True)],
        )
        x_TD = embedding(ids_T, self._embedding)
        for layer in self._layers:
            h_TD = layer.norm(x_TD)
            if isinstance(layer.attention, OwnAttention):
                x_TD = x_TD + layer.attention.prefill(h_TD, self.pages.memory_LPHSK[layer.memory], step)
            else:
                x_TD = x_TD + layer.attention.prefill(h_TD, step)
            x_TD = x_TD + _mlp(layer, x_TD)
        ended = [place for place, row in enumerate(rows) if stops[place] == len(row.tokens)]
        logits: dict[int, Tensor] = {}
        if ended:
            logits_NV = self._head(self._norm(x_TD[self._ids([spans[place].stop - 1 for place in ended])]))
            logits = {list(wave)[place]: logits_NV[at] for at, place in enumerate(ended)}
        for row, stop in zip(rows, stops, strict=True):
            row.length = stop
            self.pages.keep(row.tokens[:stop], row.pages)
        return logits | self._twins(logits)

    def _twins(self, logits: dict[int, Tensor]) -> dict[int, Tensor]:
        """Give rows that wait with a prompt that was computed just now its pages and its logits."""
        if self._hosted:
            return {}
        computed = {tuple(self._rows[number].tokens): number for number in logits}
        found: dict[int, Tensor] = {}
        for number, row in enumerate(self._rows):
            if row.filling and not row.pages and (first := computed.get(tuple(row.tokens))) is not None:
                row.pages, row.length = list(self._rows[first].pages), len(row.tokens)
                self.pages.hold(row.pages)
                found[number] = logits[first]
        return found

    def _decode(self, token_ids: Sequence[int], rows: Sequence[int], computed: int) -> Tensor:
        """Feed a token to each of the rows, as a batch of `computed` rows, and return (len(rows), V)."""
        fed = [self._rows[number] for number in rows]
        lengths = [row.length for row in fed]
        self._reserve_positions(max(lengths) + 1)
        padding = [0] * (computed - len(fed))
        positions_R = self._ids([*lengths, *padding])
        after = [length + 1 for length in lengths]
        table, gathered = self._table_of(fed)
        step = Step(
            self._cos[positions_R],
            self._sin[positions_R],
            after,
            self._slots(self._ids([row.pages[-1] for row in fed]), positions_R[: len(fed)]),
            tables=(table,),
            gathered=gathered,
            mask=None if self._deterministic or min(after) == max(after) else self._mask(after),
        )
        return self._layer_by_layer(self._ids([*token_ids, *padding]), step)[: len(fed)]

    def _decode_paged(self, token_ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Feed a token to each of the rows, whose pages stay where they are, and return (len(rows), V).

        A captured step has more rows and pages than there are: empty rows, whose keys and values go to page 0, which
        such a step never reads.
        """
        fed = [self._rows[number] for number in rows]
        most = max(len(row.pages) for row in fed)
        count = len(fed)
        if self._graphs is not None:
            count, most = self._graphs.shape(count, most, self._max_batch)
        empty = count - len(fed)
        lengths = [row.length for row in fed]
        self._reserve_positions(max(lengths) + 1)
        positions_R = self._ids([*lengths, *[0] * empty])
        table = [page for row in fed for page in (*row.pages, *[0] * (most - len(row.pages)))]
        arguments = (
            self._ids([*token_ids, *[0] * empty]),
            self._cos[positions_R],
            self._sin[positions_R],
            self._slots(self._ids([*(row.pages[-1] for row in fed), *[0] * empty]), positions_R),
            self._ids([*table, *[0] * (empty * most)]).view(count, most),
            self._ids([*(length + 1 for length in lengths), *[0] * empty]),
        )
        if self._graphs is None:
            return self._paged_step(*arguments)
        return self._graphs(self._paged_step, *arguments)[: len(fed)]

    def _paged_step(
        self, ids_R: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, pages_RP: Tensor, lengths_R: Tensor
    ) -> Tensor:
        """Return (R, V), as a function of tensors alone."""
        return self._layer_by_layer(ids_R, Step(cos, sin, [], slots, pages=(pages_RP, lengths_R)))

    def _layer_by_layer(self, ids_R: Tensor, step: Step) -> Tensor:
        """Return the logits of one more token of each row, (R, V)."""
        x_RD = embedding(ids_R, self._embedding)
        for layer in self._layers:
            h_RD = layer.norm(x_RD)
            if isinstance(layer.attention, OwnAttention):
                x_RD = x_RD + layer.attention.step(h_RD, self.pages.memory_LPHSK[layer.memory], step)
            else:
                x_RD = x_RD + layer.attention.step(h_RD, len(step.lengths))
            x_RD = x_RD + _mlp(layer, x_RD)
        return self._head(self._norm(x_RD))

    def _slots(self, pages_T: Tensor, positions_T: Tensor) -> Tensor:
        """Return where each head of each token lies in a layer's memory, (T * H,)."""
        slots_TH = (pages_T[:, None] * self._heads_2G.numel() + self._heads_2G.flatten()) * BLOCK
        return (slots_TH + positions_T[:, None] % BLOCK).flatten()

    def _table(self, pages: Sequence[Sequence[int]]) -> Tensor:
        """Return where each head's pages lie for each sequence, (2, N, G, P); page 0 fills up what is shorter."""
        most = max(map(len, pages))
        pages_NP = self._ids([page for row in pages for page in (*row, *[0] * (most - len(row)))]).view(-1, most)
        table: Tensor = pages_NP[None, :, None] * self._heads_2G.numel() + self._heads_2G[:, None, :, None]
        return table

    def _table_of(self, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """Return the table of a step, flat, and memory for what it names; both stay until a row's pages change."""
        pages = [page for row in rows for page in (len(row.pages), *row.pages)]
        if self._tables is None or self._tables[0] != pages or self._tables[1] != len(rows):
            table = self._table([row.pages for row in rows]).flatten()
            gathered = None if self._tables is None else self._tables[3]
            if gathered is None or len(gathered) != len(table):
                gathered = self._embedding.new_empty(len(table), BLOCK * self._width)
            self._tables = (pages, len(rows), table, gathered)
        return self._tables[2], self._tables[3]

    def _mask(self, lengths: list[int]) -> Tensor:
        beyond_NS = torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]
        mask_NS = torch.zeros(beyond_NS.shape, dtype=self._embedding.dtype).masked_fill_(beyond_NS, float("-inf"))
        return mask_NS[:, None].to(self._embedding.device)

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._embedding.device)

    def _reserve_positions(self, tokens: int) -> None:
        """Have rotary factors for so many positions."""
        if len(self._cos) < tokens:
            positions_1S = torch.arange(max(tokens, 2 * len(self._cos), 128), device=self._embedding.device)[None]
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
