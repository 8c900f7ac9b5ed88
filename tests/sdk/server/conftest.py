"""A server over a tiny random model, on a port of its own."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import openai
import pytest
import torch
import uvicorn

from stackloom.engine.chat_tokenizer import HFChatTokenizer
from stackloom.engine.engine import Engine
from stackloom.registry import open_registry
from stackloom.server.app import make_app
from stackloom.server.serving import Limits, Serving
from stackloom.testing import llama_shape, tiny_llama, tiny_tokenizer
from stackloom.thinking import HEAVY, make_reasoner

TOKEN = "secret"
LIMITS = Limits(max_body=300_000, max_tokens=600, queue=24)
ENDS = range(60, 258)  # most of what a random model says ends its reply


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model():
    return tiny_llama(llama_shape(vocab=260, max_positions=2048))


@contextmanager
def engine_for(model, tokenizer, **options):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Engine(model, tokenizer, max_batch=8, **options) as engine:
            yield engine
    finally:
        torch.set_num_threads(threads)


@contextmanager
def listening(app):
    """Serve an application in a thread; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(engine, home, *, limits=LIMITS, token=TOKEN):
    """Serve an engine; yields (url, serving)."""
    with open_registry(home=home) as registry:
        serving = Serving(
            "tiny",
            engine,
            HFChatTokenizer(engine.tokenizer),
            limits,
            lambda options: make_reasoner(registry, HEAVY, options),
        )
        with listening(make_app(serving, token=token)) as url:
            yield url, serving


@pytest.fixture(scope="module")
def endless(model, tokenizer, tmp_path_factory):
    """(client, serving) over a model whose replies never end by themselves."""
    with (
        engine_for(model, tokenizer, end_tokens=()) as engine,
        served(engine, tmp_path_factory.mktemp("home")) as (url, serving),
        openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client,
    ):
        yield client, serving


@pytest.fixture(scope="module")
def brief(model, tokenizer, tmp_path_factory):
    """(client, serving) over a model whose replies soon end."""
    with (
        engine_for(model, tokenizer, end_tokens=ENDS) as engine,
        served(engine, tmp_path_factory.mktemp("home")) as (url, serving),
        openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client,
    ):
        yield client, serving
