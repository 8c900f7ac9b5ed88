"""Find installed plugins through distribution metadata, without running any of their code.

A distribution declares `[project.entry-points."stackloom.plugins"] name = "package.with.plugins"`; every `plugin.toml`
(or `<name>.plugin.toml`) anywhere below that package is a plugin. Neither the package nor its parents are imported: a
wheel's files are read from its RECORD, an editable install's folder comes from its finder or from the path entries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from stackloom.core import manifest as schema
from stackloom.core.catalogue import PluginRecord
from stackloom.core.manifest import Manifest, ManifestError, parse_manifest, read_toml

GROUP = "stackloom.plugins"
MANIFEST = "plugin.toml"


@dataclass(frozen=True)
class Problem:
    """Something that keeps a plugin, or a whole distribution, out of the catalogue.

    Attributes:
        source: the file, or the entry point, that is wrong.
        distribution, version: who ships it.
        message: every cause.
        plugin: the id that cannot be served because of it; empty when none can be told.
    """

    source: str
    distribution: str
    version: str
    message: str
    plugin: str = ""


@dataclass(frozen=True)
class PluginPackage:
    """A package that an entry point names, located but not imported.

    Attributes:
        distribution, version: who ships it.
        package: its import name.
        folder: where it lies.
        manifests: the paths of its plugin.toml files.
        stamp: changes when the manifests may have changed.
    """

    distribution: str
    version: str
    package: str
    folder: str
    manifests: tuple[str, ...] = field(repr=False)
    stamp: str


@dataclass(frozen=True)
class Located:
    """All plugin packages of an environment."""

    packages: tuple[PluginPackage, ...]
    problems: tuple[Problem, ...]

    @property
    def fingerprint(self) -> str:
        """Equal when nothing was installed, removed or edited since, the manifest's schema included."""
        reader = os.stat(schema.__file__).st_mtime_ns  # another schema reads the same files differently
        packages = [(each.distribution, each.version, each.package, each.folder, each.stamp) for each in self.packages]
        return hashlib.sha256(repr((reader, packages, self.problems)).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Discovery:
    """The plugins of an environment: the good ones, and why the others are not among them."""

    records: tuple[PluginRecord, ...]
    problems: tuple[Problem, ...]


def discover(search_path: Sequence[str] | None = None) -> Discovery:
    """Find every plugin of the environment.

    Args:
        search_path: folders to look for distributions in; `sys.path` if absent.
    """
    return read_manifests(locate(search_path))


def locate(search_path: Sequence[str] | None = None) -> Located:
    """Find the plugin packages and stat their manifests; reads metadata only, no manifest."""
    packages: list[PluginPackage] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions(path=sys.path if search_path is None else list(search_path)):
        if _metadata_folder(distribution).name.startswith("~"):  # what pip leaves behind when it is interrupted
            continue
        try:
            text = distribution.read_text("entry_points.txt")
        except (UnicodeDecodeError, OSError) as cause:
            problems.append(
                Problem("entry_points.txt", *_identity(distribution), printable(f"cannot be read: {cause}"))
            )
            continue
        if not text or GROUP not in text:
            continue
        name, version = _identity(distribution)
        if canonicalize_name(name) in seen:  # shadowed by an earlier path entry, as at import
            continue
        seen.add(canonicalize_name(name))
        try:
            values = sorted({point.value for point in distribution.entry_points.select(group=GROUP)})
        except (ValueError, TypeError) as cause:
            problems.append(Problem("entry_points.txt", name, version, printable(f"not an entry point file: {cause}")))
            continue
        for value in values:
            found = _package(distribution, name, version, value, search_path)
            problems += [each for each in found if isinstance(each, Problem)]
            packages += [each for each in found if isinstance(each, PluginPackage)]
    packages.sort(key=lambda each: (each.distribution, each.package))  # metadata comes in the order of the file system
    problems.sort(key=lambda each: (each.distribution, each.source))
    return Located(tuple(packages), tuple(problems))


def read_manifests(located: Located) -> Discovery:
    """Read and validate every manifest; one that does not hold becomes a problem and hides no other."""
    problems = list(located.problems)
    found: dict[str, list[PluginRecord]] = {}
    sources: dict[int, str] = {}
    read: set[str] = set()
    for package in located.packages:
        for manifest in package.manifests:
            if manifest in read:  # two entry points, one inside the other's package
                continue
            read.add(manifest)
            record = _record(package, manifest)
            if isinstance(record, Problem):
                problems.append(record)
            else:
                found.setdefault(record.id, []).append(record)
                sources[id(record)] = manifest
    for plugin, records in found.items():
        if len(records) > 1:
            claimants = [f"{each.distribution} {each.version} ({each.package})" for each in records]
            problems += [
                Problem(
                    printable(sources[id(each)]),
                    each.distribution,
                    each.version,
                    f"{plugin!r} is claimed by {' and by '.join(claimants)}; uninstall or rename one",
                    plugin,
                )
                for each in records
            ]
    good = sorted((records[0] for records in found.values() if len(records) == 1), key=lambda record: record.id)
    return Discovery(tuple(good), tuple(problems))


def unmet(manifest: Manifest, *, extras_of: str = "stackloom") -> list[str]:
    """Say which of the manifest's `[needs]` the environment does not satisfy, read from metadata alone.

    Args:
        manifest: the plugin's manifest.
        extras_of: the distribution whose extras are offered as the fix where they bring what is missing.

    Returns:
        One text per unmet need, with what to install; empty when all are met.
    """
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    reasons = []
    for name, specifier in manifest.needs.items():
        fix = f"pip install '{name}{specifier}'"
        try:
            installed = importlib.metadata.version(name)
            if SpecifierSet(specifier).contains(Version(installed), prereleases=True):
                continue
            state = f"but {installed} is installed"
        except (importlib.metadata.PackageNotFoundError, ValueError) as cause:
            if isinstance(cause, InvalidVersion):
                state = f"but the installed version is none: {cause}"
            else:
                state = "which is not installed"
                extra = _extra_with(name, extras_of)
                fix = f"pip install '{extras_of}[{extra}]'" if extra else fix
        reasons.append(f"needs {name}{specifier}, {state}\n  fix: {fix}")
    return reasons


def printable(text: str) -> str:
    """Escape what a database or a terminal cannot hold: bytes of undecodable file names, and NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _extra_with(name: str, distribution: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", str(requirement.marker or ""))
        if extra and canonicalize_name(requirement.name) == canonicalize_name(name):
            return extra[1]
    return ""


def _metadata_folder(distribution: Distribution) -> Path:
    """The dist-info folder; importlib.metadata keeps it private, and listing `files` would read all of RECORD."""
    return Path(str(getattr(distribution, "_path", "unknown")))


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version, from METADATA's headers or, where that file is damaged, from the folder's name."""
    folder, _, version = _metadata_folder(distribution).stem.partition("-")
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (UnicodeDecodeError, OSError):
        text = ""
    headers = dict(re.findall(r"^(Name|Version): *(.*?)\s*$", text.partition("\n\n")[0], re.MULTILINE))
    return printable(headers.get("Name") or folder), printable(headers.get("Version") or version)


def _package(
    distribution: Distribution, name: str, version: str, value: str, search_path: Sequence[str] | None
) -> list[PluginPackage | Problem]:
    source = printable(f"entry point {GROUP} = {value}")
    package = value.partition(":")[0].strip()
    if not all(part.isidentifier() for part in package.split(".")):
        return [
            Problem(
                source,
                name,
                version,
                f"{value!r} is no package name; write the package that holds the plugin.toml files",
            )
        ]
    if recorded := _recorded(distribution, package):
        record = _metadata_folder(distribution) / "RECORD"
        changed = record.stat()
        folder = str(distribution.locate_file(package.replace(".", "/")))
        return [
            PluginPackage(name, version, package, folder, recorded, f"RECORD {changed.st_mtime_ns} {changed.st_size}")
        ]
    home = _folder_of(package, distribution, search_path)
    if home is None:
        return [
            Problem(
                source,
                name,
                version,
                f"package {package!r} is not in the distribution nor on the path; reinstall {name}",
            )
        ]
    manifests: list[str] = []
    problems: list[PluginPackage | Problem] = []
    stamp = hashlib.sha256()
    for path, state in _walk(home):
        if isinstance(state, str):
            problems.append(Problem(printable(path), name, version, state, _guess_id(path)))
        else:
            manifests.append(path)
            stamp.update(f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0".encode("utf-8", "surrogatepass"))
    return [PluginPackage(name, version, package, home, tuple(manifests), stamp.hexdigest()), *problems]


def _recorded(distribution: Distribution, package: str) -> tuple[str, ...]:
    """The manifests below `package` that RECORD lists; none for an editable install."""
    try:
        record = distribution.read_text("RECORD") or ""
    except (UnicodeDecodeError, OSError):
        return ()
    prefix = re.escape(package.replace(".", "/"))
    names = re.findall(rf'^"?({prefix}/(?:[^",\n]*[/.])?{re.escape(MANIFEST)})"?,', record, re.MULTILINE)
    base = str(distribution.locate_file(""))
    return tuple(sorted(os.path.join(base, name) for name in names if ".." not in name))


def _folder_of(package: str, distribution: Distribution, search_path: Sequence[str] | None) -> str | None:
    """Where `package` lies, found without importing a parent: on the path, as at import, then in editable installs."""
    parts = package.split(".")
    own = str(distribution.locate_file(""))
    spec = PathFinder.find_spec(parts[0], None if search_path is None else [own, *search_path])
    if spec and (folder := _below(spec, parts[1:])):
        return folder
    editable = [each for each in sys.meta_path if getattr(each, "__module__", "").startswith("__editable__")]
    for size in range(len(parts), 0, -1):  # the longest prefix that a finder maps, then down the folders
        for finder in editable:
            spec = finder.find_spec(".".join(parts[:size]), None)
            if spec and (folder := _below(spec, parts[size:])):
                return folder
    return None


def _below(spec: ModuleSpec, parts: Sequence[str]) -> str | None:
    folders = (os.path.join(place, *parts) for place in spec.submodule_search_locations or ())
    return next(filter(os.path.isdir, folders), None)


def _walk(top: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, stat) of each manifest below `top`, and (path, message) of each place that cannot be read."""
    waiting = [top]
    followed = {os.path.realpath(top)}
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as cause:
            yield folder, f"folder cannot be read: {cause.strerror}"
            continue
        for entry in entries:
            named = entry.name == MANIFEST or entry.name.endswith(f".{MANIFEST}")
            try:
                if named:
                    yield entry.path, entry.stat()
                elif entry.is_dir() and entry.name != "__pycache__" and not entry.name.startswith("."):
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if any(os.path.commonpath((target, place)) in (target, place) for place in followed):
                            yield (
                                entry.path,
                                f"symbolic link leads back to {printable(target)}, which is walked already",
                            )
                            continue
                        followed.add(target)
                    waiting.append(entry.path)
            except OSError as cause:
                yield entry.path, f"cannot be read: {cause.strerror}"


def _record(package: PluginPackage, path: str) -> PluginRecord | Problem:
    table: dict[str, Any] = {}
    folder = Path(path).parent
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ManifestError(path, [("", "not a regular file")])
        path.encode()
        table = read_toml(Path(path))
        manifest = parse_manifest(table, path)
        inner = Path(os.path.relpath(folder, package.folder)).parts
        if any("." in part for part in inner):
            raise ManifestError(path, [("", f"folder {'/'.join(inner)} cannot be imported: its name holds a dot")])
        if "\\u0000" in manifest.model_dump_json():
            raise ManifestError(path, [("", "holds a NUL character")])
    except ManifestError as error:
        causes = [f"{where}: {message}" if where else message for where, message in error.problems]
    except UnicodeError:
        causes = ["the file's path is not UTF-8"]
    except OSError as cause:
        causes = [f"cannot be read: {cause.strerror}"]
    except ValueError as cause:  # tomllib lets the refusal of a 5,000-digit integer through
        causes = [f"not TOML: {cause}"]
    else:
        return PluginRecord(
            manifest, package.distribution, package.version, ".".join((package.package, *inner)), folder
        )
    claimed = table.get("id")
    return Problem(
        printable(path),
        package.distribution,
        package.version,
        printable("; ".join(causes)),
        printable(claimed) if isinstance(claimed, str) else _guess_id(path),
    )


def _guess_id(path: str) -> str:
    """The id that a manifest without a readable one should have, by our folder convention."""
    folder = os.path.dirname(path) if path.endswith(MANIFEST) else path
    return printable(f"{os.path.basename(os.path.dirname(folder))}.{os.path.basename(folder)}".replace("_", "-"))
