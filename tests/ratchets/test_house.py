"""The shape of the house: who may import whom, how large it may grow, what no file may hold."""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "registry", "kernels", "environments", "plugins", "sdk")
STDLIB = sys.stdlib_module_names

# folder: (our own planes it may import, other distributions it may import)
ARROWS = {
    "core": ({"core"}, {"pydantic", "pydantic_core", "pluggy", "packaging", "yaml"}),
    "registry": ({"core", "registry"}, {"sqlalchemy", "alembic", "pydantic", "packaging", "platformdirs"}),
    "kernels": ({"kernels"}, {"torch", "triton"}),
    "environments": (
        {"core", "environments"},
        {"pydantic", "sqlalchemy", "gymnasium", "mcp", "mcp_types", "anyio", "uvicorn", "httpx", "pyseccomp"},
    ),
    "plugins": ({"core", "kernels", "environments", "plugins"}, None),  # None: what the manifest's [needs] names
    "sdk": ({"core", "registry", "kernels", "environments", "plugins", "sdk"}, None),
}


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, relative ones spelled out."""
    folder, *inner = path.relative_to(ROOT).parent.parts or (".",)
    package = ["stackloom", *([] if folder == "sdk" else [folder]), *inner]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*above, *([node.module] if node.module else [])])


def plane(module: str) -> str | None:
    """Which folder a stackloom module lies in; None for another distribution."""
    parts = module.split(".")
    if parts[0] != "stackloom":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "sdk"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_the_rows_above_it(folder: str) -> None:
    planes, others = ARROWS[folder]
    wrong = []
    for path in sources(folder):
        for module in imported(path):
            home, top = plane(module), module.split(".")[0]
            if (home and home not in planes) or (
                not home
                and others is not None
                and top not in STDLIB | others
                and not (folder == "kernels" and top == "numpy" and "tooling" in path.parts)
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_no_technique_imports_another_technique() -> None:
    wrong = []
    for path in sources("plugins"):
        home = path.relative_to(ROOT).parts[:3]  # plugins, slot, technique or a module that the slot shares
        for module in imported(path):
            parts = module.split(".")
            if (
                parts[:2] == ["stackloom", "plugins"]
                and len(parts) > 3
                and (ROOT / Path(*parts[1:4])).is_dir()
                and tuple(parts[1:4]) != home
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    everything = [*(path for folder in (*FOLDERS, "tests", "examples") for path in sources(folder)), ROOT / "setup.py"]
    assert [
        f"{path.relative_to(ROOT)}: {module}"
        for path in everything
        for module in imported(path)
        if module.split(".")[0] in FOLDERS
    ] == []


def test_examples_use_the_public_sdk_alone() -> None:
    wrong = [
        f"{path.name}: {module}"
        for path in sources("examples")
        for module in imported(path)
        if module.startswith("stackloom.")
    ]
    assert wrong == []
    assert all(len(path.read_text().splitlines()) < 120 for path in sources("examples"))


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type
        not in {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            lines -= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
    return len(lines)


def slot_modules() -> list[Path]:
    return [path for path in sources("core") if path.parent.name == "slots"]


@pytest.mark.parametrize(("folder", "budget"), [("core", 2200), ("registry", 2500)])
def test_the_core_and_the_registry_stay_small(folder: str, budget: int) -> None:
    assert sum(code_lines(path) for path in sources(folder) if path not in slot_modules()) <= budget


def test_a_slot_is_a_contract_and_little_else() -> None:
    assert {path.name: size for path in slot_modules() if (size := code_lines(path)) > 80} == {}


def test_the_median_plugin_stays_under_400_lines() -> None:
    plugins = [path.parent for path in (ROOT / "plugins").rglob("plugin.toml")]
    assert plugins
    assert statistics.median(sum(code_lines(path) for path in folder.glob("*.py")) for folder in plugins) < 400


def test_no_file_is_named_after_nothing() -> None:
    nothing = {"utils.py", "helpers.py", "misc.py", "manager.py", "common.py"}
    assert [str(path) for folder in FOLDERS for path in sources(folder) if path.name in nothing] == []


def test_there_are_fewer_than_ten_hooks() -> None:
    from stackloom.core.hooks import Hooks

    hooks = [name for name in vars(Hooks) if name.startswith("on_")]
    assert 0 < len(hooks) < 10


BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}


def dangers(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{where} imports {name}" for name in names if name.split(".")[0] in BANNED_IMPORTS)
        elif isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}
            if called in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
                yield f"{where} calls {called}"
            if called == "torch.load" and keywords.get("weights_only") != "True":
                yield f"{where} calls torch.load without weights_only=True"
            if (
                keywords.get("shell") == "True"
                or keywords.get("verify") == "False"
                or keywords.get("trust_remote_code") == "True"
            ):
                yield f"{where} passes shell=True, verify=False or trust_remote_code=True"
        elif isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield f"{where} binds every interface"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_deserialises_code_or_opens_a_door(folder: str) -> None:
    assert [danger for path in sources(folder) for danger in dangers(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "eval('1')",
        "yaml.load(x)",
        "torch.load('x')",
        "run('x', shell=True)",
        "get(u, verify=False)",
        "host = '0.0.0.0'",
    ],
)
def test_the_static_gate_catches_each_danger(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "danger.py"
    path.write_text(code)
    assert len(list(dangers(path))) == 1
