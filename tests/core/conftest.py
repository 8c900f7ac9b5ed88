"""A site of plugins made on the fly: real folders, real imports, no registry."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent

import pytest

from stackloom.core.catalogue import PluginRecord
from stackloom.core.errors import ConfigError, did_you_mean
from stackloom.core.manifest import parse_manifest, parse_toml

MODEL = """
    from stackloom.core.config import option
    from stackloom.core.cost import Cost, Work
    from stackloom.core.ref import Ref, RefTo
    from stackloom.core.config import ComponentConfig
    from stackloom.core.shapes import ModelShape
    from stackloom.core.slots.model import ModelConfig
    from typing import Annotated

    class Config(ModelConfig):
        layers: int = option(2, "layers", gt=0)
        attention: Annotated[Ref | ComponentConfig | None, RefTo("attention")] = option(None, "mixer to put in")

        def shape(self):
            sizes = dict(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocab=100)
            return ModelShape(name="tiny", layers=self.layers, **sizes)

        def cost(self, work):
            return Cost(parameters=work.model.parameters, weight_bytes=work.model.parameters * work.element_bytes)
"""

PLAIN = """
    from stackloom.core.config import ComponentConfig, option
    from stackloom.core.fit import Fit
    from stackloom.core.touch import Touch

    class Config(ComponentConfig):
        lr: float = option(0.1, "learning rate", gt=0)
        {body}
"""


class Site:
    """A catalogue over a temporary folder; `add` writes a plugin into it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, {}

    def add(
        self, plugin: str, config: str = "", *, body: str = "", manifest: str = "", package: str | None = None
    ) -> PluginRecord:
        slot, _, name = plugin.partition(".")
        package = package or f"site_{abs(hash(self.folder))}_{slot}_{name.replace('-', '_')}"
        folder = self.folder / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        source = dedent(config) if config else dedent(PLAIN).replace("{body}", body.strip() or "pass")
        (folder / "config.py").write_text(source)
        table = dedent(f"""
            id = "{plugin}"
            slot_api = "{slot}/1"
            config = "config:Config"
            component = "component:Component"
            summary = "made for a test"
            licence = "Apache-2.0"
            determinism = "exact"
        """) + dedent(
            manifest
            or """
            [can]
            dtypes = ["float32", "bfloat16"]
            devices = ["cpu", "cuda"]
        """
        )
        (folder / "plugin.toml").write_text(table)
        record = PluginRecord(
            parse_manifest(parse_toml(table.encode(), plugin), plugin), f"dist-{slot}-{name}", "1.0", package, folder
        )
        self.records[plugin] = record
        return record

    def get(self, plugin: str) -> PluginRecord:
        if plugin not in self.records:
            raise ConfigError(f"plugin {plugin!r} is not installed", fix=did_you_mean(plugin, self.records))
        return self.records[plugin]

    def ids(self) -> Iterable[str]:
        return self.records


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Site]:
    """A site with a model, a data set and two optimizers."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Site(tmp_path)
    made.add("model.tiny", MODEL)
    made.add("data.lines")
    made.add("optimizer.plain")
    made.add("optimizer.other")
    yield made
    for name in [name for name in sys.modules if name.startswith("site_")]:
        del sys.modules[name]
