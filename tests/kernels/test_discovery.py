"""A folder is an op; a new one edits no existing file."""

import sys

import pytest

from stackloom.kernels.discovery import load_op, op_names


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """A package `somewhere` with one op, one op that exposes nothing, and a folder that is no op."""
    for folder, files in {"": {}, "scale": {"reference.py": ""}, "broken": {"reference.py": ""}, "tooling": {}}.items():
        path = tmp_path / "somewhere" / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, text in {"__init__.py": "OP = 'the op'" if folder == "scale" else "", **files}.items():
            (path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "somewhere"
    for name in [name for name in sys.modules if name.split(".")[0] == "somewhere"]:
        del sys.modules[name]


def test_every_folder_with_a_reference_is_an_op(third_party):
    assert op_names(third_party) == ("broken", "scale")
    assert load_op("scale", third_party) == "the op"


def test_a_folder_that_exposes_no_op_is_named(third_party):
    with pytest.raises(AttributeError, match=r"somewhere\.broken exposes no OP"):
        load_op("broken", third_party)


def test_an_unknown_op_lists_the_known_ones():
    with pytest.raises(KeyError, match=f"no op 'nonesuch'; there are {', '.join(op_names())}"):
        load_op("nonesuch")


def test_first_party_ops_are_named_after_their_folders():
    assert {"int4_pack", "rms_norm"} <= set(op_names())
    assert all(load_op(name).name == name for name in op_names())


def test_listing_ops_imports_neither_torch_nor_any_op(python):
    result = python(
        "-c", "import sys; from stackloom.kernels.discovery import op_names; op_names(); print(*sys.modules, sep='\\n')"
    )
    loaded = set(result.stdout.split())
    assert "stackloom.kernels.discovery" in loaded
    assert not loaded & {"torch", "triton", "numpy", "pydantic", *(f"stackloom.kernels.{name}" for name in op_names())}


def test_kernels_import_torch_triton_and_the_standard_library_only():
    """numpy, which comes with the interpreter, is allowed in the interpreter's fixes alone."""
    import ast
    from pathlib import Path

    import stackloom.kernels

    (root,) = stackloom.kernels.__path__
    for path in Path(root).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            allowed = {"torch", "triton", "__future__", *sys.stdlib_module_names}
            allowed |= {"numpy"} if path.parts[-2:] == ("tooling", "interpreter.py") else set()
            assert {name.split(".")[0] for name in names} <= allowed, f"{path} imports {names}"
