"""Interpreted bfloat16 means what it means on the device."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402


@triton.jit
def _dot(a, b, c, out, N: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = rows * N + columns
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), tl.load(c + at)))


@triton.jit
def _cast(x, out, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(out + index, tl.load(x + index).to(out.dtype.element_ty))


@triton.jit
def _arithmetic(a, b, out, OP: tl.constexpr, N: tl.constexpr):
    index = tl.arange(0, N)
    x, y = tl.load(a + index), tl.load(b + index)
    if OP == "add":
        z = x + y
    elif OP == "multiply":
        z = x * y
    elif OP == "scale":
        z = x * 2.5
    elif OP == "negate":
        z = -x
    elif OP == "clamp":
        z = tl.clamp(x, tl.full((N,), -0.5, tl.bfloat16), tl.full((N,), 0.5, tl.bfloat16))
    elif OP == "select":
        z = tl.where(x < y, x, y)
    elif OP == "maximum":
        z = tl.maximum(x, y)
    elif OP == "fma":
        z = tl.fma(x, y, x)
    elif OP == "running sum":
        z = tl.cumsum(x, axis=0)
    else:
        z = tl.zeros((N,), tl.bfloat16) + tl.sum(x, axis=0)
    tl.store(out + index, z.to(tl.bfloat16))


pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled in this run")


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_a_bfloat16_dot_equals_torch():
    a, b = _normal(16, 16), _normal(16, 16, seed=1)
    c = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    out = torch.empty(16, 16)
    _dot[(1,)](a, b, c, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float() + c, rtol=0, atol=16 * torch.finfo(torch.float32).eps * 16)


def _awkward() -> torch.Tensor:
    """Ties, both neighbours of ties, subnormals, overflow to infinity, infinities, NaN, and every exponent."""
    bits = torch.arange(0, 2**16, 257, dtype=torch.int32)[:, None] << 16
    tails = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    values = (bits | tails).flatten().view(torch.float32)
    return torch.cat([values, torch.full((2048 - values.numel(),), float("nan"))])


def test_the_cast_from_float32_is_bit_equal_to_torch():
    x = _awkward()
    out = torch.empty(2048, dtype=torch.bfloat16)
    _cast[(1,)](x, out, N=2048)
    expected = x.bfloat16()
    assert torch.equal(out.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(out.view(torch.int16)[number], expected.view(torch.int16)[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_the_cast_to_another_type_is_equal_to_torch(dtype):
    x = _normal(2048) * 100
    out = torch.empty(2048, dtype=dtype)
    _cast[(1,)](x, out, N=2048)
    assert torch.equal(out, x.to(dtype))


def test_an_integer_becomes_the_nearest_bfloat16():
    x = torch.arange(-1024, 1024, dtype=torch.int32) * 37
    out = torch.empty(2048, dtype=torch.bfloat16)
    _cast[(1,)](x, out, N=2048)
    assert torch.equal(out, x.bfloat16())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add", lambda a, b: a + b),
        ("multiply", lambda a, b: a * b),
        ("scale", lambda a, b: a * 2.5),
        ("negate", lambda a, b: -a),
        ("clamp", lambda a, b: a.clamp(-0.5, 0.5)),
        ("select", torch.minimum),
        ("maximum", torch.maximum),
        ("fma", lambda a, b: (a.float() * b.float() + a.float()).bfloat16()),
    ],
)
def test_elementwise_arithmetic_is_bit_equal_to_torch(name, expected):
    a, b = _normal(64), _normal(64, seed=1)
    out = torch.empty(64, dtype=torch.bfloat16)
    _arithmetic[(1,)](a, b, out, OP=name, N=64)
    assert torch.equal(out, expected(a, b))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", lambda a: a.float().sum().bfloat16().expand(64)),
        ("running sum", lambda a: a.float().cumsum(0).bfloat16()),
    ],
)
def test_sums_add_numbers_and_not_bit_patterns(name, expected):
    a = (torch.arange(64) % 7).bfloat16()  # sums of small integers are exact in float32
    out = torch.empty(64, dtype=torch.bfloat16)
    _arithmetic[(1,)](a, a, out, OP=name, N=64)
    assert torch.equal(out, expected(a))


def test_installing_twice_changes_nothing():
    from stackloom.kernels.tooling import interpreter

    before = dict(vars(triton.runtime.interpreter.InterpreterBuilder))
    interpreter.install()
    assert dict(vars(triton.runtime.interpreter.InterpreterBuilder)) == before


def test_installing_where_kernels_are_compiled_is_refused(python):
    result = python("-c", "from stackloom.kernels.tooling import interpreter; interpreter.install()")
    assert result.returncode == 1
    assert "set TRITON_INTERPRET=1 before kernels are imported" in result.stderr
