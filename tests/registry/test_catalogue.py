"""The catalogue serves what discovery found, says who should act where it cannot, and follows the environment."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, text

from stackloom.core.catalogue import Catalogue
from stackloom.core.errors import ConfigError, PluginError
from stackloom.core.rows import PluginRow
from stackloom.registry import open_registry

MONA = (
    'version = "3"\nlifecycle = "stable"\nkeywords = ["spectral", "Muon"]\n'
    'paper = {title = "On orthogonal momentum", page = "MONA"}\n'
    '[needs]\ntorch = ">=2"\n[can]\ndtypes = ["float32", "bfloat16"]\ndevices = ["cpu", "cuda"]\n'
    '[[conflicts]]\nwith = "quantizer.*"\nreason = "both rewrite weights"\n'
    '[[claims]]\nname = "faster"\nstatement = "Halves the wall-clock time"\n'
    'where = "table 2"\nmetric = "hours"\npaper = 0.5\n'
)


@pytest.fixture
def registry(site, manifest, store_url):
    site.wheel(
        "acme",
        {
            "optimizer/mona": manifest("optimizer.mona", MONA),
            "optimizer/adamw": manifest("optimizer.adamw"),
            "attention/full": manifest("attention.full", 'summary = "Softmax attention; not spectral"'),
            "optimizer/bad": manifest("optimizer.bad", 'lifecycle = "eternal"'),
        },
        version="1.2",
    )
    site.wheel("evil", {"adamw": manifest("optimizer.adamw")}, version="6.6")
    with open_registry(store_url, search_path=site.path) as registry:
        yield registry


def test_the_registry_is_a_catalogue(registry, site):
    catalogue: Catalogue = registry
    assert list(catalogue.ids()) == ["attention.full", "optimizer.mona"]
    record = catalogue.get("optimizer.mona")
    assert (record.distribution, record.version, record.package) == ("acme", "1.2", "acme.optimizer.mona")
    assert record.folder == site.folder / "acme/optimizer/mona"


def test_a_record_from_the_index_equals_the_discovered_one(registry, site):
    from stackloom.registry.discovery import discover

    for record in discover(site.path).records:
        assert registry.get(record.id) == record
        assert registry.get(record.id) is registry.get(record.id)


def test_an_unknown_id_suggests_the_nearest(registry):
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer.mona'\?"):
        registry.get("optimizer.monna")
    with pytest.raises(ConfigError, match="stackloom list"):
        registry.get("zzzz.zzzz")


def test_a_broken_id_names_distribution_version_and_cause(registry):
    with pytest.raises(PluginError, match=r"acme 1\.2") as caught:
        registry.get("optimizer.bad")
    assert "lifecycle" in str(caught.value)


def test_an_id_claimed_twice_names_both(registry):
    with pytest.raises(PluginError) as caught:
        registry.get("optimizer.adamw")
    assert "acme 1.2" in str(caught.value)
    assert "evil 6.6" in str(caught.value)


def test_rows_filter_by_every_facet_and_page(registry):
    mona = PluginRow(
        id="optimizer.mona", slot="optimizer", version="3", lifecycle="stable", paper="MONA", origin="acme"
    )
    full = PluginRow(
        id="attention.full", slot="attention", version="1.2", lifecycle="experimental", paper="", origin="acme"
    )
    assert registry.rows() == [full, mona]
    assert registry.rows(slot="optimizer") == registry.rows(paper="MONA") == registry.rows(lifecycle="stable") == [mona]
    assert registry.rows(origin="evil") == []
    assert registry.rows(slot="attention", lifecycle="stable") == []
    assert registry.rows(limit=1) == [full]
    assert registry.rows(limit=1, offset=1) == [mona]
    assert registry.rows()[0].model_dump_json() == full.model_dump_json()


def test_rows_order_ids_by_code_point(site, manifest, store_url):
    ids = ["optimizer.a-b", "optimizer.a1", "optimizer.ab", "optimizer.a"]
    site.wheel("acme", {f"x{number}": manifest(plugin) for number, plugin in enumerate(ids)})
    with open_registry(store_url, search_path=site.path) as registry:
        assert registry.ids() == [row.id for row in registry.rows()] == sorted(ids)


@pytest.mark.parametrize(
    "words", ["mona", "MONA", "spectral", "muon", "orthogonal", "halves wall-clock", "optimizer.mona", "mona spectral"]
)
def test_search_looks_into_id_keywords_paper_and_claims_in_any_case(registry, words):
    assert registry.search(words).rows[0].id == "optimizer.mona"


def test_every_word_must_occur(registry):
    assert registry.search("mona softmax").rows == ()


def test_a_keyword_ranks_above_a_word_of_the_summary(registry):
    assert [row.id for row in registry.search("spectral").rows] == ["optimizer.mona", "attention.full"]
    assert [row.id for row in registry.search("spectral", limit=1).rows] == ["optimizer.mona"]
    assert registry.search("spectral", limit=1).total == 2


def test_facets_count_what_matches_and_filter(registry, evidence_row):
    registry.evidence.append(evidence_row())
    result = registry.search("")
    assert result.facets == {
        "slot": {"attention": 1, "optimizer": 1},
        "paper": {"MONA": 1},
        "dtype": {"bfloat16": 1, "float32": 2},
        "device": {"cpu": 2, "cuda": 1},
        "lifecycle": {"experimental": 1, "stable": 1},
        "origin": {"acme": 2},
        "evidence": {"no": 1, "yes": 1},
    }
    for facet in (
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"slot": "optimizer"},
        {"paper": "MONA"},
        {"evidence": True},
    ):
        assert [row.id for row in registry.search("", **facet).rows] == ["optimizer.mona"]
    assert [row.id for row in registry.search("spectral", evidence=False).rows] == ["attention.full"]
    with pytest.raises(ConfigError, match="did you mean 'dtype'"):
        registry.search("", dtpye="float32")


def test_nothing_found_suggests_what_is_near(registry):
    assert registry.search("spectrall").hint == "did you mean 'spectral'?"
    assert registry.search("monna").hint.startswith("did you mean 'mona'")
    assert registry.search("mona").hint == ""


@pytest.mark.parametrize("words", ["%", "_", "\\", "' OR 1=1 --", "100%_\\"])
def test_words_are_literal(registry, words):
    assert registry.search(words).rows == ()


def test_slots_claims_and_problems_are_served(registry):
    assert [(slot.name, slot.api, slot.plugins) for slot in registry.slots()] == [
        ("attention", "attention/1", 1),
        ("optimizer", "optimizer/1", 1),
    ]
    ((plugin, claim),) = registry.claims()
    assert (plugin, claim.name, claim.paper) == ("optimizer.mona", "faster", 0.5)
    assert registry.claims("attention.full") == []
    assert [(problem.plugin, problem.distribution) for problem in registry.problems()] == [
        ("optimizer.bad", "acme"),
        ("optimizer.adamw", "acme"),
        ("optimizer.adamw", "evil"),
    ]


def test_refresh_follows_the_environment(registry, site, manifest):
    before = registry.get("optimizer.mona")
    registry.refresh()
    assert registry.get("optimizer.mona") is before  # nothing changed, nothing was read
    site.wheel("newcomer", {"x": manifest("optimizer.new")})
    registry.refresh()
    assert registry.ids() == ["attention.full", "optimizer.mona", "optimizer.new"]
    assert registry.get("optimizer.mona") is not before
    (site.folder / "newcomer-1.0.dist-info/entry_points.txt").unlink()
    registry.refresh()
    assert registry.ids() == ["attention.full", "optimizer.mona"]


def test_two_environments_share_a_store_without_seeing_each_others_plugins(
    registry, new_site, tmp_path, manifest, store_url
):
    other = new_site(tmp_path / "other")
    other.wheel("other", {"x": manifest("optimizer.other")})
    with open_registry(store_url, search_path=other.path) as second:
        assert second.ids() == ["optimizer.other"]
        registry.refresh()
        assert registry.ids() == ["attention.full", "optimizer.mona"]
        with pytest.raises(ConfigError):
            second.get("optimizer.mona")


def test_a_snapshot_that_other_environments_pushed_out_is_made_again(registry, new_site, tmp_path, manifest, store_url):
    from stackloom.registry.catalogue import SNAPSHOTS_KEPT

    for number in range(SNAPSHOTS_KEPT + 1):
        other = new_site(tmp_path / f"other{number}")
        other.wheel("other", {"x": manifest(f"optimizer.number-{number}")})
        open_registry(store_url, search_path=other.path).close()
    engine = create_engine(store_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM snapshots")).scalar() == SNAPSHOTS_KEPT
        assert (
            connection.execute(text("SELECT count(*) FROM plugins")).scalar() == SNAPSHOTS_KEPT
        )  # the rows went with them
    engine.dispose()
    assert registry.rows(slot="optimizer")[0].id == "optimizer.mona"
    assert registry.get("optimizer.mona").version == "1.2"


READ = """
import json, sys
from stackloom.registry import open_registry
with open_registry(search_path=sys.argv[1:]) as registry:
    rows = registry.rows()
    registry.search("mona")
    registry.get("optimizer.mona")
heavy = ("sqlalchemy", "alembic", "psycopg", "torch", "triton", "ray", "transformers")
print(json.dumps([len(rows), [name for name in heavy if name in sys.modules]]))
"""


def test_reading_a_fresh_index_imports_neither_sqlalchemy_nor_alembic_nor_torch(site, manifest, home):
    site.wheel("acme", {"mona": manifest("optimizer.mona", MONA)})

    def read() -> list[object]:
        return json.loads(
            subprocess.run([sys.executable, "-c", READ, *site.path], check=True, text=True, capture_output=True).stdout
        )

    assert read() == [1, ["sqlalchemy"]]  # the first call indexes
    assert read() == [1, []]


def test_importing_the_package_imports_none_of_its_modules():
    code = (
        "import sys, stackloom.registry; print(sorted(name for name in sys.modules if name.startswith('stackloom.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True).stdout
    assert out.strip() == "['stackloom.registry']"
