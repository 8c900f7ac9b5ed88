"""A decoder's blocks one after the other, each with the inputs that reach it behind the blocks before it.

Shape legend: T tokens of a sequence, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stackloom.core.errors import FitError


@dataclass
class Block:
    """One decoder layer.

    Attributes:
        path: dotted module path.
        module: maps hidden states to hidden states.
        inputs: per calibration sequence (1, T, D), behind the earlier blocks as they were when this one was reached.
        arguments: per sequence the other arguments that the model gives it (positions, mask).
    """

    path: str
    module: nn.Module
    inputs: list[Tensor]
    arguments: list[dict[str, Any]]

    def run(self, index: int, hidden: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the output (1, T, D) for hidden states in the place of sequence `index`.

        Args:
            index: of the sequence whose other arguments are taken.
            hidden: (1, T, D).
            tensors: by name within the block, in the place of its own parameters.
        """
        if tensors is None:
            found = self.module(hidden, **self.arguments[index])
        else:
            found = functional_call(self.module, dict(tensors), (hidden,), self.arguments[index])
        return found[0] if isinstance(found, tuple) else found

    @torch.no_grad()
    def outputs(self, inputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the outputs of all sequences as the block is now, for its own inputs or for others."""
        return [self.run(index, hidden) for index, hidden in enumerate(self.inputs if inputs is None else inputs)]


def walk(model: Any, calibration: Sequence[Tensor], where: str) -> Iterator[Block]:
    """Yield the blocks from the first to the last; whatever is done to one shows in the inputs of the next.

    Args:
        model: a `transformers.PreTrainedModel`.
        calibration: token ids (T,) on the model's device.
        where: the plugin, for messages.

    Raises:
        FitError: the model has no decoder with a list of layers.
    """
    blocks = decoder_blocks(model, where)
    inputs, arguments = _record(model, blocks, calibration)
    for path, module in blocks.items():
        block = Block(path, module, inputs, arguments[path])
        yield block
        inputs = block.outputs()


def decoder_blocks(model: Any, where: str) -> dict[str, nn.Module]:
    """Return the decoder's layers by path, in order.

    Raises:
        FitError: there are none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise FitError(f"{type(model).__name__} has no decoder with a list of layers", where=where)
    paths = {id(module): path for path, module in model.named_modules()}
    return {paths[id(layer)]: layer for layer in layers}


def _record(
    model: Any, blocks: Mapping[str, nn.Module], calibration: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, list[dict[str, Any]]]]:
    """Run the model and return what reaches its first block, and each block's other arguments."""
    inputs: list[Tensor] = []
    arguments: dict[str, list[dict[str, Any]]] = {path: [] for path in blocks}
    first = next(iter(blocks))

    def see(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path == first:
                inputs.append((args[0] if args else kwargs["hidden_states"]).detach())
            arguments[path].append({name: value for name, value in kwargs.items() if name != "hidden_states"})

        return hook

    handles = [module.register_forward_pre_hook(see(path), with_kwargs=True) for path, module in blocks.items()]
    try:
        with torch.no_grad():
            for tokens in calibration:
                model(tokens[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, arguments
