"""The HTTP implementation below the client: httpx's API, by default as httpx2 implements it."""

from __future__ import annotations

import importlib
from typing import Any

from stackloom.core.errors import ConfigError

IMPLEMENTATIONS = ("httpx2", "httpx")


def make_http(
    implementation: str = "httpx2", *, connections: int = 256, connect_s: float = 10.0, stall_s: float = 300.0
) -> Any:
    """Return an `AsyncClient`.

    Redirects are not followed and proxies of the environment are not used: a key is sent to the named server alone.

    Args:
        implementation: "httpx2", or "httpx", which spends several times the CPU per call at 64 in flight.
        connections: most connections.
        connect_s: seconds that a connection may take.
        stall_s: seconds without a byte after which a stream is given up.

    Raises:
        ConfigError: unknown, or not installed.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"unknown HTTP implementation {implementation!r}", where="http", fix=f"one of {', '.join(IMPLEMENTATIONS)}"
        )
    try:
        library: Any = importlib.import_module(implementation)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{implementation} is not installed", where="http", fix="pip install 'stackloom[serve]'"
        ) from None
    return library.AsyncClient(
        limits=library.Limits(max_connections=connections, max_keepalive_connections=connections),
        timeout=library.Timeout(connect=connect_s, read=stall_s, write=stall_s, pool=None),
        trust_env=False,
    )
