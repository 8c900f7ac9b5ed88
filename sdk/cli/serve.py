"""serve: an OpenAI-compatible server over a model of this machine."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import typer

from stackloom.output import registry

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(serve)


def token_for(host: str, variable: str, what: str) -> str:
    """Return the bearer token that a variable holds, empty for none.

    Raises:
        ConfigError: there is none, and others than this machine could reach the address.
    """
    from stackloom.core.errors import ConfigError

    token = os.environ.get(variable, "")
    if host not in LOOPBACK and not token:
        raise ConfigError(
            f"whoever reaches this address could use the {what}", where="--host", fix=f"set a token in {variable}"
        )
    return token


def serve(
    model: str = typer.Argument(help="A model's folder or known name, a run's folder, or a stack that was run."),
    host: str = typer.Option("127.0.0.1", help="Address to listen at; beyond loopback a token is needed."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port; 0 takes a free one."),
    name: str = typer.Option(None, help="The model's name for clients; default: what it is called here."),
    api_key_env: str = typer.Option(
        "STACKLOOM_API_KEY", help="Environment variable that holds the bearer token; unset or empty: no token."
    ),
    dtype: str = typer.Option("auto", help="Of the weights: auto, float32, bfloat16, float16."),
    max_batch: int = typer.Option(32, min=1, help="Most sequences computed at once."),
    cache_mib: int = typer.Option(4096, min=1, help="Most memory for keys and values, in MiB; taken as it is needed."),
    max_tokens: int = typer.Option(4096, min=1, help="Most generated tokens of one choice, and the default."),
    max_body: int = typer.Option(4 * 1024**2, min=1024, help="Most bytes of a request."),
    queue: int = typer.Option(256, min=1, help="Most sequences that run or wait; beyond it requests get 429."),
    grace: int = typer.Option(30, min=0, help="Seconds that running requests get after SIGTERM."),
    deterministic: bool = typer.Option(False, "--deterministic", help="The same bits alone and in any batch; slower."),
) -> None:
    """Serve a model: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.

    Requests run together in one engine. `heavy` in a chat request lets several thinkers work on it.
    """
    from stackloom.core.errors import ConfigError

    token = token_for(host, api_key_env, "model")
    try:
        from stackloom.engine.chat_tokenizer import HFChatTokenizer
        from stackloom.engine.engine import Engine
        from stackloom.server.app import make_app
        from stackloom.server.running import run
        from stackloom.server.serving import Limits, Serving
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[train,serve]'") from None
    from stackloom.opening import open_checkpoint
    from stackloom.thinking import HEAVY, make_reasoner

    def load() -> tuple[str, Engine]:
        with registry() as looked_up:
            found, loaded, tokenizer = open_checkpoint(model, looked_up, dtype=dtype)
        return found, Engine(
            loaded, tokenizer, max_batch=max_batch, deterministic=deterministic, cache_bytes=cache_mib << 20
        )

    with registry() as opened:
        # A thread that computes gets OpenMP workers of its own. Those of this one end with it, so that the engine's are
        # alone; beside a second set, libgomp lets them sleep between operations, which takes up to twice the time.
        with ThreadPoolExecutor(1) as apart:
            found, engine = apart.submit(load).result()
        with engine:
            limits = Limits(max_body=max_body, max_tokens=max_tokens, queue=queue)
            serving = Serving(
                name or found,
                engine,
                HFChatTokenizer(engine.tokenizer),
                limits,
                lambda options: make_reasoner(opened, HEAVY, options),
            )

            def ready(url: str) -> None:
                typer.echo(f"{serving.name} at {url} ({'with' if token else 'without'} a token); Ctrl-C ends", err=True)

            run(make_app(serving, token=token), host=host, port=port, grace=grace, ready=ready)
    typer.echo("ended", err=True)
