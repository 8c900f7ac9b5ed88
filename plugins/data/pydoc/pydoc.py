"""Text of CPython's `pydoc_data.topics`: the language reference that `help()` prints."""

from __future__ import annotations

import hashlib
import platform
from array import array
from fnmatch import fnmatchcase

from stackloom.core.errors import ConfigError
from stackloom.core.slots.data import Example, Tokenizer
from stackloom.plugins.data.pydoc.config import PydocConfig

WHERE = "data.pydoc"


class Pydoc:
    """One document per topic, in the order of the topics' names, cut into examples; every token is trained.

    A document is the topic's text between the tokenizer's own beginning and end of text. Its last example is shorter
    than the others; a rest of one token, which predicts nothing, is left out.

    Args:
        config: the plugin's options.
        tokenizer: of the model that is trained.

    Raises:
        ConfigError: this Python has no topics, or the options leave none.

    Example:
        >>> data = Pydoc(PydocConfig(topics=("booleans",)), tokenizer)
        >>> tokenizer.decode(data[0].input_ids)[:18]
        'Boolean operations'
    """

    def __init__(self, config: PydocConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        documents, self._doubles = _documents()
        chosen = [
            name
            for name in documents
            if split_of(name, config.held_out) == config.split
            and any(fnmatchcase(name, pattern) for pattern in config.topics)
        ]
        self._topics = len(chosen)
        self._examples: list[array[int]] = []
        self._rests = 0
        for name in chosen:
            tokens = _encode(documents[name], tokenizer)
            for first in range(0, len(tokens), config.max_tokens):
                part = tokens[first : first + config.max_tokens]
                if len(part) > 1:
                    self._examples.append(array("q", part))
                else:
                    self._rests += 1
        if not self._examples:
            raise ConfigError(
                f"no topic is left of the {len(documents)} in split {config.split!r}",
                where=WHERE,
                fix="change topics, held_out or split",
            )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Return example `index`, counted from 0.

        Raises:
            IndexError: no such example.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        tokens = self._examples[index].tolist()
        return Example(tokens, [True] * len(tokens))

    def problems(self) -> tuple[str, ...]:
        """Return whose text this is, and what was left out."""
        found = [f"text of Python {platform.python_version()}, {self._topics} topics; other versions have other text"]
        found += [f"topic {name!r} left out: the same text as {first!r}" for name, first in self._doubles]
        if self._rests:
            found.append(f"{self._rests} rests of one token left out")
        return tuple(found)


def split_of(name: str, held_out: float) -> str:
    """Return the split of a topic: a hash of its name, so that no other topic and no option but the share moves it.

    Example:
        >>> split_of("booleans", 0.0), split_of("booleans", 1.0)
        ('train', 'held-out')
    """
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
    return "held-out" if position < held_out else "train"


def _documents() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return (text by name, sorted; pairs of a name left out and the first name that has its text)."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigError(
            "this Python comes without pydoc_data.topics",
            where=WHERE,
            fix="use a complete CPython; some distributions ship the documentation apart",
        ) from None
    first: dict[str, str] = {}
    doubles = []
    for name in sorted(topics):
        text = topics[name].strip()
        if text in first:
            doubles.append((name, first[text]))
        elif text:
            first[text] = name
    return {name: text for text, name in first.items()}, doubles


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Encode with the tokenizer's own beginning of text and exactly one end, if it has one."""
    tokens, end = tokenizer.encode(text, add_special_tokens=True), tokenizer.eos_token_id
    return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]
