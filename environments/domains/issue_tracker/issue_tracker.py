"""An issue tracker: projects, issues, pull requests, builds, releases, labels and time logs."""

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
    says_other,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

SEVERITIES = ("trivial", "minor", "major", "critical")
LABELS = ("bug", "docs", "performance", "question", "security")

BLUEPRINT = Blueprint(
    person="developer",
    entities=(
        Entity(
            "developer",
            "developers",
            "DE",
            (
                *person_columns(edit_phone=False),
                Column("handle", "text", lambda d: f"{d.row['name'].split()[0].lower()}{d.digits(2)}", unique=True),
                one_of("editor", ("vim", "emacs", "code"), asked=False),
                number("reviews", 0, 200, noun="number of reviews done"),
            ),
            count=5,
        ),
        Entity(
            "project",
            "projects",
            "PJ",
            (
                word("name", "project", noun="project", known=True, shown=True, unique=True),
                one_of("language", ("python", "rust", "go", "kotlin")),
                number("open_issues", 1, 90, noun="number of open issues"),
                day(
                    "next_release",
                    5,
                    90,
                    noun="date of the next release",
                    edit="move the next release of {it}[ to {value}]",
                ),
            ),
            handles=(Handle(("name",), "the project {name}"),),
            count=6,
        ),
        Entity(
            "issue",
            "issues",
            "",
            (
                parent("developer", own=True),
                parent("project"),
                word("title", "issue", known=True, shown=True),
                one_of("severity", SEVERITIES),
                number("votes", 0, 60, noun="number of votes"),
                day("opened_on", -200, -2, noun="date of opening"),
                status(("open", "in_work", "closed"), drawn=("open", "open", "in_work", "closed")),
            ),
            handles=(Handle(("id",), "issue {id}"), Handle(("title",), 'my issue "{title}"')),
            count=10,
            known_id=True,
        ),
        Entity(
            "label",
            "labels",
            "LB",
            (
                parent("issue", own=True),
                one_of("name", LABELS, noun="label", known=True, shown=True),
                day("set_on", -90, -1, noun="date of the label"),
            ),
            handles=(Handle(("name",), 'the label "{name}" on {issue}'),),
            count=7,
        ),
        Entity(
            "pull_request",
            "pull_requests",
            "PQ",
            (
                parent("developer", own=True),
                parent("project"),
                word("title", "change", known=True, shown=True),
                number("lines", 2, 1800, noun="number of changed lines"),
                number("approvals", 0, 3, noun="number of approvals", most=9),
                Column(
                    "branch", "text", lambda d: f"{d.rng.choice(('fix', 'feat', 'chore'))}/{d.digits(3)}", asked=True
                ),
                status(("draft", "ready", "merged", "closed"), drawn=("draft", "ready", "ready", "merged")),
            ),
            handles=(Handle(("title",), 'my pull request "{title}"'),),
            count=8,
            noun="pull request",
        ),
        Entity(
            "build",
            "builds",
            "BD",
            (
                parent("pull_request", own=True),
                clock("began", -9, -1, hours=(0, 23), step=5, noun="start", known=True, shown=True),
                number("seconds", 40, 1900, noun="length in seconds"),
                number("failures", 0, 14, noun="number of failed tests"),
                status(("green", "red", "cancelled"), drawn=("green", "red", "red")),
            ),
            handles=(Handle(("began",), "the build of {began}"),),
            count=7,
        ),
        Entity(
            "release",
            "releases",
            "RL",
            (
                parent("project"),
                Column(
                    "version",
                    "text",
                    lambda d: f"{d.rng.randint(1, 9)}.{d.rng.randint(0, 30)}.{d.rng.randint(0, 9)}",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                day("planned_on", 5, 90, noun="planned date"),
                number("changes", 1, 120, noun="number of changes"),
                status(("planned", "frozen", "shipped"), drawn=("planned", "planned", "frozen")),
            ),
            handles=(Handle(("version",), "release {version}"),),
            count=6,
        ),
        Entity(
            "time_log",
            "time_logs",
            "TL",
            (
                parent("issue", own=True),
                day("worked_on", -40, -1, noun="day", known=True, shown=True),
                number(
                    "minutes", 10, 480, step=5, noun="number of minutes", edit="set the minutes of {it}[ to {value}]"
                ),
            ),
            handles=(Handle(("worked_on",), "the time log of {worked_on} on {issue}"),),
            count=6,
            noun="time log",
        ),
    ),
)


def _open(db: View, given: Given) -> Row:
    project = given["project"]
    made = db.insert(
        "issues",
        developer_id=given["developer"]["id"],
        project_id=project["id"],
        title=given["title"],
        severity=given["severity"],
        votes=0,
        opened_on=db.today,
        status="open",
    )
    db.update("projects", project["id"], open_issues=project["open_issues"] + 1)
    return {"issue_id": made["id"], "open_issues": project["open_issues"] + 1}


def _begin(db: View, given: Given) -> Row:
    db.update("issues", given["issue"]["id"], status="in_work")
    return {"votes": given["issue"]["votes"]}


def _close(db: View, given: Given) -> Row:
    issue = given["issue"]
    project = db.get("projects", issue["project_id"])
    assert project is not None
    db.update("issues", issue["id"], status="closed")
    db.update("projects", project["id"], open_issues=max(0, project["open_issues"] - 1))
    return {"open_issues": max(0, project["open_issues"] - 1)}


def _severity(db: View, given: Given) -> Row:
    db.update("issues", given["issue"]["id"], severity=given["severity"])
    return {"opened_on": given["issue"]["opened_on"]}


def _move(db: View, given: Given) -> Row:
    issue, project = given["issue"], given["project"]
    old = db.get("projects", issue["project_id"])
    assert old is not None
    db.update("issues", issue["id"], project_id=project["id"])
    db.update("projects", old["id"], open_issues=max(0, old["open_issues"] - 1))
    db.update("projects", project["id"], open_issues=project["open_issues"] + 1)
    return {"open_issues": project["open_issues"] + 1}


def _vote(db: View, given: Given) -> Row:
    issue = given["issue"]
    db.update("issues", issue["id"], votes=issue["votes"] + 1)
    return {"votes": issue["votes"] + 1, "severity": issue["severity"]}


def _label(db: View, given: Given) -> Row:
    made = db.insert("labels", issue_id=given["issue"]["id"], name=given["label"], set_on=db.today)
    return {"label_id": made["id"]}


def _unlabel(db: View, given: Given) -> Row:
    db.delete("labels", given["label"]["id"])
    return {"set_on": given["label"]["set_on"]}


def _log(db: View, given: Given) -> Row:
    made = db.insert("time_logs", issue_id=given["issue"]["id"], worked_on=given["day"], minutes=given["minutes"])
    return {"time_log_id": made["id"]}


def _ready(db: View, given: Given) -> Row:
    db.update("pull_requests", given["pull_request"]["id"], status="ready")
    return {"branch": given["pull_request"]["branch"], "lines": given["pull_request"]["lines"]}


def _approve(db: View, given: Given) -> Row:
    request, reviewer = given["pull_request"], given["reviewer"]
    db.update("pull_requests", request["id"], approvals=request["approvals"] + 1)
    db.update("developers", reviewer["id"], reviews=reviewer["reviews"] + 1)
    return {"approvals": request["approvals"] + 1, "reviews": reviewer["reviews"] + 1}


def _merge(db: View, given: Given) -> Row:
    db.update("pull_requests", given["pull_request"]["id"], status="merged")
    return {"lines": given["pull_request"]["lines"], "branch": given["pull_request"]["branch"]}


def _give_up(db: View, given: Given) -> Row:
    db.update("pull_requests", given["pull_request"]["id"], status="closed")
    return {"lines": given["pull_request"]["lines"]}


def _again(db: View, given: Given) -> Row:
    build = given["build"]
    made = db.insert(
        "builds",
        pull_request_id=build["pull_request_id"],
        began=f"{db.today} 12:00",
        seconds=60,
        failures=0,
        status="green",
    )
    return {"build_id": made["id"], "failures": build["failures"]}


def _ship(db: View, given: Given) -> Row:
    db.update("releases", given["release"]["id"], status="shipped")
    return {"changes": given["release"]["changes"]}


def _freeze(db: View, given: Given) -> Row:
    db.update("releases", given["release"]["id"], status="frozen", planned_on=given["day"])
    return {"changes": given["release"]["changes"]}


LIVE = {"status": ("open", "in_work")}
ACTIONS = (
    Action(
        "open_issue",
        "Open an issue in a project",
        {
            "developer": Wants("developer"),
            "project": Wants("project"),
            "title": Says("issue.title", "text", lambda d, g: f"{d.one('issue')} again", "title"),
            "severity": says_one("issue.severity", "severity", SEVERITIES),
        },
        _open,
        ('open the issue "{title}" in {project} for me[, severity {severity}]',),
        "the issue is open",
        tells=(
            tells_id("issue", "number of the issue"),
            tells("project", "open_issues", "integer", "number of open issues there"),
        ),
        writes=("issues", "projects"),
    ),
    Action(
        "begin_issue",
        "Begin work on an open issue",
        {"issue": Wants("issue", {"status": ("open",)})},
        _begin,
        ("I begin with {issue}; note it",),
        "the issue is in work",
        tells=(tells("issue", "votes", "integer", "number of votes it has"),),
        writes=("issues",),
        after={"issue": {"status": "in_work"}},
    ),
    Action(
        "close_issue",
        "Close an issue",
        {"issue": Wants("issue", LIVE)},
        _close,
        ("close {issue}",),
        "the issue is closed",
        tells=(tells("project", "open_issues", "integer", "number of open issues left there"),),
        reads=("projects",),
        writes=("issues", "projects"),
        after={"issue": {"status": "closed"}},
    ),
    Action(
        "change_severity",
        "Change the severity of an issue",
        {
            "issue": Wants("issue", LIVE),
            "severity": says_other("issue.severity", "severity", SEVERITIES, "issue", "severity"),
        },
        _severity,
        ("change the severity of {issue}[ to {severity}]",),
        "the severity is changed",
        tells=(tells("issue", "opened_on", "date", "date of its opening"),),
        writes=("issues",),
        pre=lambda db, g: "that is its severity already" if g["severity"] == g["issue"]["severity"] else "",
    ),
    Action(
        "move_issue",
        "Move an issue to another project",
        {
            "issue": Wants("issue", LIVE),
            "project": Wants(
                "project", where=lambda row, g: row["id"] != g["issue"]["project_id"], why="it is there already"
            ),
        },
        _move,
        ("move {issue} to {project}",),
        "the issue has moved",
        tells=(tells("project", "open_issues", "integer", "number of open issues there now"),),
        reads=("projects",),
        writes=("issues", "projects"),
    ),
    Action(
        "vote_issue",
        "Vote for an issue",
        {"issue": Wants("issue", LIVE)},
        _vote,
        ("add a vote to {issue}",),
        "the vote counts",
        tells=(
            tells("issue", "votes", "integer", "number of votes now"),
            tells("issue", "severity", "choice", "severity of it"),
        ),
        writes=("issues",),
    ),
    Action(
        "add_label",
        "Put a label on an issue",
        {"issue": Wants("issue"), "label": says_one("label.name", "label", LABELS)},
        _label,
        ('put a label on {issue}[, namely "{label}"]',),
        "the label is set",
        tells=(tells_id("label", "number of the label"),),
        writes=("labels",),
    ),
    Action(
        "remove_label",
        "Take a label off",
        {"label": Wants("label")},
        _unlabel,
        ("take off {label}", "remove {label}"),
        "the label is off",
        tells=(tells("label", "set_on", "date", "date on which it was set"),),
        writes=("labels",),
    ),
    Action(
        "log_time",
        "Log time on an issue",
        {
            "issue": Wants("issue", LIVE),
            "day": says_day("time_log.worked_on", "day", -6, 0),
            "minutes": says_number("time_log.minutes", "number of minutes", 10, 480, step=5),
        },
        _log,
        ("log time on {issue}[: {minutes} minutes on {day}]",),
        "the time is logged",
        tells=(tells_id("time_log", "number of the entry"),),
        writes=("time_logs",),
    ),
    Action(
        "mark_ready",
        "Mark a drafted pull request as ready",
        {"pull_request": Wants("pull_request", {"status": ("draft",)})},
        _ready,
        ("mark {pull_request} as ready",),
        "it is ready for review",
        tells=(
            tells("pull_request", "branch", "text", "branch of it"),
            tells("pull_request", "lines", "integer", "number of changed lines in it"),
        ),
        writes=("pull_requests",),
        after={"pull_request": {"status": "ready"}},
    ),
    Action(
        "approve_pull_request",
        "Note a developer's approval of a pull request",
        {
            "pull_request": Wants("pull_request", {"status": ("ready",)}),
            "reviewer": Wants(
                "developer",
                where=lambda row, g: row["id"] == g["pull_request"]["developer_id"],
                why="only the author notes approvals here",
            ),
        },
        _approve,
        ("{pull_request} was approved; note it in my name",),
        "the approval is noted",
        tells=(
            tells("pull_request", "approvals", "integer", "number of approvals now"),
            tells("developer", "reviews", "integer", "number of reviews done"),
        ),
        writes=("pull_requests", "developers"),
    ),
    Action(
        "merge_pull_request",
        "Merge a ready pull request with an approval",
        {
            "pull_request": Wants(
                "pull_request",
                {"status": ("ready",)},
                where=lambda row, g: row["approvals"] > 0,
                why="nobody has approved it",
            )
        },
        _merge,
        ("merge {pull_request}",),
        "it is merged",
        tells=(
            tells("pull_request", "lines", "integer", "number of changed lines"),
            tells("pull_request", "branch", "text", "branch that it came from"),
        ),
        writes=("pull_requests",),
        after={"pull_request": {"status": "merged"}},
    ),
    Action(
        "close_pull_request",
        "Close a pull request without merging",
        {"pull_request": Wants("pull_request", {"status": ("draft", "ready")})},
        _give_up,
        ("close {pull_request} without merging",),
        "it is closed",
        tells=(tells("pull_request", "lines", "integer", "number of changed lines it had"),),
        writes=("pull_requests",),
        after={"pull_request": {"status": "closed"}},
    ),
    Action(
        "rebuild",
        "Run a red build again",
        {"build": Wants("build", {"status": ("red",)})},
        _again,
        ("run {build} again",),
        "the new build is green",
        tells=(
            tells_id("build", "number of the new build"),
            tells("build", "failures", "integer", "number of failed tests before"),
        ),
        writes=("builds",),
    ),
    Action(
        "freeze_release",
        "Freeze a planned release and set its date",
        {"release": Wants("release", {"status": ("planned",)}), "day": says_day("release.planned_on", "date", 10, 60)},
        _freeze,
        ("freeze {release}[; it ships on {day}]",),
        "the release is frozen",
        tells=(tells("release", "changes", "integer", "number of changes in it"),),
        writes=("releases",),
        after={"release": {"status": "frozen"}},
    ),
    Action(
        "ship_release",
        "Ship a frozen release",
        {"release": Wants("release", {"status": ("frozen",)})},
        _ship,
        ("ship {release}",),
        "the release is out",
        tells=(tells("release", "changes", "integer", "number of changes in it"),),
        writes=("releases",),
        after={"release": {"status": "shipped"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="issue_tracker",
        title="An issue tracker",
        role="You run the issue tracker of a software team.",
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
