"""The composer's page: choices, a verdict, and the stack in three spellings."""

from __future__ import annotations

import json
from pathlib import Path


def composer_page(grid: Path, js: str) -> str:
    """The page, with what the grid covers in words.

    Args:
        grid: file of `grid.write_grid`.
        js: path of the script that holds it, from the page.
    """
    data = json.loads(grid.read_bytes())
    shapes = ", ".join(data["shapes"])
    blocks = "\n".join(
        f'<h2 id="{name}">{title}</h2>\n<pre tabindex="0"><code data-output="{name}"></code></pre>'
        for name, title in (("yaml", "YAML"), ("python", "Python"), ("link", "Plan it"))
    )
    return f"""# Composer

Choose a model, a device and plugins. Fits, conflicts and memory of any two picks come from the planner, asked
beforehand for {shapes} in bfloat16; more than two together are planned by the command at the end, whose link holds
the stack itself: `stackloom plan` reads it and fetches nothing. A blocked choice stays in the list and says why.

<div class="composer-page">
<div class="composer picks"></div>
<p role="status"><strong data-output="verdict">The composer needs JavaScript.</strong></p>
<p data-output="memory"></p>
{blocks}
</div>
<script src="{js}"></script>
<script src="../assets/composer.js"></script>
"""
