"""Makes the static site of a registry with MkDocs; needs the docs extra."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml

from stackloom.core.errors import ConfigError, EngineError
from stackloom.site.pages import Contents, pages

ASSETS = {
    "assets/site.css": "site.css.tmpl",
    "assets/site.js": "site.js.tmpl",
    "assets/composer.js": "composer.js.tmpl",
}
THEME: dict[str, Any] = {
    "theme": {
        "name": "material",
        "font": False,
        "features": ["navigation.sections", "search.suggest"],
        "palette": [
            {
                "media": "(prefers-color-scheme: light)",
                "scheme": "default",
                "toggle": {"icon": "material/weather-night", "name": "Dark"},
            },
            {
                "media": "(prefers-color-scheme: dark)",
                "scheme": "slate",
                "toggle": {"icon": "material/weather-sunny", "name": "Light"},
            },
        ],
    },
    "use_directory_urls": False,
    "plugins": ["search"],
    "markdown_extensions": ["admonition", "tables", "pymdownx.highlight", "pymdownx.superfences", "toc"],
    "extra_css": ["assets/site.css"],
    "extra_javascript": ["assets/site.js"],
}


def assets() -> dict[str, str]:
    """Style and script of the generated pages, by their path in the site."""
    return {path: (Path(__file__).parent / file).read_text(encoding="utf-8") for path, file in ASSETS.items()}


def build(contents: Contents, out: Path, *, name: str = "Registry") -> Path:
    """Write the site of `contents` into the folder `out` and return its first page.

    Raises:
        ConfigError: MkDocs is absent, or `out` holds something that is no site.
        EngineError: MkDocs could not build it.
    """
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocs") is None:
        raise ConfigError("the site needs MkDocs Material", fix="pip install 'stackloom[docs]'")
    if out.exists() and any(out.iterdir()) and not (out / "sitemap.xml").exists():
        raise ConfigError("is not empty and holds no site", where=str(out), fix="name another folder with --out")
    with tempfile.TemporaryDirectory(prefix="stackloom-site-") as folder:
        source = Path(folder, "docs")
        made = dict(pages(contents)) | assets()
        made["index.md"] = _first_page(name, contents, made)
        for path, text in made.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(text, encoding="utf-8")
        settings = Path(folder, "mkdocs.yml")
        settings.write_text(
            yaml.safe_dump({"site_name": name, "docs_dir": str(source), "site_dir": str(out.resolve()), **THEME}),
            encoding="utf-8",
        )
        _mkdocs(settings)
    return out / "index.html"


def _mkdocs(settings: Path) -> None:
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    logging.getLogger("mkdocs").setLevel(logging.ERROR)
    try:
        mkdocs_build(load_config(str(settings)))
    except MkDocsException as cause:
        raise EngineError(f"the site cannot be built: {cause}") from cause


def _first_page(name: str, contents: Contents, made: dict[str, str]) -> str:
    places = ("catalogue/index.md", "slots/index.md", "papers/index.md", *(p for p in made if p.startswith("explore/")))
    titles = "\n".join(f"* [{made[path].partition(chr(10))[0].lstrip('# ')}]({path})" for path in places)
    problems = "".join(
        f"* {problem.distribution} {problem.version}: {problem.message.splitlines()[0]}\n"
        for problem in contents.registry.problems()
    )
    broken = f"\n## Plugins that cannot be used\n\n{problems}" if problems else ""
    return f"# {name}\n\n{len(contents.plugins)} plugins.\n\n{titles}\n{broken}"


def serve(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the files in `folder` on the loopback interface; the caller runs and closes it.

    Raises:
        ConfigError: the folder holds no site, or the port is taken.
    """
    if not (folder / "index.html").is_file():
        raise ConfigError("holds no site", where=str(folder), fix="run `stackloom site build` first")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as cause:
        raise ConfigError(f"port {port} cannot be used: {cause.strerror}", fix="give another --port") from cause
