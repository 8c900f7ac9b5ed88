"""site: the pages of a registry, as a folder of static files."""

from __future__ import annotations

from pathlib import Path

import typer

from stackloom.output import registry


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(no_args_is_help=True, help="Make and serve the site of the installed plugins.")
    group.command("build")(build)
    group.command("serve")(serve)
    app.add_typer(group, name="site")


def build(
    out: Path = typer.Option(Path("site"), help="Folder for the site."),
    evidence: Path = typer.Option(None, help="Take evidence from this folder too, such as docs/evidence/claims."),
    bench: Path = typer.Option(None, help="Folder of benchmark rows, such as docs/evidence/bench."),
    name: str = typer.Option("Registry", help="Title of the site."),
    options: bool = typer.Option(False, "--options", help="Import each plugin's config to list its options."),
) -> None:
    """Build a static site of every installed plugin and its evidence; no plugin code runs unless --options is given."""
    from stackloom.core.errors import ConfigError
    from stackloom.core.loading import load_config
    from stackloom.site import Contents
    from stackloom.site import build as build_site

    for folder in (evidence, bench):
        if folder and not folder.is_dir():
            raise ConfigError("is no folder", where=str(folder))
    with registry() as opened:
        if evidence:
            for problem in opened.evidence.import_folder(evidence).problems:
                typer.secho(f"left out: {problem}", err=True, fg=typer.colors.YELLOW)
        schema = (lambda record: load_config(record).model_json_schema()) if options else None
        page = build_site(Contents(opened, opened.ids(), options=schema, bench=bench), out, name=name)
    typer.echo(f"open {page}")


def serve(
    folder: Path = typer.Argument(Path("site"), help="Folder of a built site."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port on the loopback interface; 0 takes a free one."),
) -> None:
    """Serve a built site on this machine until it is stopped."""
    from stackloom.site import serve as serve_site

    server = serve_site(folder, port)
    typer.echo(f"http://127.0.0.1:{server.server_address[1]}/")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("stopped")
    finally:
        server.server_close()
