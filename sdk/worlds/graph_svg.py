"""The dependency graph as SVG: what the user knows on the left, what follows from it on the right."""

from __future__ import annotations

from html import escape

from stackloom.environments.factory import BuiltTask
from stackloom.environments.graph import Graph

COLOURS = {
    "lookup": "#2f6fde",
    "details": "#0e8f8f",
    "field": "#0e8f8f",
    "count": "#7a6a9e",
    "tally": "#7a6a9e",
    "edit": "#b7791f",
    "action": "#c2410c",
}
LEGEND = (
    ("lookup", "finds rows"),
    ("details", "shows one"),
    ("count", "counts"),
    ("edit", "edits"),
    ("action", "acts"),
)
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 248, 26, 96, 12, 24
STYLE = """
.tool rect{fill:#fff;stroke-width:1.4} .tool text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1c2430}
.edge{fill:none;stroke:#c6cede;stroke-width:1} .golden{stroke:#c2410c;stroke-width:2.2}
.step{font:bold 11px system-ui,sans-serif;fill:#fff} .note{font:12px system-ui,sans-serif;fill:#5b6577}
@media (prefers-color-scheme:dark){.tool rect{fill:#1b2130}.tool text{fill:#e6eaf2}
.edge{stroke:#3a4459}.note{fill:#9aa5ba}
.golden{stroke:#fb923c}}
"""


def draw(built: BuiltTask) -> str:
    """Return the graph of an environment's tools; the golden chain is numbered and its edges are thick.

    A tool stands one column to the right of what it needs; an edge is drawn from the tools of the column before that
    tell a fact which it needs.
    """
    graph = Graph(built.domain)
    layers = _layers(built, graph)
    rows = max(len(layer) for layer in layers)
    place = {
        name: (MARGIN + column * (WIDTH + GAP_X), 2 * MARGIN + row * (HEIGHT + GAP_Y))
        for column, layer in enumerate(layers)
        for row, name in enumerate(layer)
    }
    width = 2 * MARGIN + len(layers) * WIDTH + (len(layers) - 1) * GAP_X
    height = 4 * MARGIN + rows * (HEIGHT + GAP_Y)
    depth = {name: column for column, layer in enumerate(layers) for name in layer}
    golden = [step.tool for step in built.golden]
    edges = [
        (
            above,
            name,
            above in golden and name in golden and golden.index(above) < len(golden) - golden[::-1].index(name),
        )
        for name in built.tools
        for above in sorted(graph.above[name])
        if above in built.tools and depth[above] == depth[name] - 1
    ]
    parts = [_edge(place[one], place[other], thick) for one, other, thick in sorted(edges, key=lambda edge: edge[2])]
    parts += [_node(built, name, *place[name], golden) for name in built.tools]
    notes = (
        "from what the user says",
        *(f"{number} call{'s' * (number > 1)} later" for number in range(1, len(layers))),
    )
    parts += [
        f'<text class="note" x="{MARGIN + column * (WIDTH + GAP_X)}" y="{MARGIN}">{note}</text>'
        for column, note in enumerate(notes)
    ]
    parts += [
        f'<circle cx="{MARGIN + 5 + 110 * place}" cy="{height - MARGIN - 4}" r="5" fill="{COLOURS[form]}"/>'
        f'<text class="note" x="{MARGIN + 16 + 110 * place}" y="{height - MARGIN}">{words}</text>'
        for place, (form, words) in enumerate(LEGEND)
    ]
    title = f"{built.domain.name} {built.seed}: {len(built.tools)} tools, golden chain of {len(built.golden)} calls"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"{''.join(parts)}</svg>"
    )


def _layers(built: BuiltTask, graph: Graph) -> list[list[str]]:
    known, waiting, layers = set(graph.told_by_person), dict(built.tools), list[list[str]]()
    while waiting:
        ready = [name for name, tool in waiting.items() if tool.requires <= known] or list(waiting)
        layers.append(sorted(ready, key=lambda name: (list(COLOURS).index(built.tools[name].form), name)))
        for name in ready:
            known |= waiting.pop(name).provides
    return layers


def _edge(start: tuple[int, int], end: tuple[int, int], thick: bool) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT / 2, end[0], end[1] + HEIGHT / 2
    middle = (x1 + x2) / 2
    kind = "edge golden" if thick else "edge"
    return f'<path class="{kind}" d="M{x1} {y1:g} C{middle:g} {y1:g} {middle:g} {y2:g} {x2} {y2:g}"/>'


def _node(built: BuiltTask, name: str, x: int, y: int, golden: list[str]) -> str:
    tool = built.tools[name]
    colour = COLOURS[tool.form]
    shown = name if len(name) <= 32 else f"{name[:31]}…"
    steps = [number for number, other in enumerate(golden, 1) if other == name]
    badge = ""
    if steps:
        words = ",".join(map(str, steps))
        wide = 14 + 7 * len(words)
        badge = (
            f'<rect x="{x - 8}" y="{y - 8}" width="{wide}" height="17" rx="8.5" fill="#c2410c"/>'
            f'<text class="step" x="{x - 8 + wide / 2:g}" y="{y + 4.5:g}" text-anchor="middle">{words}</text>'
        )
    return (
        f'<g class="tool"><title>{escape(tool.shown.signature())}</title>'
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" stroke="{colour}"/>'
        f'<text x="{x + 12}" y="{y + 17}">{escape(shown)}</text></g>{badge}'
    )
