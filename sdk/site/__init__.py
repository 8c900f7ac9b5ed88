"""The registry site: pages generated from a registry, and the static site that MkDocs makes of them.

Pages are Markdown, so that they read well in a repository too. What a manifest declares, what planning or a pair check
has checked and what a claim or a benchmark measured carry different badges. No plugin code runs unless the caller
hands in `options`, which may import a plugin's torch-free config.
"""

from __future__ import annotations

from stackloom.site.build import build, serve
from stackloom.site.pages import Contents, pages

__all__ = ["Contents", "build", "pages", "serve"]
