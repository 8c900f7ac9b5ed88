"""Errors say who should act: the user, the stack, a plugin's author, whoever damaged a file, or us."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StackloomError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        reason: what is wrong, in one sentence.
        where: the place in the user's input ("stages[0].train.optimizer.lr", a file with its line, a distribution).
        fix: what to do about it.
    """

    acts = "someone"

    def __init__(self, reason: str, *, where: str = "", fix: str = "") -> None:
        self.reason, self.where, self.fix = reason, where, fix
        super().__init__(reason, where, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.reason}" if self.where else self.reason
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class ConfigError(StackloomError):
    """The user's input is wrong: an unknown key, a bad value, a plugin that is not installed."""

    acts = "you"


class FitError(StackloomError):
    """The input is valid, but this stack cannot work: a shape, a device or two plugins do not go together."""

    acts = "you"


class PluginError(StackloomError):
    """A plugin breaks its contract: it raises at import, has a bad manifest or returns the wrong type."""

    acts = "the plugin's author"


class ArtifactError(StackloomError):
    """A file is damaged, foreign or not what its manifest says."""

    acts = "whoever keeps the file"


class EngineError(StackloomError):
    """A defect of stackloom itself."""

    acts = "the stackloom developers"


class ErrorGroup(ConfigError):
    """Several errors of one input, reported at once.

    Args:
        errors: at least one error, in the order of the input.
        summary: the headline, for instance "stack.yaml has 3 problems".
    """

    def __init__(self, errors: Iterable[StackloomError], summary: str) -> None:
        self.errors = tuple(errors)
        super().__init__(summary)

    def __str__(self) -> str:
        return "\n".join([self.reason, *(f"- {error}".replace("\n", "\n  ") for error in self.errors)])


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return a hint naming the known words nearest to `word`, or `otherwise` when none is near.

    A technique's bare name is near its full id: `mona` suggests `optimizer.mona`.
    """
    known = sorted(known)
    by_suffix = [name for name in known if name.rpartition(".")[2] == word.rpartition(".")[2]]
    near = by_suffix or difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(name) for name in near)}?" if near else otherwise
