"""Autotuning on a device, one named config in the interpreter, the explicit list for the compile gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton


def interpreting() -> bool:
    """Whether ``triton.jit`` makes interpreted functions (``TRITON_INTERPRET=1`` when they are decorated)."""
    return bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class KernelConfig:
    """One tiling of a kernel: its name, its constexpr values, warps per program and pipelining depth."""

    name: str
    constants: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 1


class TunedKernel:
    """A kernel with its explicit configs; launch it as ``kernel[grid](*args)``.

    On a device ``triton.autotune`` times the configs once per value of ``key``. Interpreted, where there is no driver
    to time with, the config named ``reference`` runs. A kernel belongs here only if its result does not depend on the
    config, or two processes could answer with different bits.

    Attributes:
        kernel: the ``triton.jit`` function.
        configs: all of them, by name.
        reference: the one that runs interpreted.
    """

    def __init__(self, kernel: Any, configs: Sequence[KernelConfig], reference: str, key: Sequence[str]) -> None:
        self.kernel = kernel
        self.configs = {config.name: config for config in configs}
        if len(self.configs) != len(configs):
            raise ValueError("two configs have one name")
        self.reference = self.configs[reference]
        self._tuned = (
            None
            if interpreting()
            else triton.autotune(configs=[_triton_config(c) for c in configs], key=list(key))(kernel)
        )

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """The launcher for ``grid``, a tuple or a function of the constants."""
        if self._tuned is not None:
            return self._tuned[grid]
        constants = dict(self.reference.constants)
        return lambda *args, **kwargs: self.kernel[grid](*args, **kwargs, **constants)


def tuned(configs: Sequence[KernelConfig], *, reference: str, key: Sequence[str]) -> Callable[[Any], TunedKernel]:
    """Decorator over ``triton.jit``; see :class:`TunedKernel`.

    Raises:
        KeyError: no config is named ``reference``.
        ValueError: two configs have one name.
    """
    return lambda kernel: TunedKernel(kernel, configs, reference, key)


def _triton_config(config: KernelConfig) -> triton.Config:
    return triton.Config(dict(config.constants), num_warps=config.num_warps, num_stages=config.num_stages)
