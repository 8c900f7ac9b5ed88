"""`stackloom new`: writes a plugin's project from the templates of its slot."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from stackloom.core.errors import ConfigError, did_you_mean
from stackloom.core.slots import slots

TEMPLATES = Path(__file__).parent / "templates"


def scaffold(slot: str, name: str, folder: Path) -> Path:
    """Write the project of plugin `<slot>.<name>` into `folder`, which must not exist or be empty.

    Templates are the files of templates/common and templates/<slot>; `$name` and the like are filled into their
    contents, `@module@` and the like into their paths.

    Returns:
        The folder.

    Raises:
        ConfigError: unknown slot, a slot without template, a bad name, or a folder that holds something.
    """
    available = sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir() and path.name != "common")
    if slot not in slots():
        raise ConfigError(
            f"unknown slot {slot!r}", fix=did_you_mean(slot, slots(), otherwise=f"slots: {', '.join(slots())}")
        )
    if slot not in available:
        raise ConfigError(f"no template for slot {slot!r}", fix=f"templates: {', '.join(available)}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"{name!r} is not a technique's name", fix="lower case letters and digits with hyphens: my-sgd"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already", fix="name another with --folder")
    module = name.replace("-", "_")
    if module[0].isdigit():
        module = f"_{module}"
    words = {
        "slot": slot,
        "name": name,
        "module": module,
        "package": f"stackloom_{module}",
        "api": slots()[slot].api,
        "class_name": "".join(part.capitalize() for part in name.split("-") if part)
        if not name[0].isdigit()
        else f"N{name.title().replace('-', '')}",
    }
    for source in (TEMPLATES / "common", TEMPLATES / slot):
        for path in sorted(source.rglob("*.tmpl")):
            place = re.sub("@([a-z]+)@", lambda word: words[word[1]], path.relative_to(source).as_posix())
            target = folder / place.removesuffix(".tmpl")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(path.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
    return folder
