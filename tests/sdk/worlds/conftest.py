"""An environment server in a thread, on a port of its own."""

import threading
from contextlib import contextmanager

import pytest
import uvicorn

from stackloom.worlds.lease_server import make_app
from stackloom.worlds.leases import Leases


@contextmanager
def serving(environment, *, token="", max_body=4 << 20, **options):
    """Serve an environment; yields (leases, url)."""
    leases = Leases(environment, **options)
    app = make_app(leases, token=token, max_body=max_body)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield leases, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def serve():
    return serving
