from __future__ import annotations

import time

import pytest

from stackloom.core import loading
from stackloom.core.errors import PluginError


def config(body: str) -> str:
    head = "from stackloom.core.config import ComponentConfig, option"
    return f"{head}\n{body}\nclass Config(ComponentConfig):\n    lr: float = option(0.1, 'rate')\n"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import not_there", "not_there"),
        ("x = (", "SyntaxError"),
    ],
)
def test_whatever_an_import_does_the_error_names_distribution_version_and_cause(site, body: str, cause: str) -> None:
    record = site.add("optimizer.broken", config(body))
    with pytest.raises(PluginError, match=cause) as caught:
        loading.load_config(record)
    assert caught.value.where == "optimizer.broken (dist-optimizer-broken 1.0)"


def test_an_import_that_hangs_is_stopped(site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "IMPORT_SECONDS", 0.3)
    record = site.add("optimizer.hangs", config("import time; time.sleep(60)"))
    start = time.perf_counter()
    with pytest.raises(PluginError, match=r"TimeoutError: still not done after 0\.3 s"):
        loading.load_config(record)
    assert time.perf_counter() - start < 10


def test_a_config_class_that_is_missing_or_no_config_is_refused(site) -> None:
    for source in ("x = 1", "class Config: pass"):
        record = site.add("optimizer.wrong", source, package=f"site_wrong_{len(source)}")
        with pytest.raises(PluginError, match="config:Config is no ComponentConfig"):
            loading.load_config(record)


def test_a_model_s_config_must_be_a_model_config(site) -> None:
    record = site.add("model.plain", config(""))
    with pytest.raises(PluginError, match="is no ModelConfig"):
        loading.load_config(record)


def test_a_plugin_for_another_version_of_the_contract_is_refused_before_its_import(site) -> None:
    record = site.add("optimizer.future", config("raise AssertionError('imported')"))
    future = type(record)(
        record.manifest.model_copy(update={"slot_api": "optimizer/2"}),
        record.distribution,
        record.version,
        record.package,
        record.folder,
    )
    with pytest.raises(PluginError, match="made for optimizer/2; this stackloom has optimizer/1"):
        loading.load_config(future)
