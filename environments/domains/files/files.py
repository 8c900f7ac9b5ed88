"""A file store: folders, files, versions, shares, links, tags and quotas."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Wants, read_words
from stackloom.environments.domains.people import person_columns
from stackloom.environments.domains.shorthand import (
    clock,
    day,
    number,
    one_of,
    parent,
    says_day,
    says_number,
    says_one,
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

KINDS = ("document", "sheet", "image", "archive")
RIGHTS = ("read", "comment", "write")
TAGS = ("urgent", "draft", "final", "private")

BLUEPRINT = Blueprint(
    person="member",
    entities=(
        Entity(
            "member",
            "members",
            "MB",
            (
                *person_columns(),
                number("quota_mb", 500, 9000, step=500, noun="quota in megabytes"),
                number("used_mb", 50, 480, noun="number of megabytes used"),
                one_of("two_factor", ("yes", "no"), asked=False),
            ),
            count=5,
        ),
        Entity(
            "folder",
            "folders",
            "FD",
            (
                parent("member", own=True),
                word("name", "folder", noun="folder", known=True, shown=True),
                one_of("colour", ("grey", "blue", "green", "red"), edit="make {it} {value}"),
                number("items", 0, 60, noun="number of items"),
                status(("live", "locked"), drawn=("live", "live", "live", "locked")),
            ),
            handles=(Handle(("name",), "my folder {name}"),),
            count=8,
        ),
        Entity(
            "file",
            "files",
            "FI",
            (
                parent("folder", own=True),
                word("name", "file", noun="file", known=True, shown=True),
                one_of("kind", KINDS, noun="kind of file"),
                number("size_kb", 4, 90_000, noun="size in kilobytes"),
                day("changed_on", -200, -1, noun="date of the last change"),
                number("versions", 1, 30, noun="number of versions"),
                status(("live", "binned"), drawn=("live", "live", "live", "binned")),
            ),
            handles=(Handle(("name",), 'the file "{name}" in {folder}'),),
            count=10,
        ),
        Entity(
            "share",
            "shares",
            "SH",
            (
                parent("file", own=True),
                Column(
                    "with_whom",
                    "email",
                    lambda d: f"{d.rng.choice(('info', 'team', 'office', 'desk'))}{d.digits(2)}@{d.one('mail')}",
                    noun="address it is shared with",
                    known=True,
                    shown=True,
                ),
                one_of("right", RIGHTS, edit="change the right of {it}[ to {value}]"),
                day("ends_on", 3, 120, noun="last day"),
                status(("given", "withdrawn"), drawn=("given", "given", "withdrawn")),
            ),
            handles=(Handle(("with_whom",), "the share with {with_whom}"),),
            count=7,
        ),
        Entity(
            "link",
            "links",
            "LK",
            (
                parent("file", own=True),
                Column(
                    "slug",
                    "text",
                    lambda d: f"{d.rng.choice('abcdefgh')}{d.rng.choice('klmnpq')}{d.digits(4)}",
                    noun="link",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                number("downloads", 0, 300, noun="number of downloads"),
                day("ends_on", 1, 90, noun="last day", edit="let {it} work[ until {value}]"),
                status(("open", "closed"), drawn=("open", "open", "closed")),
            ),
            handles=(Handle(("slug",), "the link {slug}"),),
            count=6,
        ),
        Entity(
            "tag",
            "tags",
            "TG",
            (
                parent("file", own=True),
                one_of("label", TAGS, noun="tag", known=True, shown=True),
                day("set_on", -90, -1, noun="date of the tag"),
            ),
            handles=(Handle(("label",), 'the tag "{label}" of {file}'),),
            count=6,
        ),
        Entity(
            "backup",
            "backups",
            "BK",
            (
                parent("member", own=True),
                clock("made_at", -20, -1, hours=(0, 6), step=5, noun="time", known=True, shown=True),
                number("size_mb", 40, 900, noun="size in megabytes"),
                status(("kept", "restored", "dropped"), drawn=("kept", "kept", "restored")),
            ),
            handles=(Handle(("made_at",), "the backup of {made_at}"),),
            count=4,
        ),
    ),
)


def _folder(db: View, given: Given) -> Row:
    made = db.insert(
        "folders", member_id=given["member"]["id"], name=given["name"], colour=given["colour"], items=0, status="live"
    )
    return {"folder_id": made["id"], "quota_mb": given["member"]["quota_mb"]}


def _lock(db: View, given: Given) -> Row:
    db.update("folders", given["folder"]["id"], status="locked")
    return {"items": given["folder"]["items"]}


def _move(db: View, given: Given) -> Row:
    file, folder = given["file"], given["folder"]
    old = db.get("folders", file["folder_id"])
    assert old is not None
    db.update("files", file["id"], folder_id=folder["id"])
    db.update("folders", old["id"], items=max(0, old["items"] - 1))
    db.update("folders", folder["id"], items=folder["items"] + 1)
    return {"items": folder["items"] + 1}


def _elsewhere(row: Row, given: Given) -> bool:
    return bool(row["id"] != given["file"]["folder_id"])


def _same_owner(db: View, given: Given) -> str:
    old = db.get("folders", given["file"]["folder_id"])
    return "" if old and old["member_id"] == given["folder"]["member_id"] else "that folder belongs to somebody else"


def _rename(db: View, given: Given) -> Row:
    file = given["file"]
    db.update("files", file["id"], name=given["name"], changed_on=db.today)
    return {"size_kb": file["size_kb"]}


def _bin(db: View, given: Given) -> Row:
    db.update("files", given["file"]["id"], status="binned")
    return {"size_kb": given["file"]["size_kb"], "versions": given["file"]["versions"]}


def _unbin(db: View, given: Given) -> Row:
    db.update("files", given["file"]["id"], status="live")
    return {"changed_on": given["file"]["changed_on"]}


def _version(db: View, given: Given) -> Row:
    file = given["file"]
    db.update("files", file["id"], versions=file["versions"] + 1, size_kb=given["size"], changed_on=db.today)
    return {"versions": file["versions"] + 1}


def _share(db: View, given: Given) -> Row:
    made = db.insert(
        "shares",
        file_id=given["file"]["id"],
        with_whom=given["address"],
        right=given["right"],
        ends_on="2026-08-31",
        status="given",
    )
    return {"share_id": made["id"]}


def _unshare(db: View, given: Given) -> Row:
    db.update("shares", given["share"]["id"], status="withdrawn")
    return {"right": given["share"]["right"]}


def _link(db: View, given: Given) -> Row:
    slug = f"zz{1000 + len(db.select('links'))}"
    made = db.insert(
        "links", file_id=given["file"]["id"], slug=slug, downloads=0, ends_on=given["until"], status="open"
    )
    return {"link_id": made["id"], "slug": slug}


def _close(db: View, given: Given) -> Row:
    db.update("links", given["link"]["id"], status="closed")
    return {"downloads": given["link"]["downloads"]}


def _tag(db: View, given: Given) -> Row:
    made = db.insert("tags", file_id=given["file"]["id"], label=given["label"], set_on=db.today)
    return {"tag_id": made["id"], "kind": given["file"]["kind"]}


def _untag(db: View, given: Given) -> Row:
    db.delete("tags", given["tag"]["id"])
    return {"set_on": given["tag"]["set_on"]}


def _restore(db: View, given: Given) -> Row:
    backup = given["backup"]
    member = db.get("members", backup["member_id"])
    assert member is not None
    db.update("backups", backup["id"], status="restored")
    db.update("members", member["id"], used_mb=member["used_mb"] + backup["size_mb"])
    return {"used_mb": member["used_mb"] + backup["size_mb"]}


def _quota(db: View, given: Given) -> Row:
    db.update("members", given["member"]["id"], quota_mb=given["quota"])
    return {"used_mb": given["member"]["used_mb"]}


LIVE = {"status": ("live",)}
ACTIONS = (
    Action(
        "make_folder",
        "Make a folder",
        {
            "member": Wants("member"),
            "name": says_word("folder.name", "name", "folder"),
            "colour": says_one("folder.colour", "colour", ("grey", "blue", "green", "red")),
        },
        _folder,
        ('make a folder "{name}" for me[, colour {colour}]',),
        "the folder is there",
        tells=(
            tells_id("folder", "number of the folder"),
            tells("member", "quota_mb", "integer", "quota in megabytes that I have"),
        ),
        writes=("folders",),
    ),
    Action(
        "lock_folder",
        "Lock a folder",
        {"folder": Wants("folder", LIVE)},
        _lock,
        ("lock {folder}",),
        "the folder is locked",
        tells=(tells("folder", "items", "integer", "number of items in it"),),
        writes=("folders",),
        after={"folder": {"status": "locked"}},
    ),
    Action(
        "move_file",
        "Move a file to another folder of the same owner",
        {"file": Wants("file", LIVE), "folder": Wants("folder", LIVE, where=_elsewhere, why="it lies there already")},
        _move,
        ("move {file} to {folder}",),
        "the file has moved",
        tells=(tells("folder", "items", "integer", "number of items there now"),),
        reads=("folders",),
        writes=("files", "folders"),
        pre=_same_owner,
    ),
    Action(
        "rename_file",
        "Rename a file",
        {"file": Wants("file", LIVE), "name": Says("file.name", "text", lambda d, g: f"{d.one('file')} copy", "name")},
        _rename,
        ('rename {file} to "{name}"',),
        "the file is renamed",
        tells=(tells("file", "size_kb", "integer", "size in kilobytes of it"),),
        writes=("files",),
    ),
    Action(
        "bin_file",
        "Put a file into the bin",
        {"file": Wants("file", LIVE)},
        _bin,
        ("put {file} into the bin", "bin {file}"),
        "the file is in the bin",
        tells=(
            tells("file", "size_kb", "integer", "size in kilobytes of it"),
            tells("file", "versions", "integer", "number of versions it had"),
        ),
        writes=("files",),
        after={"file": {"status": "binned"}},
    ),
    Action(
        "restore_file",
        "Take a file out of the bin",
        {"file": Wants("file", {"status": ("binned",)})},
        _unbin,
        ("take {file} out of the bin",),
        "the file is back",
        tells=(tells("file", "changed_on", "date", "date of its last change"),),
        writes=("files",),
        after={"file": {"status": "live"}},
    ),
    Action(
        "add_version",
        "Note a new version of a file",
        {"file": Wants("file", LIVE), "size": says_number("file.size_kb", "size in kilobytes", 4, 90_000)},
        _version,
        ("note a new version of {file}[; it has {size} kilobytes]",),
        "the version is noted",
        tells=(tells("file", "versions", "integer", "number of versions now"),),
        writes=("files",),
    ),
    Action(
        "share_file",
        "Share a file with an address",
        {
            "file": Wants("file", LIVE),
            "address": Says("share.with_whom", "email", lambda d, g: f"guest{d.digits(3)}@{d.one('mail')}", "address"),
            "right": says_one("share.right", "right", RIGHTS),
        },
        _share,
        ("share {file} with {address}[, right: {right}]",),
        "the file is shared",
        tells=(tells_id("share", "number of the share"),),
        writes=("shares",),
    ),
    Action(
        "withdraw_share",
        "Withdraw a share",
        {"share": Wants("share", {"status": ("given",)})},
        _unshare,
        ("withdraw {share}", "end {share}"),
        "the share is withdrawn",
        tells=(tells("share", "right", "choice", "right that it gave"),),
        writes=("shares",),
        after={"share": {"status": "withdrawn"}},
    ),
    Action(
        "make_link",
        "Make a public link to a file until a date",
        {"file": Wants("file", LIVE), "until": says_day("link.ends_on", "last day", 5, 90)},
        _link,
        ("make a public link to {file}[ until {until}]",),
        "the link works",
        tells=(tells_id("link", "number of the link"), tells("link", "slug", "text", "link itself")),
        writes=("links",),
    ),
    Action(
        "close_link",
        "Close an open link",
        {"link": Wants("link", {"status": ("open",)})},
        _close,
        ("close {link}",),
        "the link is closed",
        tells=(tells("link", "downloads", "integer", "number of downloads it had"),),
        writes=("links",),
        after={"link": {"status": "closed"}},
    ),
    Action(
        "tag_file",
        "Put a tag on a file",
        {"file": Wants("file", LIVE), "label": says_one("tag.label", "tag", TAGS)},
        _tag,
        ('put a tag on {file}[, namely "{label}"]',),
        "the tag is set",
        tells=(tells_id("tag", "number of the tag"), tells("file", "kind", "choice", "kind of that file")),
        writes=("tags",),
    ),
    Action(
        "remove_tag",
        "Take a tag off",
        {"tag": Wants("tag")},
        _untag,
        ("take off {tag}", "remove {tag}"),
        "the tag is off",
        tells=(tells("tag", "set_on", "date", "date on which it was set"),),
        writes=("tags",),
    ),
    Action(
        "restore_backup",
        "Restore a kept backup",
        {"backup": Wants("backup", {"status": ("kept",)})},
        _restore,
        ("restore {backup}",),
        "the backup is restored",
        tells=(tells("member", "used_mb", "integer", "number of megabytes used now"),),
        reads=("members",),
        writes=("backups", "members"),
        after={"backup": {"status": "restored"}},
    ),
    Action(
        "set_quota",
        "Set a member's quota",
        {
            "member": Wants("member"),
            "quota": says_number("member.quota_mb", "quota in megabytes", 10_000, 20_000, step=500),
        },
        _quota,
        ("set my quota[ to {quota} megabytes]",),
        "the quota is set",
        tells=(tells("member", "used_mb", "integer", "number of megabytes used"),),
        writes=("members",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="files",
        title="A file store",
        role="You look after the file store of a small firm.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hi, {name} here.",
            "Hello, this is {name}.",
            "Good morning, my name is {name}.",
            "Hey, it is {name}.",
        ),
    )
