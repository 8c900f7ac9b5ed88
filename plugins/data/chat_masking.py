"""Conversations to token ids and a loss mask on what the assistant writes; shared by the data plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeAlias

from stackloom.core.slots.data import Tokenizer

Record: TypeAlias = Mapping[str, Any]


class MaskingError(Exception):
    """A conversation that cannot be masked rightly; the message says why."""


def mask_assistant(
    messages: Sequence[Record],
    tools: Sequence[Record] | None,
    tokenizer: Tokenizer,
    *,
    start: int = 0,
    skip: Set[int] = frozenset(),
) -> tuple[list[int], list[bool]]:
    """Return token ids, and per token whether an assistant message holds it.

    From the end of the generation prompt to the message's end marker; a newline that the template puts behind it is not
    the assistant's. Where the end-of-text token ends no message, to the end of what the template renders.

    Each assistant message is found by rendering the conversation up to it and through it; both must be a prefix of the
    whole, token by token.

    Args:
        messages: in the form that the tokenizer's chat template takes.
        tools: handed to the template.
        tokenizer: of the model that is trained.
        start: assistant messages before this place are context, not trained.
        skip: places of further assistant messages that are context.

    Raises:
        MaskingError: the template refuses the messages, rewrites earlier ones, or yields what no tokenizer can encode.

    Example:
        >>> tokens, mask = mask_assistant(messages, None, tokenizer)
        >>> tokenizer.decode([token for token, trained in zip(tokens, mask) if trained])
        'Hello<|im_end|>'
    """
    tokens = render_ids(tokenizer, messages, tools)
    mask = [False] * len(tokens)
    for place, message in enumerate(messages):
        if place < start or place in skip or message["role"] != "assistant":
            continue
        before = render_ids(tokenizer, messages[:place], tools, add_generation_prompt=True)
        through = render_ids(tokenizer, messages[: place + 1], tools)
        if through[: len(before)] != before or tokens[: len(through)] != through:
            raise MaskingError(
                f"messages[{place}]: the chat template renders the conversation up to here differently from the "
                "same part of the whole, so no loss mask is right; split the conversation after this message"
            )
        stop = _end(tokens, len(before), len(through), tokenizer.eos_token_id)
        mask[len(before) : stop] = [True] * (stop - len(before))
    return tokens, mask


def _end(tokens: list[int], begin: int, end: int, marker: int | None) -> int:
    """Return where a message stops: behind its last end marker; the model never writes what a template adds there."""
    return next((place + 1 for place in range(end - 1, begin - 1, -1) if tokens[place] == marker), end)


def render_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Record],
    tools: Sequence[Record] | None,
    *,
    add_generation_prompt: bool = False,
) -> list[int]:
    """Render with the model's own template and encode; the template writes the special tokens.

    Raises:
        MaskingError: the template refuses the messages, or yields a lone surrogate.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as cause:  # noqa: BLE001 - templates are programs of the model's authors and raise what they like
        raise MaskingError(f"the chat template refuses {len(messages)} messages: {cause}") from None
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MaskingError("the rendered conversation holds a lone surrogate, which no tokenizer can encode")
    return tokenizer.encode(text, add_special_tokens=False)
