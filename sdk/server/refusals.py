"""What a server says where it does not answer, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stackloom.core.errors import ConfigError, ErrorGroup, FitError, StackloomError
from stackloom.core.generation import ContextFull
from stackloom.plugins.reasoner.parallel import InsufficientTrajectories


class Refused(Exception):
    """An answer with a status of its own.

    Args:
        status: of HTTP.
        message: one sentence for the caller.
        code: for programs.
        param: the field that is meant.
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        found = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return found | ({"retry-after": str(self.retry_after)} if self.retry_after else {})


def error_body(refused: Refused) -> dict[str, Any]:
    """Return the JSON of an error."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    return {"error": {"message": str(refused), "type": kind, "param": refused.param, "code": refused.code}}


def refusal(error: BaseException) -> Refused:
    """Return what an error means to the caller: theirs is a 4xx that says what is wrong, ours a bare 500."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ContextFull):
        return Refused(400, error.reason, code="context_length_exceeded", param="messages")
    if isinstance(error, InsufficientTrajectories):
        return Refused(422, error.reason, code="no_answer")
    if isinstance(error, ConfigError | FitError | ErrorGroup):
        return Refused(400, str(error), code="invalid_value", param=getattr(error, "where", None) or None)
    name = type(error).__name__ if isinstance(error, StackloomError) else "an internal error"
    return Refused(500, f"{name}; the server's log says more", code="internal_error")


def invalid(errors: Sequence[Mapping[str, Any]]) -> Refused:
    """Return what a failed validation means: the first error, by its path and never with the value itself."""
    first = errors[0]
    path = ".".join(str(part) for part in first["loc"] if part != "body")
    unread = str(first["type"]).startswith("json_")
    message = "the body is no JSON" if unread else str(first["msg"])
    return Refused(
        400, f"{path}: {message}" if path and not unread else message, code="invalid_value", param=path or None
    )
