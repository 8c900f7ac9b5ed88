"""What a component costs, as pure functions of its options and the model's shape."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from stackloom.core.devices import DTYPE_BYTES, Device
from stackloom.core.shapes import ModelShape


class Work(BaseModel):
    """What one step of a stage processes on one worker: the argument of `config.cost(work)`.

    Attributes:
        model: shape of the model that reaches the stage.
        device: where it runs.
        dtype: compute dtype, a torch dtype name.
        sequences: sequences of one forward pass (a micro-batch).
        sequence_length: tokens of each.
        micro_batches: forward passes of one optimizer step.
        steps: steps of the whole stage.
        trainable: parameters that receive gradients (an adapter narrows it).
        workers: worker processes that share the step.
        activation_checkpointing: whether each layer's activations are recomputed in the backward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelShape
    device: Device
    dtype: str
    sequences: int = Field(1, ge=0)
    sequence_length: int = Field(1, ge=0)
    micro_batches: int = Field(1, ge=1)
    steps: int = Field(1, ge=0)
    trainable: int = Field(0, ge=0)
    workers: int = Field(1, ge=1)
    activation_checkpointing: bool = False

    @property
    def element_bytes(self) -> float:
        """Bytes of one element of the compute dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.sequences * self.sequence_length


class Cost(BaseModel):
    """Bytes held at the same time on one worker, and work done per step.

    Attributes:
        parameters: parameters that the component adds.
        trainable: parameters of the component that receive gradients; None leaves the stage's set as it is.
        process_bytes: of the process itself, with its libraries loaded.
        weight_bytes, gradient_bytes, optimizer_bytes, activation_bytes, cache_bytes: bytes while the stage runs.
        flops: floating-point operations per step and worker.
        wire_bytes: bytes that one worker sends per step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    parameters: int = Field(0, ge=0)
    trainable: int | None = None
    process_bytes: float = Field(0, ge=0)
    weight_bytes: float = Field(0, ge=0)
    gradient_bytes: float = Field(0, ge=0)
    optimizer_bytes: float = Field(0, ge=0)
    activation_bytes: float = Field(0, ge=0)
    cache_bytes: float = Field(0, ge=0)
    flops: float = Field(0, ge=0)
    wire_bytes: float = Field(0, ge=0)

    @property
    def memory_bytes(self) -> float:
        """Everything held at the same time."""
        state = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return self.process_bytes + state + self.activation_bytes + self.cache_bytes

    def __add__(self, other: Cost) -> Cost:
        summed = type(self).model_fields.keys() - {"trainable"}
        sums = {name: getattr(self, name) + getattr(other, name) for name in summed}
        return Cost(**sums, trainable=self.trainable if other.trainable is None else other.trainable)
