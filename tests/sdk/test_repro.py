"""What a plugin claims is measured, judged by its figures and kept; nothing is judged by what it says."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stackloom.core.errors import ArtifactError, ConfigError, FitError, PluginError
from stackloom.core.rows import EvidenceRow
from stackloom.registry import Registry, open_registry
from stackloom.repro import Outcome, reproduce
from stackloom.repro.context import Watcher

NUMBER = itertools.count()
HEAD = """
from stackloom.core.claims import ClaimResult
from stackloom.core.statistics import mean_interval
"""
SIZE_CODE = """
def size(ctx):
    return ClaimResult(ours=7.0, seeds=(0,))
"""
MEASURES = f"""
def speed(ctx):
    return ClaimResult(ours=2.0, interval=(1.9, 2.1), baseline=1.0, seeds=tuple(ctx.seeds))
{SIZE_CODE}"""


def claim(name: str, **fields: Any) -> str:
    fields = {"statement": "s", "where": "Table 1", "metric": "m", "unit": "x"} | fields
    return f'[[claims]]\nname = "{name}"\n' + "\n".join(f"{key} = {json.dumps(value)}" for key, value in fields.items())


SPEED, SIZE = claim("speed", paper=2.05, better="higher"), claim("size", paper=3.0, tolerance=1.0)


class Lines(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Plugin:
    """An installed third-party plugin with claims."""

    def __init__(self, plugin: str, folder: Path, registry: Registry, out: Path) -> None:
        self.id, self.folder, self.registry, self.out = plugin, folder, registry, out

    def repro(self, **options: Any) -> list[Outcome]:
        return list(reproduce([self.id], self.registry, **{"out": self.out} | options))

    def written(self, scale: str = "cpu") -> list[EvidenceRow]:
        rows = json.loads((self.out / f"{self.id}.{scale}.json").read_text())
        return [EvidenceRow.model_validate(row) for row in rows]

    def edit(self, **files: str) -> None:
        """Change files; the module that is imported already stays as it is."""
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(text)
        self.registry.close()
        self.registry = open_registry(home=self.out.parent / "home", search_path=self.registry.search_path)


Install = Callable[..., Plugin]


@pytest.fixture
def install(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(claims_py, manifest_claims)`: a plugin of its own distribution, so that no module is met twice."""
    monkeypatch.setenv("STACKLOOM_HOME", str(tmp_path / "home"))
    made: list[Plugin] = []

    def add(claims: str | None = MEASURES, manifest: str = f"{SPEED}\n{SIZE}") -> Plugin:
        name = f"claimant{next(NUMBER)}"
        folder = site(name, f"optimizer.{name}", manifest="")
        toml = folder / name / "plugin.toml"
        toml.write_text(f"{toml.read_text()}\n{manifest}\n")
        (folder / name / "component.py").write_text("class Component:\n    def __init__(self, config): pass\n")
        if claims is not None:
            (folder / name / "claims.py").write_text(HEAD + textwrap.dedent(claims))
        monkeypatch.syspath_prepend(folder)
        opened = open_registry(home=tmp_path / "home", search_path=[str(folder)])
        made.append(Plugin(f"optimizer.{name}", folder / name, opened, tmp_path / "evidence"))
        return made[-1]

    yield add
    for plugin in made:
        plugin.registry.close()


def test_a_verdict_follows_from_the_figures_and_the_manifest(install: Install) -> None:
    rows = {outcome.row.claim: outcome.row for outcome in install().repro()}
    assert (rows["speed"].verdict, rows["speed"].paper, rows["speed"].ours) == ("reproduced", 2.05, 2.0)
    assert (rows["size"].verdict, rows["size"].paper, rows["size"].ours) == ("not_reproduced", 3.0, 7.0)


def test_a_row_says_with_what_it_was_measured_and_how_to_repeat_it(install: Install) -> None:
    plugin = install()
    (outcome,) = plugin.repro(claims=["speed"], seeds=[4, 5])
    row = outcome.row
    assert row.seeds == (4, 5)
    assert row.baseline == 1.0
    assert row.versions[plugin.id] == plugin.registry.get(plugin.id).digest
    assert row.versions[plugin.folder.name] == "1.0"
    assert {"python", "torch", "stackloom"} <= row.versions.keys()
    assert row.command == f"stackloom repro {plugin.id} --claim speed --scale cpu --seeds 4,5"
    assert "CPU" in row.device
    assert plugin.registry.evidence.rows(plugin.id) == [row] == plugin.written()
    assert plugin.registry.evidence.stale(plugin.registry.get(plugin.id)) == []


def test_a_claim_with_evidence_is_not_measured_again_unless_something_changed(install: Install) -> None:
    plugin = install()
    first = plugin.repro()
    assert [outcome.seconds for outcome in plugin.repro()] == [0.0, 0.0]
    assert plugin.repro()[0].row == first[0].row
    assert all(outcome.seconds for outcome in plugin.repro(again=True))
    assert all(outcome.seconds for outcome in plugin.repro(seeds=[9]))
    plugin.edit(component="class Component: changed = True\n")
    assert all(outcome.seconds for outcome in plugin.repro())


def test_evidence_from_elsewhere_counts_and_is_copied_to_a_new_folder(install: Install, tmp_path: Path) -> None:
    plugin = install()
    measured = plugin.repro()
    assert [outcome.seconds for outcome in plugin.repro(out=tmp_path / "other")] == [0.0, 0.0]
    with open_registry(home=tmp_path / "fresh", search_path=plugin.registry.search_path) as fresh:
        again = list(reproduce([plugin.id], fresh, out=tmp_path / "other"))
    assert [outcome.row for outcome in again] == [outcome.row for outcome in measured]


def test_a_plugin_that_a_claim_used_is_part_of_what_was_measured(install: Install) -> None:
    other = install()
    user = install(
        f"""
        def speed(ctx):
            ctx.component("{other.id}", lr=0.5)
            return ClaimResult(ours=2.05, seeds=(0,))
        """,
        SPEED,
    )
    (outcome,) = user.repro()
    assert outcome.failure is None
    assert outcome.row.versions[other.id] == other.registry.get(other.id).digest
    assert not user.repro()[0].seconds
    (other.folder / "more.py").write_text("")
    user.edit()
    assert user.repro()[0].seconds


def test_a_claim_that_raises_is_an_error_the_others_go_on_and_it_is_tried_again(install: Install) -> None:
    plugin = install("def speed(ctx):\n    1 / 0\n" + SIZE_CODE)
    speed, size = plugin.repro()
    assert isinstance(speed.failure, PluginError)
    assert (speed.row.verdict, speed.row.ours) == ("error", None)
    assert "PluginError" in speed.row.error
    assert "division by zero" in speed.row.error
    assert size.failure is None
    assert [row.verdict for row in plugin.written()] == ["error", "not_reproduced"]
    again = plugin.repro()
    assert [bool(outcome.seconds) for outcome in again] == [True, False]


def test_a_typed_error_keeps_its_type(install: Install) -> None:
    plugin = install("def speed(ctx):\n    ctx.component('optimizer.nothere')\n", SPEED)
    (outcome,) = plugin.repro()
    assert isinstance(outcome.failure, ConfigError)
    assert "optimizer.nothere" in outcome.row.error


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("2.0", "returned float"),
        ("ClaimResult(ours=float('nan'), seeds=(0,))", "cannot hold"),
        ("ClaimResult(ours=1, seeds=(0,), details={'x': [float('inf')]})", "cannot hold"),
        ("ClaimResult(ours=1, seeds=(0,), details={'x': {1, 2}})", "cannot hold"),
        ("ClaimResult(ours=1, seeds=(0,), details={'curves': [{'title': 't'}]})", "cannot hold"),
        ("ClaimResult(ours=1, seeds=(0,), details={'tables': [{'title': '', 'columns': ['a'], 'rows': [[1, 2]]}]})",
         "2 cells for 1 column"),
    ],
)  # fmt: skip
def test_what_is_no_measurement_is_an_error_of_the_plugin(install: Install, returned: str, reason: str) -> None:
    (outcome,) = install(f"def speed(ctx):\n    return {returned}\n", SPEED).repro()
    assert isinstance(outcome.failure, PluginError)
    assert reason in outcome.row.error
    assert outcome.row.ours is None


def test_a_claim_without_its_function_stops_before_anything_is_measured(install: Install, tmp_path: Path) -> None:
    plugin = install("def spede(ctx):\n    pass\n" + SIZE_CODE)
    with pytest.raises(PluginError, match=r"(?s)claim 'speed' has no function.*did you mean 'spede'"):
        plugin.repro()
    with pytest.raises(PluginError, match=r"there is no claims.py"):
        install(None).repro()
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"claims": ["sped"]}, r"no 'sped'.*did you mean 'speed'"),
        ({"scale": "gpus"}, r"unknown scale 'gpus'.*did you mean 'gpu'"),
        ({"scale": "cpu-full"}, r"nothing is claimed at scale cpu-full.*exist at: cpu"),
        ({"seeds": []}, "no seed"),
    ],
)
def test_a_request_that_means_nothing_says_what_would(install: Install, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        install().repro(**options)


def test_an_unknown_plugin_suggests_the_nearest(install: Install) -> None:
    plugin = install()
    with pytest.raises(ConfigError, match=f"did you mean '{plugin.id}'"):
        list(reproduce([plugin.id + "x"], plugin.registry))


def test_scale_gpu_without_one_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FitError, match="needs a CUDA device"):
        install(manifest=claim("speed", scales=["gpu"])).repro(scale="gpu")


def test_a_claim_beyond_its_budget_says_so(install: Install) -> None:
    plugin = install("def speed(ctx):\n    return ClaimResult(ours=ctx.seconds_left, seeds=(0,))\n", SPEED)
    (over,) = plugin.repro(minutes=0)
    assert over.over_budget
    assert over.row.ours < 0
    (within,) = plugin.repro(minutes=5)
    assert not within.over_budget
    assert 200 < within.row.ours <= 300


def test_a_file_keeps_the_claims_that_were_not_asked_for_in_the_manifest_s_order(install: Install) -> None:
    plugin = install()
    plugin.repro(claims=["size"])
    plugin.repro(claims=["speed"])
    assert [row.claim for row in plugin.written()] == ["speed", "size"]


def test_a_file_that_is_no_evidence_is_left_alone(install: Install) -> None:
    plugin = install()
    plugin.out.mkdir()
    path = plugin.out / f"{plugin.id}.cpu.json"
    path.write_text("{}")
    with pytest.raises(ArtifactError, match="is no evidence"):
        plugin.repro()
    assert path.read_text() == "{}"


def test_evidence_of_a_source_tree_lies_in_it_and_of_a_wheel_in_the_home(install: Install, tmp_path: Path) -> None:
    plugin = install()
    plugin.repro(out=None)
    assert (tmp_path / "home" / "claims" / f"{plugin.id}.cpu.json").is_file()
    (tmp_path / "pyproject.toml").write_text("")
    plugin.repro(out=None)
    assert (tmp_path / "docs" / "evidence" / "claims" / f"{plugin.id}.cpu.json").is_file()


CURVES = """
from stackloom.core.claims import Curve, Table

def speed(ctx):
    curve = Curve(title="Loss <of> it", across="step", up="loss", x=(1, 2, 3), series={"ours": (3, None, 1)})
    table = Table(title="Sizes", columns=("what", "bytes"), rows=(("<b>", 12), ("none", None)))
    return ClaimResult(ours=2.05, seeds=(0,), details={"curves": [curve], "tables": [table]})
"""


def test_curves_and_tables_are_drawn_on_one_page_that_needs_nothing_else(install: Install) -> None:
    plugin = install(CURVES, SPEED)
    plugin.repro()
    page = (plugin.out / f"{plugin.id}.cpu.html").read_text()
    for text in ("Loss &lt;of&gt; it", "<svg ", "Sizes", "&lt;b&gt;", "reproduced", "stackloom repro"):
        assert text in page
    assert "src=" not in page
    assert "<b>" not in page
    assert plugin.written()[0].details["curves"][0]["series"] == {"ours": [3.0, None, 1.0]}


def test_evidence_without_drawings_has_no_page(install: Install) -> None:
    plugin = install()
    plugin.repro()
    assert list(plugin.out.glob("*.html")) == []


STACKS = """
def speed(ctx):
    model, tokenizer = ctx.model({checkpoint!r}, dtype="float32")
    (first, *_) = rows = ctx.data("data.pydoc", tokenizer, sequences=2, sequence_length=16, split="held-out")
    stages = [{{"evaluate": {{"data": {{"use": "data.pydoc"}}, "sequences": 2, "sequence_length": 16}}}}]
    stack = {{"model": {{"use": "model.hf", "checkpoint": {checkpoint!r}}}, "stages": stages}}
    stack["resources"] = {{"dtype": "float32"}}
    seconds = [sum(ctx.run(stack).seconds) for _ in range(2)]
    ctx.say(f"{{len(rows)}} of {{len(first)}}, {{ctx.device}}, {{next(model.parameters()).dtype}}")
    ours = ctx.run(stack).metrics(0)["perplexity"]["value"]
    return ClaimResult(ours=ours, seeds=(0,), details={{"seconds": seconds}})
"""


def test_a_claim_runs_models_data_and_stacks_and_the_same_stack_only_once(install: Install, tmp_path: Path) -> None:
    from stackloom.testing import llama_shape, tiny_llama, tiny_tokenizer

    folder = tmp_path / "checkpoint"
    tiny_llama(llama_shape(vocab=len(tiny_tokenizer()))).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    plugin, lines = install(STACKS.format(checkpoint=str(folder)), claim("speed", better="higher")), Lines()
    everything = open_registry(home=tmp_path / "home")
    plugin.registry.close()
    plugin.registry = everything
    (outcome,) = plugin.repro(watcher=lines)
    assert outcome.failure is None
    assert "2 of 16, cpu, torch.float32" in lines.said
    first, second = outcome.row.details["seconds"]
    assert first > 0 == second
    assert {"model.hf", "data.pydoc"} <= outcome.row.versions.keys()


def test_the_command_prints_rows_and_fails_when_a_claim_does(stackloom, site, tmp_path: Path) -> None:
    folder = site("acme", "optimizer.acme", manifest=f"{SPEED}\n{SIZE}".replace("[can]", ""))
    toml = folder / "acme" / "plugin.toml"
    assert "[[claims]]" in toml.read_text()
    (folder / "acme" / "claims.py").write_text(HEAD + MEASURES.replace("ours=7.0", "ours=1 / 0"))
    bystander = site("other", "optimizer.other", manifest=SPEED)
    (bystander / "other" / "claims.py").write_text("raise SystemExit('imported without need')")
    done = stackloom("repro", "optimizer.acme", "--json", "--out", str(tmp_path / "out"), site=folder)
    assert done.returncode == 1
    assert [row["verdict"] for row in json.loads(done.stdout)] == ["reproduced", "error"]
    assert "division by zero" in done.stderr
    assert "Traceback" not in done.stderr
    passing = stackloom("repro", "optimizer.acme", "--claim", "speed", "--out", str(tmp_path / "out"), site=folder)
    assert passing.returncode == 0, passing.stderr
    assert "1.9 to 2.1" in passing.stdout
    assert "evidence:" in passing.stdout
    assert "has evidence already" in passing.stderr
