"""The stages of a stack: their options, the slots they consume, and what they cost besides their components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from stackloom.core.config import ComponentConfig, option
from stackloom.core.cost import Cost, Work
from stackloom.core.devices import DTYPE_BYTES
from stackloom.core.fit import Fit, FitContext
from stackloom.core.ref import Ref, RefTo

CPU_ELEMENT = 4.4  # resident bytes per activation on a CPU, in bf16 and fp32: copies, holes in the heap [measured]
ROWS = 32  # sequences that the engine computes together
PROMPT, RESULT = 256, 32  # tokens of a task and of a tool's answer [house estimate]
SHARED_BEGINNINGS = 256 * 1024**2  # bytes of the engine's pages for what prompts begin with


class StageConfig(ComponentConfig):
    """Base of a stage's options. A field marked with RefTo is a slot that the stage consumes.

    Attributes:
        read_with: per slot, the options that only its component reads; giving one without the other is an error.
    """

    kind: ClassVar[str]
    read_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @model_validator(mode="after")
    def _reads_what_is_given(self) -> Self:
        for slot, names in self.read_with.items():
            given = [name for name in names if name in self.model_fields_set and getattr(self, name) is not None]
            if given and getattr(self, slot) is None:
                raise ValueError(f"{given[0]} is read only with {slot}: give {slot}, or leave {given[0]} out")
        return self

    def work(self, base: Work) -> Work:
        """Return what one step of this stage processes; `base` holds the model, device and resources."""
        return base

    def share(self, place: str, work: Work) -> Work:
        """Return the part of `work` that concerns the component at `place`, as `nested` names it."""
        return work


class Train(StageConfig):
    """Causal language-model training with a loss mask."""

    kind = "train"

    data: Annotated[Ref | ComponentConfig, RefTo("data")] = option(description="examples to train on")
    adapter: Annotated[Ref | ComponentConfig | None, RefTo("adapter")] = option(
        None, "trains a few parameters beside frozen weights; null trains all"
    )
    optimizer: Annotated[
        Ref | ComponentConfig | dict[str, Ref | ComponentConfig], RefTo("optimizer", many="patterns")
    ] = option(description="updates the parameters; several by patterns of parameter names, the first that fits counts")
    transform: Annotated[tuple[Ref | ComponentConfig, ...], RefTo("transform", many="list")] = option(
        (), "rewrite weights before the first step and as training goes on, each when its options say"
    )
    steps: int = option(description="optimizer steps", unit="steps", gt=0, le=100_000_000)
    batch_size: int = option(8, "sequences per optimizer step, over all workers", unit="sequences", gt=0)
    micro_batch_size: int = option(1, "sequences of one forward pass on one worker", unit="sequences", gt=0)
    sequence_length: int = option(1024, "tokens per sequence; packed with examples", unit="tokens", gt=1, le=16_777_216)
    schedule: Literal["constant", "cosine", "linear"] = option("cosine", "shape of the learning rate after warm-up")
    warmup_steps: int = option(0, "steps over which the learning rate rises from zero", unit="steps", ge=0)
    final_lr_fraction: float = option(0.1, "last learning rate, relative to its peak", unit="fraction", ge=0, le=1)
    clip_norm: float | None = option(1.0, "largest gradient norm; null never clips", gt=0)
    checkpoint_every: int = option(50, "steps between two checkpoints", unit="steps", gt=0)

    @model_validator(mode="after")
    def _adds_up(self) -> Train:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        if self.optimizer == {}:
            raise ValueError("optimizer names no pattern: give one plugin, or patterns that end with '*'")
        return self

    def fit(self, ctx: FitContext) -> Fit:
        """Sequences must fit the model's positions, workers get whole micro-batches, one optimizer each parameter."""
        if isinstance(self.optimizer, dict) and self.adapter is None:
            names = [name for name, _ in ctx.model.sizes()]
            if left := unassigned(names, self.optimizer):
                return Fit.no(f"optimizer: {left}")
        if self.batch_size % (share := ctx.workers * self.micro_batch_size):
            return Fit.no(
                f"batch_size {self.batch_size} is no multiple of {share}: "
                f"{ctx.workers} workers with micro-batches of {self.micro_batch_size}"
            )
        return fits_positions(self.sequence_length, ctx)

    def work(self, base: Work) -> Work:
        """One micro-batch per forward pass; the batch is shared between workers."""
        per_worker = -(-self.batch_size // base.workers)
        return base.model_copy(
            update={
                "sequences": self.micro_batch_size,
                "sequence_length": self.sequence_length,
                "steps": self.steps,
                "micro_batches": max(1, -(-per_worker // self.micro_batch_size)),
                "trainable": base.model.parameters,
            }
        )

    def share(self, place: str, work: Work) -> Work:
        """One optimizer of several updates what its pattern takes; of an adapter's parameters each counts all."""
        if not isinstance(self.optimizer, dict) or self.adapter is not None or not place.startswith("optimizer["):
            return work
        taken = [
            size
            for name, size in work.model.sizes()
            if place.startswith(f"optimizer[{first_match(name, self.optimizer)}]")
        ]
        return work.model_copy(update={"trainable": sum(taken)})

    def cost(self, work: Work) -> Cost:
        """Gradients in the compute dtype, saved activations, fp32 logits, and three forward passes' worth of FLOPs."""
        forward = work.model.forward_flops(work.tokens, work.sequence_length // 2)
        frozen = work.trainable < work.model.parameters // 2  # gradients pass through the weights, not into them
        passes = (2 if frozen else 3) + work.activation_checkpointing
        return Cost(
            gradient_bytes=work.trainable * work.element_bytes,
            activation_bytes=activation_bytes(work),
            flops=passes * forward * work.micro_batches,
            wire_bytes=2.0 * work.trainable * work.element_bytes * (work.workers - 1) / work.workers,
        )


def fits_positions(length: int, ctx: FitContext) -> Fit:
    """Say whether the model has as many positions as a sequence has tokens."""
    if length > ctx.model.max_positions:
        return Fit.no(f"sequence_length {length} exceeds the model's {ctx.model.max_positions} positions")
    return Fit.yes()


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """Return the first shell pattern that names a parameter, or None.

    Example:
        >>> first_match("model.norm.weight", ["*_proj.weight", "*"])
        '*'
    """
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def unassigned(names: Iterable[str], patterns: Iterable[str]) -> str:
    """Say which parameter no pattern takes, or which pattern takes none; "" where all is well."""
    found = {name: first_match(name, patterns) for name in names}
    if left := [name for name, pattern in found.items() if pattern is None]:
        return f"no pattern takes {left[0]}; let the last one be '*'"
    idle = [pattern for pattern in patterns if pattern not in found.values()]
    return f"nothing is left for the pattern {idle[0]!r}" if idle else ""


def activation_bytes(work: Work) -> float:
    """Bytes saved for the backward pass of one micro-batch with fused attention.

    Per token and layer, in elements of the compute dtype: both norms' inputs and fp32 copies (12 hidden), projections
    and rotated copies (4 (query + key/value)), the MLP's four intermediates. The head keeps logits once in the compute
    dtype and twice in fp32 (cast and gradient). [house estimate; the run's measured peak is reported beside it]
    """
    model = work.model
    element = CPU_ELEMENT if work.device.kind == "cpu" else work.element_bytes
    width = (model.heads + model.kv_heads) * model.head_dim
    mlp = model.intermediate * max(model.experts_per_token, 1)
    layer = work.tokens * (12 * model.hidden + 4 * width + 4 * mlp) * element
    head = work.tokens * model.vocab * (element + 2 * DTYPE_BYTES["float32"])
    if work.activation_checkpointing:
        return head + layer + work.tokens * model.hidden * model.layers * element
    return head + layer * model.layers


class Transform(StageConfig):
    """Weights rewritten once, each under an invariant that is checked on real tokens."""

    kind = "transform"

    transform: Annotated[tuple[Ref | ComponentConfig, ...], RefTo("transform", many="list")] = option(
        description="what rewrites the weights, one after the other", min_length=1
    )
    data: Annotated[Ref | ComponentConfig, RefTo("data")] = option(description="tokens to check the invariant on")
    sequences: int = option(4, "sequences of the check", unit="sequences", gt=0)
    sequence_length: int = option(256, "tokens of each", unit="tokens", gt=1)

    def fit(self, ctx: FitContext) -> Fit:
        """The check's sequences must not be longer than the model's positions."""
        return fits_positions(self.sequence_length, ctx)

    def work(self, base: Work) -> Work:
        """Every sequence of the check alone."""
        return base.model_copy(update={"sequences": 1, "sequence_length": self.sequence_length})

    def cost(self, work: Work) -> Cost:
        """The logits of all sequences before a transform and of one after it, and a forward pass for each."""
        logits = work.tokens * work.model.vocab * DTYPE_BYTES["float32"]
        passes = 2 * self.sequences * len(self.transform)
        return Cost(
            activation_bytes=(self.sequences + 2) * logits,
            flops=passes * work.model.forward_flops(work.tokens, work.sequence_length // 2),
        )


class Quantize(StageConfig):
    """Post-training quantization."""

    kind = "quantize"
    read_with = {"data": ("calibration_sequences", "sequence_length")}  # noqa: RUF012 - the base declares the ClassVar

    quantizer: Annotated[Ref | ComponentConfig, RefTo("quantizer")] = option(description="how weights are stored")
    data: Annotated[Ref | ComponentConfig | None, RefTo("data")] = option(
        None, "calibration examples; null gives a quantizer that needs them none"
    )
    calibration_sequences: int = option(32, "calibration sequences", unit="sequences", gt=0)
    sequence_length: int = option(512, "tokens of each", unit="tokens", gt=1)

    def fit(self, ctx: FitContext) -> Fit:
        """Calibration sequences must not be longer than the model's positions."""
        return Fit.yes() if self.data is None else fits_positions(self.sequence_length, ctx)

    def work(self, base: Work) -> Work:
        """All calibration tokens in one step; none without data."""
        if self.data is None:
            return base
        return base.model_copy(
            update={"sequences": self.calibration_sequences, "sequence_length": self.sequence_length}
        )


class Evaluate(StageConfig):
    """Pass rates on an environment's tasks, and perplexity on data; the model goes through unchanged."""

    kind = "evaluate"
    read_with = {  # noqa: RUF012 - the base declares the ClassVar
        "environment": ("reasoner", "context", "split", "tasks", "turns", "max_tokens", "temperature"),
        "data": ("sequences", "sequence_length"),
    }

    environment: Annotated[Ref | ComponentConfig | None, RefTo("environment")] = option(None, "tasks to attempt")
    reasoner: Annotated[Ref | ComponentConfig | None, RefTo("reasoner")] = option(
        None, "how attempts become one answer; null makes a single attempt"
    )
    context: Annotated[Ref | ComponentConfig | None, RefTo("context")] = option(
        None, "what an attempt that grows too long keeps in sight; null keeps all"
    )
    data: Annotated[Ref | ComponentConfig | None, RefTo("data")] = option(None, "text whose perplexity is measured")
    split: Literal["train", "held-out"] = option("held-out", "which of the environment's tasks")
    tasks: int = option(200, "how many tasks", unit="tasks", gt=0)
    turns: int = option(8, "most assistant messages of one attempt", unit="messages", gt=0)
    max_tokens: int = option(160, "most tokens of one assistant message", unit="tokens", gt=0)
    temperature: float = option(0.0, "sampling temperature of an attempt", ge=0)
    sequences: int = option(64, "sequences of the perplexity", unit="sequences", gt=0)
    sequence_length: int = option(512, "tokens of each", unit="tokens", gt=1)
    compare_to_float: bool = option(
        False, "on the data also: divergence from, and paired losses against, the model before quantization"
    )
    cloze: int = option(
        0, "multiple-choice items on the data, the text's continuation among others", unit="items", ge=0
    )

    @model_validator(mode="after")
    def _measures_something(self) -> Evaluate:
        if self.environment is None and self.data is None:
            raise ValueError("nothing to evaluate: give an environment, data, or both")
        if self.data is None and (self.compare_to_float or self.cloze):
            raise ValueError("compare_to_float and cloze need data")
        return self

    def work(self, base: Work) -> Work:
        """One pass over all tasks; a reasoner reads in it what a single attempt writes."""
        return base.model_copy(update={"sequences": self.tasks, "sequence_length": 2 * self.max_tokens})

    def cost(self, work: Work) -> Cost:
        """A second model where both are compared; the engine's own weights, and its cache for the longest attempts.

        FLOPs are those of attempts that write two full messages, and of the text whose perplexity is measured.
        """
        weights = work.model.parameters * work.element_bytes
        tokens = self.sequences * self.sequence_length if self.data is not None else 0
        cache, copies = 0.0, int(self.compare_to_float)
        if self.environment is not None:
            longest = min(work.model.max_positions, PROMPT + self.turns * (self.max_tokens + RESULT))
            capacity = 1 << (longest - 1).bit_length()
            cache = work.model.cache_bytes(ROWS * capacity, work.element_bytes) + SHARED_BEGINNINGS
            tokens += 2 * self.max_tokens * self.tasks
            copies += 1
        return Cost(
            weight_bytes=copies * weights,
            cache_bytes=cache,
            flops=work.model.forward_flops(tokens, self.sequence_length // 2),
        )


class Export(StageConfig):
    """A folder that `AutoModelForCausalLM.from_pretrained` loads without stackloom."""

    kind = "export"

    format: Literal["hf", "compressed-tensors"] = option(
        "hf", "hf: quantized weights are written dequantized; compressed-tensors: as integers with float scales"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("bfloat16", "of the written floats, scales excepted")
    weights_only: bool = option(False, "compressed-tensors alone: no int8 activations; int4 weights take half a byte")

    @model_validator(mode="after")
    def _reads_every_option(self) -> Export:
        if self.weights_only and self.format != "compressed-tensors":
            raise ValueError("weights_only says nothing without format: compressed-tensors")
        return self


STAGES: dict[str, type[StageConfig]] = {stage.kind: stage for stage in (Train, Transform, Quantize, Evaluate, Export)}
