"""The built site in a browser: `make docs` first, and Chromium; `.ci/run` has a tier for it."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[2]
PREFIX = "/some/where"  # the site works below any path
CHROMIUM = os.environ.get("STACKLOOM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = {"phone": (375, 800), "desk": (1440, 900)}
PAGES = [
    "index.html",
    "catalogue/index.html",
    "catalogue/optimizer.mona.html",
    "slots/optimizer.html",
    "papers/mona.html",
    "explore/matrix.html",
    "explore/pairs.html",
    "explore/composer.html",
    "explore/compare.html",
    "explore/stacks.html",
    "explore/survives.html",
    "explore/benchmarks.html",
]
Open = Callable[..., "sync_api.Page"]


class Below(http.server.SimpleHTTPRequestHandler):
    """Serves the site below PREFIX and nothing else."""

    def translate_path(self, path: str) -> str:
        inside = path.startswith(PREFIX + "/")
        return super().translate_path(path.removeprefix(PREFIX) if inside else "/no-such-file")

    def log_message(self, *arguments: object) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a closed page asks for nothing more
            super().copyfile(source, outputfile)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    folder = ROOT / "site"
    if not (folder / "index.html").is_file():
        pytest.skip("no site: run `make docs` first")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Below, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}{PREFIX}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, site: str) -> Iterator[Open]:
    """`visit(page, width)`: an open page; the test fails on a console error, a failed or a foreign request."""
    problems: list[str] = []
    contexts = []

    def open_page(path: str, width: str = "desk") -> sync_api.Page:
        wide, high = WIDTHS[width]
        context = browser.new_context(viewport={"width": wide, "height": high}, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
        page.on(
            "request", lambda ask: None if ask.url.startswith((site, "data:", "blob:")) else problems.append(ask.url)
        )
        page.goto(site + path, wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_and_no_wider_than_the_screen(visit: Open, path: str, width: str, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(path, width)
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shots = Path(os.environ.get("STACKLOOM_SHOTS") or tmp_path)
    page.screenshot(path=str(shots / f"{Path(path).with_suffix('').as_posix().replace('/', '.')}.{width}.png"))


def test_search_finds_a_plugin(visit: Open) -> None:
    page = visit("index.html")
    page.locator("input.md-search__input").click()
    page.locator("input.md-search__input").press_sequentially("mona")
    page.locator(".md-search-result__link").first.wait_for()
    links = page.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    assert any("optimizer.mona.html" in link for link in links)


def test_facets_narrow_the_catalogue_and_freshness_sorts_it(visit: Open) -> None:
    page = visit("catalogue/index.html")
    rows = page.locator("article table tbody tr")
    everything = rows.count()
    page.get_by_label("slot").select_option("optimizer")
    names = rows.locator("td:first-child").all_inner_texts()
    assert 0 < len(names) < everything
    assert all(name.startswith("optimizer.") for name in names)
    page.get_by_label("slot").select_option("")
    page.get_by_label("sort").select_option("measured on")
    days = [day for day in rows.locator("td:nth-child(9)").all_inner_texts() if day != "-"]
    assert days == sorted(days, reverse=True)
    assert rows.count() == everything


def test_a_plugins_page_says_a_null_result_as_plainly_as_a_success(visit: Open) -> None:
    page = visit("catalogue/optimizer.mona.html")
    good, bad = page.locator(".badge.reproduced").first, page.locator(".badge.not_reproduced").first
    assert (good.inner_text(), bad.inner_text()) == ("reproduced", "not reproduced")
    sizes = [spot.evaluate("spot => getComputedStyle(spot).fontSize") for spot in (good, bad)]
    assert sizes[0] == sizes[1]
    first = page.locator("article h2").first.inner_text()
    assert first.startswith("Claims and evidence")


def test_two_plugins_stand_side_by_side(visit: Open) -> None:
    page = visit("explore/compare.html")
    page.get_by_label("first").select_option(label="optimizer.mona")
    page.get_by_label("second").select_option(label="optimizer.muon")
    assert page.locator("article table thead th").all_inner_texts() == ["optimizer.mona", "optimizer.muon"]


def test_the_composer_blocks_with_a_reason_and_exports_what_plans(visit: Open, stackloom, tmp_path: Path) -> None:
    page = visit("explore/composer.html")
    said = page.locator("[data-output=verdict]")
    page.locator("select[name=device]").select_option("h100")
    page.locator("select[name=adapter]").select_option("adapter.lora")
    page.locator("select[name=transform]").select_option("transform.wisca")
    assert "frozen" in said.inner_text()
    assert "adapter.lora" in said.inner_text()
    assert "(blocked)" in page.locator("select[name=transform]").locator("option:checked").inner_text()
    page.locator("select[name=transform]").select_option("")
    page.locator("select[name=quantizer]").select_option("quantizer.rtn")
    assert said.inner_text() == "Fits."
    stack = tmp_path / "stack.yaml"
    stack.write_text(page.locator("[data-output=yaml]").inner_text())
    link = re.search(r"'(.*)'", page.locator("[data-output=link]").inner_text())[1]
    plans = [stackloom("plan", given, "--json") for given in (str(stack), link)]
    assert plans[0].returncode == 0, plans[0].stderr
    assert plans[0].stdout == plans[1].stdout
    code = link.partition("#stack=")[2]
    assert base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)).decode().strip() == stack.read_text().strip()
    script = page.locator("[data-output=python]").inner_text()
    spoken: dict[str, object] = {}
    exec(script.replace("print(stack.plan())", ""), spoken)  # our own page's export, as a user would run it
    assert '"quantizer.rtn"' in script
    assert spoken["stack"].plan().ok


def test_the_first_page_weighs_at_most_300_kb(browser, site: str) -> None:
    page = browser.new_page()
    sizes: dict[str, int] = {}
    page.on("response", lambda answer: sizes.update({answer.url: len(answer.body())}))
    page.goto(site + "index.html", wait_until="load")
    wanted = {url: size for url, size in sizes.items() if not url.endswith((".png", ".svg"))}
    page.close()
    assert sum(wanted.values()) <= 300_000, wanted


def test_no_link_of_the_site_is_broken(site: str) -> None:
    folder = ROOT / "site"
    dead = []
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if page.name == "404.html":  # its links start at the root
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', text):
            if not re.match(r"[a-z]+:", target) and not (page.parent / unquote(target)).exists():
                dead.append(f"{page.relative_to(folder)} -> {target}")
    assert dead == []
