from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import stackloom as sl
from stackloom import report
from stackloom.core import statistics
from stackloom.core.errors import ArtifactError, ConfigError
from stackloom.core.plan import gib
from stackloom.registry import open_registry
from stackloom.report import plots, write_report
from stackloom.run import runner

VOID = {"meta", "br", "link", "img"}


class Tree(HTMLParser):
    """Tags with their attributes and parents, and the text below each; complains about what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, *names: str) -> list[tuple[str, dict[str, str | None], tuple[str, ...]]]:
        return [found for found in self.tags if found[0] in names]


@pytest.fixture(scope="module")
def tree(page: str) -> Tree:
    return Tree(page)


def words(page: str) -> str:
    """The page's text without tags, for the eye."""
    text = re.sub(r"<(style|title)\b.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(text).replace("\N{NO-BREAK SPACE}", " "))


def of_stage(page: str, index: int) -> str:
    """The text of one stage's section."""
    return words(page.split(f'aria-labelledby="stage-{index}"')[1].split("</section>")[0])


def row_of(page: str, caption: str, head: str) -> str:
    """The text of a table's row."""
    table = page.split(f'<caption id="{caption}">')[1].split("</table>")[0]
    return next(row for row in map(words, table.split("<tr>")) if row.strip().startswith(head))


def test_the_page_needs_nothing_but_itself(page: str, tree: Tree) -> None:
    assert tree.named("script", "link", "img", "iframe", "object", "embed", "form") == []
    targets = [value for _, attrs, _ in tree.tags for name, value in attrs.items() if name in ("href", "xlink:href")]
    assert targets
    assert all(value and value.startswith("#") for value in targets)
    assert "src" not in {name for _, attrs, _ in tree.tags for name in attrs}
    assert not re.search(r"url\((?!#)|@import|javascript:", page)
    assert "default-src 'none'" in page


def test_every_link_and_reference_leads_to_one_place(page: str, tree: Tree) -> None:
    ids = [attrs["id"] for _, attrs, _ in tree.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = [str(attrs[name])[1:] for _, attrs, _ in tree.tags for name in ("href", "xlink:href") if name in attrs]
    used += [str(attrs["aria-labelledby"]) for _, attrs, _ in tree.tags if "aria-labelledby" in attrs]
    used += re.findall(r"url\(#([^)]+)\)", page)
    assert set(used) <= set(ids)


def test_headings_descend_one_level_at_a_time(tree: Tree) -> None:
    levels = [int(tag[1]) for tag, _, _ in tree.named("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_table_has_a_caption_and_every_head_a_scope(tree: Tree) -> None:
    assert len(tree.named("table")) == len(tree.named("caption")) > 0
    assert {attrs.get("scope") for _, attrs, _ in tree.named("th")} == {"col", "row"}


def test_every_plot_says_what_it_shows(tree: Tree) -> None:
    pictures = [attrs for _, attrs, _ in tree.tags if attrs.get("role") == "img"]
    assert len(pictures) == len(tree.named("svg")) == 8  # four curves, three of layers, differences
    assert all(len(str(attrs["aria-label"])) > 40 for attrs in pictures)


def test_a_logarithmic_axis_has_numbers_on_it() -> None:
    drawn = words(plots.dots("range", [0.5, 3178.0], across="layer", up="magnitude", lowest=False))
    assert {"1", "100", "1000"} < set(drawn.split())
    assert "$" not in drawn


def test_plots_take_their_colours_from_the_page(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert not re.search(r":\s*#[0-9a-f]{3,6}\b", "".join(drawings))
    variables = set(re.findall(r"var\((--\w+)\)", page))
    light, dark = page.split("prefers-color-scheme: dark")[0], page.split("prefers-color-scheme: dark")[1]
    assert all(f"{name}:" in light and f"{name}:" in dark for name in variables)


def test_text_from_tasks_and_tools_is_escaped(page: str) -> None:
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 5  # a kind, its task, a message, a tool call, a verifier's reason
    assert '<script>alert("task")</script>' in words(page)


def test_a_training_stage_shows_its_curves_and_where_it_ended(page: str) -> None:
    text = of_stage(page, 0)
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "8 of 8", "mean of last"):
        assert title in text


def test_an_evaluation_shows_rates_with_intervals_kinds_tokens_and_transcripts(page: str) -> None:
    text = of_stage(page, 1)
    made = statistics.pass_rate([True] * 8 + [False] * 19)
    low, high = (f"{100 * bound:.1f}" for bound in made["interval"])
    assert f"29.6 % ({low} to {high} %)" in text
    assert "12.5 (11.25 to 13.75) over 8 sequences" in text
    assert "43,210" in text
    assert "multiply 11 27.3 % 9.7 to 56.6 %" in text
    assert "trained on" not in text
    assert "6 of 30, failures first" in text
    assert "more characters" in text


def test_a_quantized_stage_lists_its_layers(page: str) -> None:
    text = of_stage(page, 2)
    assert "36 layers: 60.8 MiB before, 16.5 MiB after" in text
    assert "17 model.layers.5.mlp.down W4 g64" in text
    assert "5 model.layers.1.mlp.down W4 g64 - - ∞ -" in text
    assert "3 model.layers.1.mlp.gate W4 g64 equalized, static 31.7" in text
    assert "1.5 %" in text
    for plot in ("Signal-to-noise ratio", "Input range", "Output error"):
        assert f"{plot} by layer" in text


def test_differences_are_those_of_the_evaluate_stage(page: str, finished: Path) -> None:
    tasks = [json.loads((finished / f"{index}-evaluate/metrics.json").read_text())["tasks"] for index in (1, 3)]
    found = statistics.paired_difference(*tasks)
    low, high = (f"{100 * bound:+.1f}" for bound in found["interval"])
    assert row_of(page, "differences-caption", "1 to 3").split("same")[0].split() == [
        "1", "to", "3", str(found["count"]), f"{100 * found['value']:+.1f}", f"({low}", "to", f"{high})",
    ]  # fmt: skip


def test_the_plan_its_costs_and_its_code_are_there(page: str, finished: Path) -> None:
    plan = runner.Plan.from_file(finished / "plan.json")
    for part in plan.components():
        assert part.digest[:9] in row_of(page, "picks-caption", part.path)
    recorded = json.loads((finished / "run.json").read_text())
    assert gib(recorded["peak_bytes"][0]) in row_of(page, "cost-caption", "0 train")
    assert "optimizer.adamw" in page.split("<pre")[-3] + page.split("<pre")[-2]
    assert "decoupled_decay" in words(page.split('aria-labelledby="evidence"')[1])
    assert f"stackloom resume {finished}" in page


def test_equal_input_gives_equal_bytes(finished: Path, registry: Any, page: str) -> None:
    assert write_report(finished, registry).read_text(encoding="utf-8") == page
    assert [path.name for path in finished.glob("*report*")] == ["report.html"]


def test_what_the_run_recorded_of_itself_is_shown(finished: Path, registry: Any) -> None:
    record = {"seconds": [2.0, 1.0, 1.0, 0, 1.0], "peak_bytes": [2**30] * 4, "versions": {"torch": "9.9.9"}}
    kept = (finished / "run.json").read_text()
    try:
        (finished / "run.json").write_text(json.dumps(record))
        page = write_report(finished, registry).read_text(encoding="utf-8")
    finally:
        (finished / "run.json").write_text(kept)
    assert "9.9.9" in words(page)
    assert "recorded no package versions" not in page
    assert "1 GiB" in row_of(page, "cost-caption", "0 train")
    assert "not measured" in row_of(page, "cost-caption", "3 evaluate")  # skipped
    assert "not measured" in row_of(page, "cost-caption", "4 evaluate")  # beyond the list


@pytest.fixture
def stopped(
    tmp_path: Path, registry: Any, planned: Any, text: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that failed in its fifth training step, once."""
    from stackloom.run import train as stage

    plan = planned("stopped", train, sl.stage("evaluate", data=text))
    whole, calls = stage._step, []

    def breaks(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise OSError("out of paper")
        return whole(*arguments)

    monkeypatch.setattr(stage, "_step", breaks)
    with pytest.raises(OSError, match="paper"):
        runner.run(plan, registry, folder=tmp_path / "run")
    return tmp_path / "run"


def test_what_quantizing_did_to_the_predictions_stands_there_with_its_interval(page: str) -> None:
    text = of_stage(page, 1)
    assert "KL to the float model, nats per token 0.125 (0.1 to 0.15)" in text
    assert "Loss above the float model's, nats per token −0.01 (−0.03 to 0.01)" in text
    assert "Tokens that both rank first 75.0 %" in text
    assert "Multiple choice, 20 items; a guess has 25.0 % 45.0 %" in text
    assert "KL to the float model 0.125" in page


def test_an_unfinished_run_says_what_is_missing(stopped: Path, registry: Any) -> None:
    page = write_report(stopped, registry).read_text(encoding="utf-8")
    text = words(page)
    assert "Stage 0 (train) failed: last checkpoint at step 3 of 8." in text
    assert "Stage 1 (evaluate) was not started." in text
    assert "4 of 8" in of_stage(page, 0)
    assert "at least" in row_of(page, "cost-caption", "0 train")
    assert "Pass rate and perplexity: not measured." in of_stage(page, 1)
    assert "not measured" in row_of(page, "cost-caption", "1 evaluate")
    Tree(page)


def test_a_run_that_the_ledger_does_not_know_is_reported_from_its_artifacts(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(finished, folder)
    with open_registry(home=tmp_path / "home") as other:
        page = write_report(folder, other).read_text(encoding="utf-8")
    assert "The ledger does not know this run" in words(page)
    assert "Loss, learning rate, gradient norm and throughput: not measured." in of_stage(page, 0)
    assert "29.6 %" in of_stage(page, 1)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("1-evaluate/metrics.json", b"{}", "metrics.json is not what was written"),
        ("2-quantize/layers.json", b"[]", "layers.json is not what was written"),
        ("run.json", b'{"seconds": "long"}', "run.json is damaged: seconds"),
    ],
)
def test_damage_is_named_and_the_rest_is_shown(
    finished: Path, tmp_path: Path, registry: Any, file: str, content: bytes, reason: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / file).write_bytes(content)
    page = write_report(folder, registry).read_text(encoding="utf-8")
    assert reason in words(page)
    assert "92.6 %" in of_stage(page, 3)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, registry: Any) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json"):
        write_report(tmp_path, registry)


def test_a_folder_that_cannot_be_written_keeps_its_old_report(
    finished: Path, tmp_path: Path, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / report.REPORT_FILE).write_text("the old one")
    monkeypatch.setattr("stackloom.registry.atomic.os.write", full)
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_report(folder, registry)
    assert (folder / report.REPORT_FILE).read_text() == "the old one"
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_an_absent_package_says_what_to_install(
    package: str, finished: Path, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] == package or name.startswith("stackloom.report.p")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}.*\n.*pip install 'stackloom\[train\]'"):
        write_report(finished, registry)


def test_importing_the_report_loads_nothing_heavy() -> None:
    code = "import sys, stackloom.report, stackloom.report.record; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers", "matplotlib", "jinja2"}.isdisjoint(loaded)
