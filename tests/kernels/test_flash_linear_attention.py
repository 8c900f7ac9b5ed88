"""Our references give what flash-linear-attention's plain torch functions give on the same inputs."""

import pytest
import torch

from stackloom.kernels.gated_delta import gated_delta, normalize

pytestmark = pytest.mark.slow  # importing fla takes ten seconds

BAR = 512 * torch.finfo(torch.float32).eps / 2  # fla computes in float32; sums over 64 tokens


@pytest.fixture(scope="module")
def draws():
    torch.manual_seed(0)
    q, k = normalize(torch.randn(2, 128, 3, 16)), normalize(torch.randn(2, 128, 3, 16))
    v, state = torch.randn(2, 128, 3, 24), torch.randn(2, 3, 16, 24)
    return {"q": q, "k": k, "v": v, "g": -torch.rand(2, 128, 3, 16), "beta": torch.rand(2, 128, 3), "state": state}


def far(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def in_float64(draws, g, beta):
    given = [draws[name].double() for name in "qkv"]
    return gated_delta(
        *given,
        None if g is None else g.double(),
        beta.double(),
        initial_state=draws["state"].double(),
        normalized=True,
    )


@pytest.mark.parametrize("name", ["naive_recurrent_kda", "naive_chunk_kda"])
def test_kda(draws, name):
    naive = pytest.importorskip("fla.ops.kda.naive")
    theirs = getattr(naive, name)(
        *(draws[x] for x in ("q", "k", "v", "g", "beta")), initial_state=draws["state"], output_final_state=True
    )
    for ours, expected in zip(in_float64(draws, draws["g"], draws["beta"]), theirs, strict=True):
        assert far(expected, ours) < BAR


@pytest.mark.parametrize("name", ["naive_recurrent_gated_delta_rule", "naive_chunk_gated_delta_rule"])
def test_gated_deltanet(draws, name):
    naive = pytest.importorskip("fla.ops.gated_delta_rule.naive")
    g = draws["g"][..., 0]
    theirs = getattr(naive, name)(
        draws["q"], draws["k"], draws["v"], beta=draws["beta"], g=g, initial_state=draws["state"],
        output_final_state=True,
    )  # fmt: skip
    for ours, expected in zip(in_float64(draws, g, draws["beta"]), theirs, strict=True):
        assert far(expected, ours) < BAR


def test_deltanet(draws):
    naive = pytest.importorskip("fla.ops.delta_rule.naive")
    heads_first = [draws[x].transpose(1, 2) for x in ("q", "k", "v", "beta")]
    o, state = naive.delta_rule_recurrence(*heads_first, initial_state=draws["state"])
    ours = in_float64(draws, None, draws["beta"])
    assert far(o.transpose(1, 2), ours[0]) < BAR
    assert far(state, ours[1]) < BAR
