"""The author kit: one contract class per slot, and what tests of a plugin need.

Example:
    >>> from stackloom.testing import OptimizerContract
    >>> class TestMySGD(OptimizerContract):
    ...     plugin = "optimizer.my-sgd"
    ...     options = {"lr": 0.1}

Nothing is imported until it is used, so that pytest loads its plugin without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackloom.testing.comparison import relative_error
    from stackloom.testing.contracts.adapter import AdapterContract
    from stackloom.testing.contracts.algorithm import AlgorithmContract
    from stackloom.testing.contracts.attention import AttentionContract
    from stackloom.testing.contracts.context import ContextContract
    from stackloom.testing.contracts.data import DataContract
    from stackloom.testing.contracts.environment import ByteChat, EnvironmentContract, ScriptedGenerator
    from stackloom.testing.contracts.model import ModelContract
    from stackloom.testing.contracts.optimizer import OptimizerContract
    from stackloom.testing.contracts.plugin import PluginContract
    from stackloom.testing.contracts.quantizer import QuantizerContract
    from stackloom.testing.contracts.reasoner import ReasonerContract
    from stackloom.testing.contracts.tracker import TrackerContract
    from stackloom.testing.contracts.transform import TransformContract
    from stackloom.testing.llama import llama_shape, tiny_llama
    from stackloom.testing.lookup import build, contract_for, record
    from stackloom.testing.tiny import tiny_parameters, tiny_shape
    from stackloom.testing.tokenizer import tiny_tokenizer

_HOMES = {
    "stackloom.testing.comparison": ("relative_error",),
    "stackloom.testing.contracts.adapter": ("AdapterContract",),
    "stackloom.testing.contracts.algorithm": ("AlgorithmContract",),
    "stackloom.testing.contracts.attention": ("AttentionContract",),
    "stackloom.testing.contracts.context": ("ContextContract",),
    "stackloom.testing.contracts.data": ("DataContract",),
    "stackloom.testing.contracts.environment": ("ByteChat", "EnvironmentContract", "ScriptedGenerator"),
    "stackloom.testing.contracts.model": ("ModelContract",),
    "stackloom.testing.contracts.optimizer": ("OptimizerContract",),
    "stackloom.testing.contracts.plugin": ("PluginContract",),
    "stackloom.testing.contracts.quantizer": ("QuantizerContract",),
    "stackloom.testing.contracts.reasoner": ("ReasonerContract",),
    "stackloom.testing.contracts.tracker": ("TrackerContract",),
    "stackloom.testing.contracts.transform": ("TransformContract",),
    "stackloom.testing.llama": ("llama_shape", "tiny_llama"),
    "stackloom.testing.lookup": ("build", "contract_for", "record"),
    "stackloom.testing.tiny": ("tiny_parameters", "tiny_shape"),
    "stackloom.testing.tokenizer": ("tiny_tokenizer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AdapterContract",
    "AlgorithmContract",
    "AttentionContract",
    "ByteChat",
    "ContextContract",
    "DataContract",
    "EnvironmentContract",
    "ModelContract",
    "OptimizerContract",
    "PluginContract",
    "QuantizerContract",
    "ReasonerContract",
    "ScriptedGenerator",
    "TrackerContract",
    "TransformContract",
    "build",
    "contract_for",
    "llama_shape",
    "record",
    "relative_error",
    "tiny_llama",
    "tiny_parameters",
    "tiny_shape",
    "tiny_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'stackloom.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
