"""Every reduction and identity of the family in float64, every form against the recurrence, two ranks against one."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from stackloom.kernels.gated_delta import OP, chunk, chunkwise, gated_delta, normalize, prepare, recurrent, reference
from stackloom.kernels.gated_delta.contract import inputs
from stackloom.kernels.gated_delta.parallel import compose, segment_map

DOUBLE = torch.float64
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 257)
ROUNDING = 1e-12  # of float64, over sums of a few hundred terms


def draws(T=37, H=2, K=8, V=8, seed=0):
    """q, k, v, log decay, vector beta for keys and for values; nothing normalised or scaled."""
    torch.manual_seed(seed)
    q, k = torch.randn(2, T, H, K, dtype=DOUBLE), torch.randn(2, T, H, K, dtype=DOUBLE)
    v = torch.randn(2, T, H, V, dtype=DOUBLE)
    g = -torch.rand(2, T, H, K, dtype=DOUBLE)
    return q, k, v, g, torch.rand(2, T, H, K, dtype=DOUBLE), torch.rand(2, T, H, V, dtype=DOUBLE)


def explicit(q, k, v, alpha, erase, write):
    """The rule with its d_k x d_k transition written out: S = (I - erase) Diag(alpha) S + write; the oldest form."""
    B, T, H, K = q.shape
    S, outputs = q.new_zeros(B, H, K, v.shape[-1]), []
    for t in range(T):
        transition = torch.eye(K, dtype=DOUBLE) - erase(t)
        S = transition @ (alpha[:, t, ..., None] * S) + write(t)
        outputs.append(K**-0.5 * (q[:, t, :, None] @ S).squeeze(2))
    return torch.stack(outputs, 1)


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_beta_constant_over_channels_is_kda(form):
    q, k, v, g, beta, _ = draws()
    beta, unit_q, unit_k = beta[..., 0], normalize(q), normalize(k)
    kda = explicit(
        unit_q, unit_k, v, g.exp(),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], unit_k[:, t]),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], v[:, t]),
    )  # fmt: skip
    assert largest(gated_delta(q, k, v, g, beta, form=form)[0], kda) < ROUNDING
    assert largest(gated_delta(q, k, v, g, beta[..., None].expand_as(k), form=form)[0], kda) < ROUNDING


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_alpha_constant_over_channels_is_gdn(form):
    q, k, v, g, beta, _ = draws()
    beta, g, unit_q, unit_k = beta[..., 0], g[..., 0], normalize(q), normalize(k)
    gdn = explicit(
        unit_q, unit_k, v, g.exp()[..., None].expand_as(k),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], unit_k[:, t]),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], v[:, t]),
    )  # fmt: skip
    assert largest(gated_delta(q, k, v, g, beta, form=form)[0], gdn) < ROUNDING
    assert largest(gated_delta(q, k, v, g[..., None].expand_as(k), beta, form=form)[0], gdn) < ROUNDING


def test_alpha_of_one_is_deltanet():
    q, k, v, _, beta, _ = draws()
    beta, unit_q, unit_k = beta[..., 0], normalize(q), normalize(k)
    deltanet = explicit(
        unit_q, unit_k, v, torch.ones_like(k),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], unit_k[:, t]),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], v[:, t]),
    )  # fmt: skip
    assert largest(gated_delta(q, k, v, None, beta)[0], deltanet) < ROUNDING


def test_equal_gates_make_plus_the_shared_form():
    q, k, v, g, beta, _ = draws()
    assert largest(gated_delta(q, k, v, g, beta, beta)[0], gated_delta(q, k, v, g, beta)[0]) == 0


@pytest.mark.parametrize("power", ["sqrt", "linear"])
def test_plus_is_its_explicit_recurrence_with_values_of_another_width(power):
    q, k, v, g, beta, beta_v = draws(K=6, V=9)
    kt = beta.sqrt() * normalize(k)
    vt = (beta_v.sqrt() if power == "sqrt" else beta_v) * v
    plus = explicit(
        normalize(q), kt, vt, g.exp(), lambda t: outer(kt[:, t], kt[:, t]), lambda t: outer(kt[:, t], vt[:, t])
    )
    assert largest(gated_delta(q, k, v, g, beta, beta_v, value_scale=power)[0], plus) < ROUNDING


def test_separate_scalars_erase_with_one_and_write_with_the_root_of_both():
    q, k, v, g, beta, beta_v = draws()
    beta, beta_v, unit_k = beta[..., 0], beta_v[..., 0], normalize(k)
    expected = explicit(
        normalize(q), unit_k, v, g.exp(),
        lambda t: beta[:, t, ..., None, None] * outer(unit_k[:, t], unit_k[:, t]),
        lambda t: (beta * beta_v).sqrt()[:, t, ..., None, None] * outer(unit_k[:, t], v[:, t]),
    )  # fmt: skip
    assert largest(gated_delta(q, k, v, g, beta, beta_v)[0], expected) < ROUNDING


@pytest.mark.parametrize("gates", ["channel", "head", "closing"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunks_are_the_recurrence_and_so_are_their_explicit_gradients(tokens, gates):
    leaves = [x.requires_grad_() for x in inputs(2, tokens, 2, 8, 5, dtype=DOUBLE, gates=gates)]
    o, final = reference.recurrent(*leaves, None, 0.3)
    directions = torch.randn_like(o), torch.randn_like(final)
    truth = torch.autograd.grad((o, final), leaves, directions)
    with torch.no_grad():
        chunked = chunkwise.forward(*leaves, None, 0.3)
        gradients = chunkwise.backward(*directions, *leaves, None, 0.3)
    assert max(largest(*pair) for pair in zip(chunked, (o, final), strict=True)) < ROUNDING
    scales = [max(1.0, gradient.abs().max().item()) for gradient in truth]
    errors = [largest(*pair) / scale for *pair, scale in zip(gradients, truth, scales, strict=True)]
    assert max(errors) < ROUNDING


def test_packed_sequences_have_the_recurrences_gradients():
    edges = torch.tensor([0, 5, 135, 136, 200])
    leaves = [x.requires_grad_() for x in inputs(1, 200, 2, 8, 5, dtype=DOUBLE, sequences=4)]
    o, final = reference.recurrent(*leaves, edges, 0.3)
    directions = torch.randn_like(o), torch.randn_like(final)
    truth = torch.autograd.grad((o, final), leaves, directions)
    with torch.no_grad():
        gradients = chunkwise.backward(*directions, *leaves, edges, 0.3)
    assert max(largest(*pair) for pair in zip(gradients, truth, strict=True)) < 10 * ROUNDING


@pytest.mark.parametrize("step_limit", [1.0, 2.0])
def test_the_symmetric_transition_never_expands_and_the_left_gated_one_does(step_limit):
    """Page section 6: this tells the right variant from the naive one."""
    torch.manual_seed(0)
    draws, width = 20_000, 16
    k = torch.nn.functional.normalize(torch.randn(draws, width, dtype=DOUBLE), dim=-1)
    beta, alpha = step_limit * torch.rand(draws, width, dtype=DOUBLE), torch.rand(draws, width, dtype=DOUBLE)
    kt = beta.sqrt() * k
    symmetric = (torch.eye(width, dtype=DOUBLE) - outer(kt, kt)) * alpha[:, None]
    assert torch.linalg.matrix_norm(symmetric, 2).max().item() <= 1 + ROUNDING
    naive = (torch.eye(width, dtype=DOUBLE) - outer(beta * k, k)) * alpha[:, None].sqrt().ceil()
    assert torch.linalg.matrix_norm(naive, 2).max().item() > 1.05


def test_one_write_into_an_empty_state_returns_the_value_times_the_keys_strength():
    q, k, v, _, beta, beta_v = draws(T=1)
    kt, vt = beta.sqrt() * normalize(k), beta_v.sqrt() * v
    _, state = gated_delta(q, k, v, None, beta, beta_v)
    read = (kt[:, 0, :, None] @ state).squeeze(2)
    assert largest(read, kt[:, 0].square().sum(-1, keepdim=True) * vt[:, 0]) < ROUNDING


def test_writing_what_is_known_changes_nothing():
    q, k, v, _, beta, beta_v = draws(T=1)
    kt, vt = (beta.sqrt() * normalize(k))[:, 0], (beta_v.sqrt() * v)[:, 0]
    state = outer(kt / kt.square().sum(-1, keepdim=True), vt)
    _, after = gated_delta(q, k, v, None, beta, beta_v, initial_state=state)
    assert largest(after, state) < ROUNDING


def test_closed_and_open_gates_have_finite_gradients():
    """Logits of +-200: the root of beta is 0 or 1, and dbeta / (2 sqrt(beta)) would be 0 / 0."""
    q, k, v, g, _, _ = draws(T=5)
    leaves = [x.requires_grad_() for x in (q, k, v, torch.full_like(k, -2000.0), torch.full_like(v, 200.0))]
    gate, per_head = torch.zeros(2, 5, 2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    unit_q, scaled_k, scaled_v, _ = prepare(*leaves, gate, per_head, per_head)
    assert scaled_k.abs().max() == 0
    o, _ = chunk(unit_q, scaled_k, scaled_v, g)
    for gradient in torch.autograd.grad(o.sum(), leaves, allow_unused=True):
        assert torch.isfinite(gradient).all()


def test_the_root_of_a_gate_is_exact_far_below_what_a_sigmoid_in_float32_holds():
    z = torch.full((1, 1, 1, 4), -150.0)
    x, per_head = torch.ones(1, 1, 1, 4), torch.zeros(1)
    gate = torch.zeros(1, 1, 1)
    scaled = prepare(x, x, x, z, gate, gate, per_head, per_head)[1]
    exact = (0.5 * logsigmoid(z.double())).exp() * normalize(x.double())
    assert largest(scaled.double(), exact) / exact.max().item() < 1e-5
    assert scaled.min() > 0


def test_float32_stays_near_float64_at_gates_of_minus_269():
    """Page 2.9: blocks meet at a reference row, so nothing overflows."""
    exact = inputs(1, 300, 2, 32, 32, dtype=DOUBLE, gates="closing")
    truth, _ = reference.recurrent(*exact, None, 1.0)
    narrow = [x.float() for x in exact]
    o, final = chunk(*narrow, None, 1.0)
    assert torch.isfinite(final).all()
    assert (o.double() - truth).norm() / truth.norm() < 2048 * torch.finfo(torch.float32).eps / 2


def test_the_factored_form_would_have_overflowed():
    """The trap that the blocks avoid: e^-G over a chunk."""
    G = inputs(1, 64, 1, 32, 32, gates="closing")[3].cumsum(1)
    assert math.isinf((-G).exp().max().item())


@pytest.mark.parametrize("implementation", ["reference"])
def test_bfloat16_stays_within_the_pages_bars_at_2048_tokens(implementation):
    exact = inputs(1, 2048, 1, 32, 32, dtype=torch.bfloat16)[:4]
    leaves = [x.double().requires_grad_() for x in exact]
    truth, _ = chunkwise.forward(*leaves, None, None, 0.2)
    direction = torch.randn_like(truth).bfloat16()
    truths = torch.autograd.grad(truth, leaves, direction.double())
    narrow = [x.clone().requires_grad_() for x in exact]
    o, _ = chunk(*narrow, scale=0.2, implementation=implementation)
    gradients = torch.autograd.grad(o, narrow, direction)
    assert (o.double() - truth).norm() / truth.norm() <= 1e-2
    for gradient, exactly in zip(gradients, truths, strict=True):
        assert (gradient.double() - exactly).norm() / exactly.norm() <= 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "dtype"), [(1000, torch.float32), (200, torch.float16), (200, torch.bfloat16)])
def test_the_kernels_agree_with_float64_on_long_sequences(tokens, dtype):
    pytest.importorskip("triton")
    exact = inputs(1, tokens, 1, 16, 16, dtype=dtype)
    truth = chunkwise.forward(*(x.double() for x in exact), None, 0.25)
    for rule, name in ((chunk, "chunk"), (recurrent, "recurrent")):
        found = rule(*exact, scale=0.25, implementation="triton")
        for ours, exactly in zip(found, truth, strict=True):
            assert (ours.double() - exactly).norm() / exactly.norm() < OP.budget(name, ours, exact[0])


def test_the_maps_of_two_segments_compose_to_the_map_of_both():
    _, k, v, g, state = inputs(1, 90, 2, 6, 5, dtype=DOUBLE)
    pieces = [segment_map(*(x[:, cut] for x in (k, v, g))) for cut in (slice(0, 50), slice(50, 90))]
    M, N = compose(*pieces)
    assert max(largest(*pair) for pair in zip((M, N), segment_map(k, v, g), strict=True)) < ROUNDING
    assert largest(M @ state + N, chunk(k, k, v, g, state)[1]) < ROUNDING


def test_two_ranks_equal_one(tmp_path):
    """Outputs, last state and gradients, with 70 tokens on one rank and 31 on the other, over gloo."""
    worker = Path(__file__).with_name("context_parallel_worker.py")
    ranks = [subprocess.Popen([sys.executable, worker, tmp_path, str(rank), "2"]) for rank in range(2)]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    leaves = [x.requires_grad_() for x in inputs(2, 101, 2, 6, 5, dtype=DOUBLE)[:4]]
    o, state = chunk(*leaves, scale=0.3)
    gradients = torch.autograd.grad(o.cos().sum() + state.sin().sum(), leaves)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert largest(torch.cat((one[0], two[0]), 1), o) < ROUNDING
    assert largest(two[1], state) < ROUNDING
    for first, second, whole in zip(one[2:], two[2:], gradients, strict=True):
        assert largest(torch.cat((first, second), 1), whole) < ROUNDING
