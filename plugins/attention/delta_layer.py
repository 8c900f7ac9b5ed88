"""The layer around the gated delta rule: projections, short convolutions, gates, output norm (FG2-GDN page, 2.10).

Shape legend: B sequences, T new tokens, D model width, H heads, G key/value heads, K key width, V value width, W taps
of a convolution, C channels that are convolved (H K + G K + G V).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stackloom.core.cache import Buffer, CacheSpec, CacheView
from stackloom.core.errors import ConfigError, FitError
from stackloom.core.slots.attention import LayerShape
from stackloom.kernels.gated_delta import RECURRENT_TOKENS, chunk, prepare, recurrent
from stackloom.plugins.attention.delta_config import DeltaTraits, width_problem

STD = 0.02  # of every projection's weights
SHORTEST_STEP, LONGEST_STEP, LEAST_STEP = 1e-3, 1e-1, 1e-4  # what softplus(dt_bias) is drawn from


class DeltaLayer(nn.Module):
    """A token mixer of constant state.

    Queries, keys and values pass a causal convolution and SiLU; queries and keys are normalised, keys and values then
    scaled by the roots of their step sizes; the rule's outputs are normed per head, gated and projected. Key and value
    heads are repeated where there are fewer of them. No positions are used.

    Args:
        traits: which rule it is.
        layer: sizes of the layer.
        where: plugin id for errors.

    Raises:
        FitError: `heads` is no multiple of `kv_heads`, or a head's width does not fit.
    """

    def __init__(self, traits: DeltaTraits, layer: LayerShape, where: str = "attention") -> None:
        super().__init__()
        problem = width_problem(traits, layer.head_dim)
        if layer.heads % layer.kv_heads:
            problem = f"heads {layer.heads} is no multiple of kv_heads {layer.kv_heads}"
        if problem:
            raise FitError(problem, where=where)
        self.traits, self.layer = traits, layer
        D, H, G, K, V = layer.hidden, layer.heads, layer.kv_heads, layer.head_dim, traits.values(layer.head_dim)
        self.q_proj = nn.Linear(D, H * K, bias=layer.bias)
        self.k_proj = nn.Linear(D, G * K, bias=layer.bias)
        self.v_proj = nn.Linear(D, G * V, bias=layer.bias)
        self.o_proj = nn.Linear(H * V, D, bias=False)
        self.conv_CW = nn.Parameter(torch.empty(H * K + G * K + G * V, traits.conv_size))
        self.decay = _projection(D, H if traits.decay == "head" else H * K, traits.decay_rank or V, traits.decay)
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H if traits.decay == "head" else H * K))
        rank = traits.beta_rank if traits.beta == "channel" else None
        kind = "channel" if rank else "head"
        self.beta = _projection(D, H if traits.beta == "head" else H * K, rank or 0, kind, traits.beta_bias)
        self.value_beta = (
            _projection(D, H * V, rank or 0, kind, traits.beta_bias) if traits.value_beta else nn.Identity()
        )
        full = traits.output_gate == "silu"
        self.gate = _projection(D, H * V, traits.gate_rank or V, "head" if full else "channel", not full)
        self.norm = nn.Parameter(torch.empty(V))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew from torch's generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.uniform_(self.conv_CW, -(self.traits.conv_size**-0.5), self.traits.conv_size**-0.5)
        low, high = self.traits.rate_range
        if self.traits.lower_bound is None:
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(max(low, 1e-4), high).log())
        else:
            nn.init.zeros_(self.A_log)
        step = torch.empty_like(self.dt_bias).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP)).exp()
        step = step.clamp_min(LEAST_STEP)
        self.dt_bias.copy_(step + (-torch.expm1(-step)).log())  # inverse of softplus
        nn.init.ones_(self.norm)
        if self.traits.beta_init == "kda":
            keys, width = self._vector_gates()[0]
            self._widen(keys.weight.unflatten(0, (-1, width))[:, 0])

    def _vector_gates(self) -> list[tuple[nn.Linear, int]]:
        gates = [(self.beta, self.layer.head_dim)] if self.traits.beta == "channel" else []
        gates += [(self.value_beta, self.traits.values(self.layer.head_dim))] if self.traits.value_beta else []
        if any(not isinstance(gate, nn.Linear) for gate, _ in gates):
            raise ConfigError("step sizes of a low rank cannot repeat a row per channel", where="beta_rank")
        return gates

    @torch.no_grad()
    def _widen(self, per_head_HD: Tensor) -> None:
        for gate, width in self._vector_gates():
            gate.weight.copy_(per_head_HD[:, None].expand(-1, width, -1).flatten(0, 1))
            if gate.bias is not None:
                nn.init.zeros_(gate.bias)

    @torch.no_grad()
    def convert(self, scalar: DeltaLayer) -> None:
        """Take the weights of a layer with one step size per head, each repeated for all channels of its head.

        The result computes what that layer computed (page 2.10).

        Raises:
            ConfigError: the layers differ in more than their gates.
        """
        theirs, mine = dict(scalar.named_parameters()), dict(self.named_parameters())
        shared = {name for name in mine if not name.startswith(("beta", "value_beta"))}
        wrong = [name for name in sorted(shared) if name not in theirs or theirs[name].shape != mine[name].shape]
        if wrong or scalar.traits.beta != "head" or scalar.traits.max_beta != self.traits.max_beta:
            what = f"they differ in {wrong[0]}" if wrong else "its step sizes are no scalars of the same range"
            raise ConfigError(f"cannot convert this layer: {what}", where="attention", fix="convert from attention.kda")
        for name in shared:
            mine[name].copy_(theirs[name])
        self._widen(theirs["beta.weight"])

    @property
    def cache_spec(self) -> CacheSpec:
        """The recurrent state, in float32 unless the layer is in float64, and the last inputs of the convolutions."""
        K, V = self.layer.head_dim, self.traits.values(self.layer.head_dim)
        precise = "float64" if self.norm.dtype == torch.float64 else "float32"
        return CacheSpec(
            state={
                "recurrent": Buffer(shape=(self.layer.heads, K, V), dtype=precise),
                "tail": Buffer(shape=(self.traits.conv_size - 1, len(self.conv_CW))),
            }
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mix whole sequences from position 0, (B, T, D) to (B, T, D)."""
        tail = x_BTD.new_zeros(len(x_BTD), self.traits.conv_size - 1, len(self.conv_CW))
        return self._mix(x_BTD, tail, None)[0]

    def packed(self, x_1TD: Tensor, starts: Tensor) -> Tensor:
        """Mix sequences that lie one after the other in a row, each for itself, (1, T, D) to (1, T, D).

        Args:
            x_1TD: one row.
            starts: int64, first token of each sequence, ascending from 0.
        """
        tail = x_1TD.new_zeros(1, self.traits.conv_size - 1, len(self.conv_CW))
        edges = torch.cat((starts, starts.new_tensor([x_1TD.shape[1]])))
        return self._mix(x_1TD, tail, None, edges)[0]

    def prefill(self, x_BTD: Tensor, view: CacheView) -> Tensor:
        """Mix T more tokens of each sequence on top of `view`, (B, T, D) to (B, T, D)."""
        y_BTD, tail, state = self._mix(x_BTD, view.state("tail"), view.state("recurrent"))
        view.append(x_BTD.shape[1])
        view.write(tail=tail, recurrent=state)
        return y_BTD

    def step(self, x_BD: Tensor, view: CacheView) -> Tensor:
        """Mix one more token of each sequence, (B, D) to (B, D)."""
        return self.prefill(x_BD[:, None], view)[:, 0]

    def _convolved(self, inputs: Tensor, edges: Tensor | None) -> Tensor:
        """Causal convolution of every channel over W - 1 + T inputs, (B, T, C); no tap reaches across an edge."""
        taps, tokens = self.traits.conv_size, inputs.shape[1] - self.traits.conv_size + 1
        terms = [inputs[:, tap : tap + tokens] * self.conv_CW[:, tap] for tap in range(taps)]
        if edges is not None:
            place = torch.arange(tokens, device=inputs.device)
            within = place - edges[torch.searchsorted(edges, place, right=True) - 1]
            terms = [term * (within >= taps - 1 - tap)[:, None] for tap, term in enumerate(terms)]
        return torch.stack(terms).sum(0)

    def _mix(
        self, x_BTD: Tensor, tail: Tensor, state: Tensor | None, edges: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs, the new tail and the new state."""
        traits, H, G, K = self.traits, self.layer.heads, self.layer.kv_heads, self.layer.head_dim
        V, tokens = traits.values(K), x_BTD.shape[1]
        projected = torch.cat((self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)), -1)
        inputs = torch.cat((tail, projected), 1)
        mixed = silu(self._convolved(inputs, edges))
        q, k, v = mixed.split([H * K, G * K, G * V], -1)
        q, k, v = (x.unflatten(-1, (-1, width)) for x, width in ((q, K), (k, K), (v, V)))
        if G < H:
            k, v = (x.repeat_interleave(H // G, dim=2) for x in (k, v))
        beta = self.beta(x_BTD)
        key_gate = beta if traits.beta == "head" else beta.unflatten(-1, (H, K))
        value_gate = self.value_beta(x_BTD).unflatten(-1, (H, V)) if traits.value_beta else key_gate
        per_head = traits.decay == "head"
        implementation = self._implementation(x_BTD)
        unit_q, scaled_k, scaled_v, g = prepare(
            q,
            k,
            v,
            key_gate,
            value_gate,
            self.decay(x_BTD) if per_head else self.decay(x_BTD).unflatten(-1, (H, K)),
            self.A_log,
            self.dt_bias if per_head else self.dt_bias.view(H, K),
            1e-6,
            float(traits.max_beta),
            1.0 if traits.value_scale == "linear" else 0.5,
            traits.lower_bound,
            implementation=implementation,
        )
        rule = chunk if tokens > RECURRENT_TOKENS or torch.is_grad_enabled() else recurrent
        o, state = rule(unit_q, scaled_k, scaled_v, g, state, edges, implementation=implementation)
        gate = self.gate(x_BTD).unflatten(-1, (H, V))
        gate = silu(gate) if traits.output_gate == "silu" else gate.sigmoid()
        return self.o_proj((self._normed(o) * gate).flatten(2)), inputs[:, tokens:].contiguous(), state

    def _normed(self, o: Tensor) -> Tensor:
        """RMSNorm over a head's values, in float32 at least."""
        wide = o.to(torch.promote_types(o.dtype, torch.float32))
        return (wide * (wide.square().mean(-1, keepdim=True) + self.traits.norm_eps).rsqrt()).to(o.dtype) * self.norm

    def _implementation(self, x: Tensor) -> str:
        """`auto` takes the reference on a CPU, where kernels could only be interpreted."""
        chosen = self.traits.implementation
        return "reference" if chosen == "auto" and x.device.type == "cpu" else chosen


def _projection(inputs: int, outputs: int, rank: int, kind: str, bias: bool = False) -> nn.Module:
    """One linear map ("head"), or two of a rank in between ("channel"); a bias on the last."""
    if kind == "head":
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))
