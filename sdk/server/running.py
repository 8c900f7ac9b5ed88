"""Runs the application until it is told to stop, and lets what has begun come to its end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from stackloom.core.errors import ConfigError


class _Server(uvicorn.Server):
    """Tells where it listens once it does."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def run(app: Any, *, host: str, port: int, grace: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new, and end what runs within `grace` seconds.

    Args:
        app: an ASGI application.
        host, port: where to listen; port 0 takes a free one.
        grace: seconds after which what still runs is broken off.
        ready: told the URL once connections are accepted.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as cause:
        raise ConfigError(
            f"cannot listen at {host} port {port}: {cause.strerror or cause}", where="--port", fix="choose another"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}/v1"
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace)
    with listening, _calm():
        _Server(config, lambda: ready(url)).run(sockets=[listening])


@contextmanager
def _calm() -> Iterator[None]:
    """Make the signal that uvicorn raises again, once it has drained, harmless."""
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
