"""env: tool worlds - list the domains, build, show, play and verify."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stackloom.core.errors import ConfigError
from stackloom.output import console, print_json, print_table

if TYPE_CHECKING:
    from stackloom.environments.factory import BuiltTask

DOMAIN = typer.Argument(help="Name of a domain (`stackloom env list` shows them), or a written one's JSON file.")
SEED = typer.Option("0", "--seed", help="Any word; equal seeds give equal worlds.")
TOOLS = typer.Option(24, "--tools", help="How many tools the agent sees, 3 to 60.")
WITHHELD = typer.Option(
    0.0, "--withheld", min=0, max=1, help="Probability that the user tells a detail only when asked."
)
JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add the verb and its parts."""
    env = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Tool worlds: list, build, show, play, verify, serve, write."
    )
    parts = ((list_domains, "list"), (build, "build"), (show, "show"), (play, "play"), (verify, "verify"))
    for verb, name in (*parts, (mcp, "mcp"), (serve, "serve"), (write, "write")):
        env.command(name)(verb)
    app.add_typer(env, name="env")


def list_domains(as_json: bool = JSON) -> None:
    """List the domains with what they hold."""
    from stackloom.environments.domains import domain_names, find_domain

    rows: list[dict[str, Any]] = []
    for name in domain_names():
        domain = find_domain(name)
        rows.append(
            {
                "name": name,
                "title": domain.title,
                "entities": len(domain.blueprint.entities),
                "tools": len(domain.tools),
                "actions": [action.name for action in domain.actions],
            }
        )
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("domain", "what", "tables", "tools", "what can be done"),
            [
                [row["name"], row["title"], str(row["entities"]), str(row["tools"]), ", ".join(row["actions"])]
                for row in rows
            ],
        )


def build(
    domain: str = DOMAIN, seed: str = SEED, tools: int = TOOLS, withheld: float = WITHHELD, as_json: bool = JSON
) -> None:
    """Build one environment: its task, golden chain, difficulty and digest."""
    from stackloom.environments.solver import difficulty
    from stackloom.environments.wording import report

    built = _built(domain, seed, tools, withheld)
    row: dict[str, Any] = {
        "domain": domain,
        "seed": seed,
        "digest": built.digest,
        "request": built.request.opening,
        "withheld": {known.noun: known.text for known in built.request.withheld},
        "golden": [{"tool": step.tool, "arguments": dict(step.arguments)} for step in built.golden],
        "report": report(built.wishes, built.statements),
        "statements": {statement.noun: statement.value for statement in built.statements},
        "tools": [tool.shown.signature() for tool in built.tools.values()],
        "chains": len(built.chains),
        "rows": {table: len(rows) for table, rows in built.rows.items()},
        "calls_tried_by_solver": difficulty(built),
    }
    if as_json:
        print_json(row)
        return
    out = console()
    out.print(f"{domain} {seed}", style="bold")
    out.print(f"user: {row['request']}")
    for noun, text in row["withheld"].items():
        out.print(f"  when asked: the {noun} is {text}")
    for number, step in enumerate(built.golden, 1):
        words = ", ".join(f"{key}={value}" for key, value in step.arguments.items())
        out.print(f"  {number}. {step.tool}({words})", soft_wrap=True)
    out.print(f"agent: {row['report']}")
    out.print(
        f"{len(built.tools)} tools, {len(built.chains)} golden chains, {sum(row['rows'].values())} rows; "
        f"the solver tries {row['calls_tried_by_solver']:.1f} calls"
    )
    out.print(f"digest {built.digest[:16]}", style="dim")


def show(
    domain: str = DOMAIN,
    seed: str = SEED,
    tools: int = TOOLS,
    withheld: float = WITHHELD,
    svg: Path = typer.Option(None, "--svg", help="Write the dependency graph here."),
    html: Path = typer.Option(None, "--html", help="Write the golden attempt as a page here."),
) -> None:
    """Draw an environment: its dependency graph as SVG, its golden attempt as a page."""
    from stackloom.worlds.graph_svg import draw

    if svg is None and html is None:
        raise ConfigError("nothing to write", where="env show", fix="give --svg FILE or --html FILE")
    built = _built(domain, seed, tools, withheld)
    if svg is not None:
        _write(svg, draw(built))
    if html is not None:
        from stackloom.core.chat import Message
        from stackloom.environments.acceptance import as_call, perform
        from stackloom.environments.verifier import verify as judge
        from stackloom.environments.wording import question_for, reply_with, report
        from stackloom.worlds.transcript_page import render

        world = built.world()
        asked = [
            message
            for known in built.request.withheld
            for message in (Message("assistant", question_for(known)), Message("user", reply_with(known)))
        ]
        messages = [*asked, *perform(built, world, [as_call(built, step) for step in built.golden])]
        messages.append(Message("assistant", report(built.wishes, built.statements)))
        _write(html, render(built, messages, judge(built, world, messages), world.contents()))


def mcp(
    domain: str = DOMAIN,
    seed: str = SEED,
    tools: int = TOOLS,
    withheld: float = WITHHELD,
    http: int = typer.Option(None, "--http", min=1, max=65535, help="Serve on this port instead of standard input."),
    judged: bool = typer.Option(True, help="Whether finish_task tells the verdict."),
) -> None:
    """Serve one task as an MCP server: its tools, its request as a prompt, and finish_task."""
    try:
        from stackloom.environments.mcp_server import Attempt, serve_http, serve_stdio
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[envs]'") from None
    import anyio

    from stackloom.core.chat import Message
    from stackloom.core.slots.environment import Task
    from stackloom.environments.episodes import WorldEpisode, scripted
    from stackloom.environments.wording import system

    built = _built(domain, seed, tools, withheld)
    shown = tuple(tool.shown for tool in built.tools.values())
    messages = (system(built.domain, shown, compact=False), Message("user", built.request.opening))
    attempt = Attempt(
        Task(f"{domain}/{seed}", domain, messages, shown), WorldEpisode(built, scripted(built)), judged=judged
    )
    if http is None:
        anyio.run(serve_stdio, attempt)
    else:
        typer.echo(f"serving {domain}/{seed} at http://127.0.0.1:{http}/mcp; stop with ctrl-c", err=True)
        anyio.run(serve_http, attempt, http)


def serve(
    plugin: str = typer.Argument(help="Id of an environment plugin."),
    option: list[str] = typer.Option([], "--option", help="One of its options, name=value; the value is YAML."),
    host: str = typer.Option("127.0.0.1", help="Address to listen at; beyond loopback a token is needed."),
    port: int = typer.Option(8100, min=0, max=65535, help="Port; 0 takes a free one."),
    token_env: str = typer.Option("STACKLOOM_ENV_TOKEN", help="Environment variable that holds the bearer token."),
    most: int = typer.Option(256, min=1, help="Most attempts at a time; beyond it requests get 429."),
    lease_seconds: float = typer.Option(120.0, min=0.1, help="After which an unused attempt is taken back."),
    call_seconds: float = typer.Option(30.0, min=0.1, help="Most that one call may take; then its attempt is over."),
    grace: int = typer.Option(10, min=0, help="Seconds that running requests get after SIGTERM."),
) -> None:
    """Serve an environment over HTTP: attempts are leases; `environment.remote` is its client."""
    from stackloom.cli.serve import token_for
    from stackloom.output import registry

    token = token_for(host, token_env, "environment")
    try:
        from stackloom.server.running import run
        from stackloom.worlds.lease_server import make_app
        from stackloom.worlds.leases import Leases
    except ModuleNotFoundError as cause:
        raise ConfigError(f"{cause.name} is not installed", fix="pip install 'stackloom[serve]'") from None
    from stackloom.worlds import build_environment

    with registry() as opened:
        environment = build_environment(opened, plugin, dict(map(_option, option)))
    leases = Leases(environment, most=most, seconds=lease_seconds, call_seconds=call_seconds)

    def ready(url: str) -> None:
        shown = url.removesuffix("/v1")
        typer.echo(f"{plugin} at {shown} ({'with' if token else 'without'} a token); Ctrl-C ends", err=True)

    run(make_app(leases, token=token), host=host, port=port, grace=grace, ready=ready)
    typer.echo(f"ended; {leases.opened} attempts, {leases.expired} of them taken back", err=True)


def _option(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"{text!r} is no name=value", where="--option")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as cause:
        raise ConfigError(f"{value!r} is no YAML: {cause}", where=f"--option {name}") from None


def play(
    domain: str = DOMAIN,
    seed: str = SEED,
    tools: int = typer.Option(8, "--tools", help="How many tools you see, 3 to 60."),
    withheld: float = WITHHELD,
    html: Path = typer.Option(None, "--html", help="Write your attempt as a page here."),
) -> None:
    """Be the agent: act in a world, in the terminal. Exit code 1 for an attempt that earns nothing."""
    from rich.console import Console

    from stackloom.worlds.terminal import Seat

    seat = Seat(_built(domain, seed, tools, withheld), Console(highlight=False), input)
    verdict = seat.play()
    if html is not None and verdict is not None:
        from stackloom.worlds.transcript_page import render

        _write(html, render(seat.built, seat.messages, verdict, seat.episode.world.contents()))
    if verdict is None or not verdict.passed:
        raise typer.Exit(1)


def verify(
    domains: list[str] = typer.Argument(None, help="Domains; the default is all."),
    count: int = typer.Option(5, "--count", min=1, help="Environments per domain."),
    tools: int = TOOLS,
    as_json: bool = JSON,
) -> None:
    """Run the acceptance suite: what the verifier has to accept and to reject. Exit code 1 if it errs once."""
    from stackloom.environments.acceptance import accept
    from stackloom.environments.domains import domain_names

    made, right, wrong = Counter[tuple[str, bool]](), Counter[tuple[str, bool]](), []
    for domain in domains or domain_names():
        for seed in range(count):
            for judged in accept(_built(domain, str(seed), tools, 0.0)):
                kind = (judged.attempt.kind, judged.attempt.right)
                made[kind] += 1
                right[kind] += judged.as_wanted
                if not judged.as_wanted:
                    wrong.append(
                        f"{domain} {seed}: {judged.attempt.kind}, {judged.attempt.name}: {judged.verdict.reason}"
                    )
    rows: list[dict[str, Any]] = [
        {"kind": kind, "must": "pass" if good else "fail", "attempts": made[kind, good], "as_wanted": right[kind, good]}
        for kind, good in sorted(made, key=lambda key: (not key[1], key[0]))
    ]
    if as_json:
        print_json({"attempts": rows, "wrong": wrong})
    else:
        print_table(
            ("attempt", "must", "made", "judged so"),
            [[row["kind"], row["must"], str(row["attempts"]), str(row["as_wanted"])] for row in rows],
        )
        for line in wrong[:20]:
            typer.secho(line, fg=typer.colors.RED)
    if wrong:
        raise typer.Exit(1)


def write(
    name: str = typer.Argument(help="Name of the new domain, such as bike_rental."),
    about: str = typer.Option(..., help="What it is about, in a sentence or more."),
    out: Path = typer.Option(None, help="File to write; the default is NAME.json. Other verbs take it as a domain."),
    endpoint: list[str] = typer.Option(
        ..., "--endpoint", "-e", help="URL of an OpenAI-compatible server, up to /v1; several share the load."
    ),
    model: str = typer.Option(None, help="The model's name on the servers; default: the first they list."),
    repairs: int = typer.Option(3, min=0, max=10, help="Most times that problems are sent back to the model."),
    max_tokens: int = typer.Option(16_384, min=256, help="Most tokens of one reply."),
    api_key_env: str = typer.Option("OPENAI_API_KEY", help="Environment variable that holds the servers' key."),
    sandbox: str = typer.Option(
        "bubblewrap", help='Where its code runs: "bubblewrap", or "module:Class" of a stronger tier.'
    ),
) -> None:
    """Let a model write a domain: tables, rules and their unit tests, repaired until every check passes.

    The rules are code that nobody has read: they run in the sandbox, now and whenever the domain is used.
    """
    import asyncio
    import os
    from dataclasses import replace

    from stackloom.environments.sandbox import open_sandbox
    from stackloom.environments.writing.writer import SAMPLING, Round, Written, write_domain
    from stackloom.thinking import open_model

    path = out or Path(f"{name}.json")
    if path.suffix != ".json":
        raise ConfigError("a written domain is a .json file", where="--out", fix=f"{path}.json")
    contained = open_sandbox(sandbox)

    def tell(made: Round) -> None:
        what = f"repair {made.number}" if made.number else "first writing"
        typer.echo(f"{what}: {f'{len(made.problems)} problems' if made.problems else 'every check passes'}", err=True)
        for problem in made.problems:
            typer.echo(f"  {problem}", err=True)

    async def go() -> Written:
        async with open_model(endpoint, model=model, api_key=os.environ.get(api_key_env, "")) as asked:
            sampling = replace(SAMPLING, max_tokens=max_tokens)
            return await write_domain(asked, name, about, contained, repairs=repairs, sampling=sampling, seen=tell)

    written = asyncio.run(go())
    _write(path, written.sheet.model_dump_json(indent=1, by_alias=True, exclude_defaults=True) + "\n")
    typer.echo(f"next: stackloom env verify {path}")


def _built(domain: str, seed: str, tools: int, withheld: float) -> BuiltTask:
    from stackloom.environments.domains import find_domain
    from stackloom.environments.factory import Factory, Recipe

    return Factory(find_domain(domain), Recipe(tools=tools, withheld=withheld)).build(seed)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as cause:
        raise ConfigError(f"cannot be written: {cause.strerror}", where=str(path), fix="choose another file") from cause
    typer.echo(f"wrote {path}")
