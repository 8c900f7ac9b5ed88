"""Slot `data`: examples with loss masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from stackloom.core.config import ComponentConfig
from stackloom.core.slot import Slot


class Example(NamedTuple):
    """One training example.

    Attributes:
        input_ids: token ids.
        loss_mask: per token, whether the model is trained to predict it; same length as input_ids.
    """

    input_ids: list[int]
    loss_mask: list[bool]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that data plugins use."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the token ids of `text`."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        """Render messages with the model's own template."""
        ...


class Data(Protocol):
    """The component: constructed as `Component(config, tokenizer)`; a finite sequence of examples.

    Indexing is a pure function of the options and the files' content, so that a run can resume at any step.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return example `index`; raises IndexError past the end."""
        ...

    def problems(self) -> Sequence[str]:
        """Return what was left out and why ("line 3: no assistant message"), for the report."""
        ...


SLOT = Slot(
    name="data",
    version=1,
    sits_in=("train",),
    protocol=Data,
    config=ComponentConfig,
    summary="examples with loss masks",
    features={"messages": "chat messages with tool calls", "text": "plain text", "prompt-completion": "pairs"},
)
