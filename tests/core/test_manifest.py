from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackloom.core.manifest import MAX_BYTES, Manifest, ManifestError, parse_manifest, parse_toml, read_toml

GOOD = {
    "id": "optimizer.mona",
    "slot_api": "optimizer/1",
    "config": "config:MonaConfig",
    "component": "mona:Mona",
    "summary": "an optimizer",
    "licence": "Apache-2.0",
    "determinism": "exact",
}


def problems(table: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(table, "plugin.toml")
    return dict(caught.value.problems)


def test_a_minimal_manifest_is_valid() -> None:
    assert parse_manifest(GOOD, "x").slot == "optimizer"


def test_ten_errors_are_reported_at_once_with_their_paths() -> None:
    found = problems(
        {
            "id": "Mona",
            "slot_api": "optimizer",
            "config": "config",
            "component": 3,
            "summary": "",
            "lifecycle": "done",
            "determinsm": "exact",
            "needs": {"torch": "newest"},
            "can": {"devices": ["tpu"], "dtype": []},
            "claims": [{"name": "A", "statement": "s", "where": "", "metric": "m"}],
        }
    )
    assert {
        "id",
        "slot_api",
        "config",
        "component",
        "summary",
        "lifecycle",
        "determinsm",
        "needs",
        "can.devices[0]",
        "can.dtype",
        "claims[0].name",
        "claims[0].where",
        "licence",
        "determinism",
    } == set(found)
    assert found["determinsm"] == "unknown key; did you mean 'determinism'?"
    assert found["can.dtype"] == "unknown key; did you mean 'dtypes'?"
    assert found["licence"] == "required, but missing"


def test_id_and_slot_api_name_the_same_slot() -> None:
    assert "different slots" in next(iter(problems(GOOD | {"slot_api": "attention/1"}).values()))


def test_two_claims_of_one_name_are_refused() -> None:
    claim = {"name": "a", "statement": "s", "where": "Table 1", "metric": "m"}
    assert "named twice: a" in next(iter(problems(GOOD | {"claims": [claim, claim]}).values()))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"id = ", b"a = " + b"[" * 10_000, b"a = " + b"9" * 5_000])
def test_a_file_that_is_no_toml_says_so(content: bytes) -> None:
    with pytest.raises(ManifestError, match="not TOML"):
        parse_toml(content, "plugin.toml")


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "plugin.toml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ManifestError, match="at most"):
        read_toml(path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "plugin.toml"
    path.write_text('id = "a"')
    assert read_toml(path) == {"id": "a"}
    path.write_text('id = "longer"')
    assert read_toml(path) == {"id": "longer"}


def test_every_field_of_the_exported_schema_is_described() -> None:
    schema = Manifest.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    bare = [
        name
        for table in tables
        for name, field in table.get("properties", {}).items()
        if "description" not in field and "$ref" not in field and field.get("items", {}).keys() != {"$ref"}
    ]
    assert bare == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Manifest.model_fields, "nonsense"]), values, max_size=8))
def test_any_table_is_either_a_manifest_or_a_manifest_error(table: dict[str, object]) -> None:
    try:
        parsed = parse_manifest(GOOD | table, "fuzz")
    except ManifestError as error:
        assert error.problems
    else:
        assert parse_manifest(json.loads(parsed.model_dump_json(by_alias=True)), "again") == parsed
