"""What every request passes before it is read: the token, and the size of its body."""

from __future__ import annotations

import hmac

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stackloom.server.refusals import Refused, error_body

OPEN = frozenset({"/health"})
"""Paths that need no token."""


class Guard:
    """An ASGI middleware.

    Args:
        app: what is guarded.
        token: expected as `Authorization: Bearer <token>`; empty for none.
        max_body: bytes.
    """

    def __init__(self, app: ASGIApp, *, token: str, max_body: int) -> None:
        self._app, self._token, self._max_body = app, token.encode(), max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._token and scope["path"] not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                await _refuse(
                    Refused(401, "a valid bearer token is needed", code="invalid_api_key"), scope, receive, send
                )
                return
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and (len(declared) > 15 or int(declared) > self._max_body):
            await _refuse(self._too_large(), scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise HTTPException(413, str(self._too_large()))
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self._max_body} bytes", code="body_too_large")


async def _refuse(refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    headers = refused.headers | {"connection": "close"}  # the body was not read
    await JSONResponse(error_body(refused), refused.status, headers=headers)(scope, receive, send)
