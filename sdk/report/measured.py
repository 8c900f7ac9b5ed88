"""What stages leave beside their artifact: `metrics.json`, `layers.json`, `rewrites.json` and the run's `run.json`.

Unknown keys are for other readers and pass; a known key of another type means a damaged file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from stackloom.core.errors import ArtifactError


class _Measured(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Estimate(_Measured):
    """A value with its 95 per cent interval; None where too little was measured."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    count: int = 0


class Perplexity(_Measured):
    """Perplexity over sequences."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    sequences: int = 0


class Choices(Estimate):
    """Share of multiple-choice items answered right; `chance` is that of a guess."""

    chance: float | None = None


class AgainstFloat(_Measured):
    """What quantizing did to the predictions, token by token, in nats; `agreement` on which token comes first."""

    kl: Estimate | None = None
    nll_difference: Estimate | None = None
    agreement: Estimate | None = None


class Outcome(_Measured):
    """How one task ended; an invalid one is masked."""

    kind: str
    passed: bool
    valid: bool


class Call(_Measured):
    """A tool call of a transcript."""

    name: str
    arguments: dict[str, Any] = {}


class Message(_Measured):
    """A message of a transcript."""

    role: str
    content: str | None = ""
    name: str | None = ""
    tool_calls: tuple[Call, ...] = ()


class Reward(_Measured):
    """A verifier's answer."""

    value: float
    valid: bool = True
    reason: str = ""


class Transcript(_Measured):
    """One attempt, word for word."""

    task: str
    messages: tuple[Message, ...] = ()
    reward: Reward | None = None


class Evaluation(_Measured):
    """The content of an evaluate stage's `metrics.json`.

    Attributes:
        trained_kinds: kinds of task that the model was trained on; None where nobody said.
        masked: attempts that the infrastructure spoilt.
        tokens: generated over all attempts.
        ended: attempts by what ended them: "answered", or "turns", "tokens", "context" where a bound did.
    """

    pass_rate: Estimate | None = None
    by_kind: dict[str, Estimate] = {}
    trained_kinds: tuple[str, ...] | None = None
    masked: int | None = None
    tokens: int | None = None
    ended: dict[str, int] = {}
    tasks: dict[str, Outcome] = {}
    transcripts: tuple[Transcript, ...] = ()
    perplexity: Perplexity | None = None
    against_float: AgainstFloat | None = None
    cloze: Choices | None = None


class Layer(_Measured):
    """One row of a quantize stage's `layers.json`; None where it did not calibrate."""

    name: str
    scheme: str
    snr_db: float
    bytes_before: int
    bytes_after: int
    strategy: str = ""
    activation_range: float | None = None
    output_error: float | None = None


class Invariant(_Measured):
    """What a transform promised to keep."""

    statement: str
    bound: float


class Rewrite(_Measured):
    """One place of a transform; `skipped` says why nothing was done there."""

    name: str
    what: str = ""
    before: float | None = None
    after: float | None = None
    skipped: str = ""


class Applied(_Measured):
    """One transform of a transform stage's `rewrites.json`.

    Attributes:
        change: of the logits on real tokens, as a share of the largest of them.
    """

    plugin: str
    invariant: Invariant
    change: float
    rewrites: tuple[Rewrite, ...] = ()


class Result(_Measured):
    """The content of `run.json`, where the run left one.

    Attributes:
        seconds: per stage, 0 where it was skipped.
        peak_bytes: per stage, the process's largest resident size.
        versions: of the packages that ran.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: tuple[int, ...] = ()
    versions: dict[str, str] = {}


EVALUATION, LAYERS, RESULT = TypeAdapter(Evaluation), TypeAdapter(tuple[Layer, ...]), TypeAdapter(Result)
REWRITES = TypeAdapter(tuple[Applied, ...])


def load(path: Path, shape: TypeAdapter[Any]) -> Any:
    """Read a JSON file of a known shape.

    Raises:
        ArtifactError: not readable, or of another shape.
    """
    try:
        return shape.validate_json(path.read_bytes())
    except OSError as cause:
        raise ArtifactError(f"{path.name} cannot be read: {cause.strerror}", where=str(path.parent)) from cause
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path.name} is damaged: {place}: {first['msg']}", where=str(path.parent)) from None
