"""Makes Triton's interpreter tell the truth about bfloat16. For tests: it patches private names of Triton.

The interpreter stores bfloat16 as uint16 and computes on the *bit patterns*: a matmul came back 8.6e9 off without an
error, and the cast from float32 truncates instead of rounding to nearest even. :func:`install` makes every operation
widen to float32, compute, and round back. numpy is the interpreter's own dependency; nothing outside of tests imports
this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from .autotune import interpreting

Handle = interpreter.TensorHandle
_INSTALLED = "_stackloom_bfloat16_by_value"


def install() -> None:
    """Patch the interpreter of this process; a second call does nothing.

    Raises:
        RuntimeError: ``TRITON_INTERPRET`` is not set, so kernels would be compiled, not interpreted.
    """
    if not interpreting():
        raise RuntimeError("set TRITON_INTERPRET=1 before kernels are imported, then install the interpreter fixes")
    builder = interpreter.InterpreterBuilder
    if getattr(builder, _INSTALLED, False):
        return
    _patch_arithmetic(builder)
    _patch_casts(builder)
    _patch_reductions()
    _skip_copy_back_to_self()
    setattr(builder, _INSTALLED, True)


def _is_bfloat16(*handles: Any) -> bool:
    return any(handle.dtype.scalar == tl.bfloat16 for handle in handles)


def _widen(handle: Any) -> np.ndarray:
    """The handle's numbers: float32 for a bfloat16 handle, its own data otherwise."""
    return _bits_to_float32(handle.data) if _is_bfloat16(handle) else handle.data


def _bits_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bits(values: np.ndarray) -> np.ndarray:
    """Round to nearest even, as torch and the hardware do; every NaN becomes the quiet one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _as_handle(values: np.ndarray, dtype: Any) -> Any:
    """A handle of ``dtype`` holding ``values``; a comparison's booleans stay booleans."""
    if values.dtype == np.bool_:
        return Handle(values, tl.int1)
    if dtype == tl.bfloat16:
        return Handle(_float32_to_bits(values), tl.bfloat16)
    return Handle(values.astype(interpreter._get_np_dtype(dtype)), dtype)


def _patch_arithmetic(builder: Any) -> None:
    binary, unary, ternary = builder.binary_op, builder.unary_op, builder.ternary_op
    fma, dot = builder.create_fma, builder.create_dot

    def binary_op(self, lhs, rhs, op):
        return (
            _as_handle(op(_widen(lhs), _widen(rhs)), lhs.dtype.scalar)
            if _is_bfloat16(lhs, rhs)
            else binary(self, lhs, rhs, op)
        )

    def unary_op(self, arg, op):
        return _as_handle(op(_widen(arg)), arg.dtype.scalar) if _is_bfloat16(arg) else unary(self, arg, op)

    def ternary_op(self, lhs, rhs, other, op):
        if op is np.where or not _is_bfloat16(lhs, rhs, other):  # a select moves bits, and keeps them
            return ternary(self, lhs, rhs, other, op)
        return _as_handle(op(_widen(lhs), _widen(rhs), _widen(other)), other.dtype.scalar)

    def create_fma(self, x, y, z):
        return (
            _as_handle(_widen(x) * _widen(y) + _widen(z), z.dtype.scalar)
            if _is_bfloat16(x, y, z)
            else fma(self, x, y, z)
        )

    def create_dot(self, a, b, d, *options):
        if not _is_bfloat16(a, b):
            return dot(self, a, b, d, *options)
        return Handle(np.matmul(_widen(a).astype(np.float32), _widen(b).astype(np.float32)) + d.data, d.dtype.scalar)

    builder.binary_op, builder.unary_op, builder.ternary_op = binary_op, unary_op, ternary_op
    builder.create_fma, builder.create_dot = create_fma, create_dot


def _patch_casts(builder: Any) -> None:
    plain_cast, plain_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return plain_cast(self, src, dst_type)
        if target == tl.bfloat16:
            return Handle(_float32_to_bits(src.data.astype(np.float32)), tl.bfloat16)
        wide = Handle(_widen(src), tl.float32)
        return wide if target == tl.float32 else plain_cast(self, wide, dst_type)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if dst_type.scalar == tl.bfloat16:
            return Handle(_float32_to_bits(_widen(src).astype(np.float32)), tl.bfloat16)
        if not _is_bfloat16(src):
            return plain_fp_to_fp(self, src, dst_type, rounding_mode)
        wide = Handle(_widen(src), tl.float32)
        return wide if dst_type.scalar == tl.float32 else plain_fp_to_fp(self, wide, dst_type, rounding_mode)

    # The other casts (create_si_to_fp, create_fp_trunc, ...) look `cast_impl` up on the instance, and so find this one.
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.get_bf16 = lambda self, value: Handle(_float32_to_bits(np.array([value], np.float32)), tl.bfloat16)


def _patch_reductions() -> None:
    """``tl.sum``, ``tl.cumsum`` and ``tl.cumprod`` of bfloat16 work in float32; max and min widen by themselves."""

    def by_value(operation: Any, wrap: Any) -> Any:
        def method(self, tensor):
            if tensor.dtype.scalar != tl.bfloat16:
                return operation(self, tensor)
            wide = self.to_tensor(_bits_to_float32(tensor.handle.data), tl.float32)
            result = operation(self, wide)
            value = result[0] if isinstance(result, list) else result
            return wrap(self.to_tensor(_float32_to_bits(value.handle.data), tl.bfloat16))

        return method

    reduce, scan = interpreter.ReduceOps, interpreter.ScanOps
    reduce.sum = by_value(reduce.sum, lambda value: value)
    scan.cumsum = by_value(scan.cumsum, lambda value: [value])
    scan.cumprod = by_value(scan.cumprod, lambda value: [value])


def _skip_copy_back_to_self() -> None:
    """CPU arguments are used in place, yet the interpreter copies each whole storage onto itself afterwards.

    That would touch every page of a case that addresses gigabytes.
    """
    executor = interpreter.GridExecutor
    restore = executor._restore_args_dev

    def restore_unless_in_place(self, args_dev, args_hst, kwargs, kwargs_hst):
        tensors = [arg for arg in (*args_dev, *kwargs.values()) if hasattr(arg, "data_ptr")]
        if not all(getattr(tensor, "is_cpu", False) for tensor in tensors):
            restore(self, args_dev, args_hst, kwargs, kwargs_hst)

    executor._restore_args_dev = restore_unless_in_place
