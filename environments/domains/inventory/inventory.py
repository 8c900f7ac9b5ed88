"""A warehouse: parts, bins, counts, purchase orders, suppliers, transfers and picks."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Wants, read_words
from stackloom.environments.domains.people import person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    clock,
    day,
    number,
    one_of,
    parent,
    says_day,
    says_number,
    says_word,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.rows import Draw
from stackloom.environments.world import View

COUNTS = ("open", "closed")

BLUEPRINT = Blueprint(
    person="keeper",
    entities=(
        Entity(
            "keeper",
            "keepers",
            "KP",
            (
                *person_columns(edit_email=False),
                one_of("shift", ("early", "late", "night"), edit="move me[ to the {value} shift]"),
                number("picks_done", 0, 900, noun="number of picks done"),
                Column("badge", "text", lambda d: f"{d.rng.choice('PQRS')}-{d.digits(4)}", noun="badge number"),
            ),
            count=4,
        ),
        Entity(
            "supplier",
            "suppliers",
            "SP",
            (
                word("name", "supplier", noun="supplier", known=True, shown=True, unique=True),
                number("lead_days", 2, 40, noun="lead time in days"),
                amount("minimum", 50, 900, noun="minimum order value"),
                one_of("rating", ("a", "b", "c")),
            ),
            handles=(Handle(("name",), "supplier {name}"),),
            count=5,
        ),
        Entity(
            "part",
            "parts",
            "PR",
            (
                parent("supplier"),
                word("name", "part", noun="part", known=True, shown=True, unique=True),
                Column(
                    "bin", "text", lambda d: f"{d.rng.choice('ABCDEFG')}{d.rng.randint(1, 9)}-{d.rng.randint(10, 60)}"
                ),
                number("stock", 5, 600, noun="number in stock"),
                number("reorder_at", 5, 90, noun="reorder level", edit="set the reorder level of {it}[ to {value}]"),
                amount("unit_price", 1, 140, step=5, noun="price per piece"),
            ),
            handles=(Handle(("name",), "the part {name}"),),
            count=10,
        ),
        Entity(
            "purchase",
            "purchases",
            "",
            (
                parent("keeper", own=True),
                parent("part"),
                Column("item", "text", lambda d: d.parent("part_id")["name"], noun="part", known=True, shown=True),
                number("pieces", 10, 400, step=10, noun="number of pieces"),
                amount("total", 40, 4000, step=500),
                day("due_on", 2, 50, noun="delivery date", edit="move the delivery of {it}[ to {value}]"),
                status(("ordered", "received", "cancelled"), drawn=("ordered", "ordered", "received")),
            ),
            handles=(Handle(("id",), "purchase {id}"), Handle(("item",), "my purchase of {item}")),
            count=8,
            known_id=True,
        ),
        Entity(
            "pick",
            "picks",
            "PI",
            (
                parent("keeper", own=True),
                parent("part"),
                Column("item", "text", lambda d: d.parent("part_id")["name"], noun="part", known=True, shown=True),
                number("pieces", 1, 5, noun="number of pieces"),
                word("site", "site", noun="receiving site"),
                status(("open", "picked", "short"), drawn=("open", "open", "picked")),
            ),
            handles=(Handle(("item",), "the pick of {item}"),),
            count=7,
        ),
        Entity(
            "count",
            "counts",
            "CT",
            (
                parent("keeper", own=True),
                parent("part"),
                Column("item", "text", lambda d: d.parent("part_id")["name"], noun="part", known=True, shown=True),
                day("planned_on", 1, 30, noun="day", edit="move {it}[ to {value}]"),
                number("difference", 0, 20, noun="number of pieces missing"),
                status(COUNTS, drawn=("open", "open", "closed")),
            ),
            handles=(Handle(("item",), "the count of {item}"),),
            count=6,
        ),
        Entity(
            "transfer",
            "transfers",
            "TF",
            (
                parent("keeper", own=True),
                parent("part"),
                Column("item", "text", lambda d: d.parent("part_id")["name"], noun="part", known=True, shown=True),
                word("to_site", "site", noun="receiving site"),
                number("pieces", 1, 5, noun="number of pieces"),
                clock("leaves", 1, 12, hours=(6, 20), noun="departure"),
                status(("packed", "on_the_road", "arrived"), drawn=("packed", "packed", "on_the_road")),
            ),
            handles=(Handle(("item",), "my transfer of {item}"),),
            count=5,
        ),
    ),
)


def _order(db: View, given: Given) -> Row:
    part, pieces = given["part"], given["pieces"]
    total = part["unit_price"] * pieces
    made = db.insert(
        "purchases",
        keeper_id=given["keeper"]["id"],
        part_id=part["id"],
        item=part["name"],
        pieces=pieces,
        total=total,
        due_on="2026-06-10",
        status="ordered",
    )
    return {"purchase_id": made["id"], "total": total}


def _receive(db: View, given: Given) -> Row:
    purchase = given["purchase"]
    part = db.get("parts", purchase["part_id"])
    assert part is not None
    db.update("purchases", purchase["id"], status="received")
    db.update("parts", part["id"], stock=part["stock"] + purchase["pieces"])
    return {"stock": part["stock"] + purchase["pieces"], "bin": part["bin"]}


def _cancel(db: View, given: Given) -> Row:
    db.update("purchases", given["purchase"]["id"], status="cancelled")
    return {"total": given["purchase"]["total"]}


def _switch(db: View, given: Given) -> Row:
    db.update("parts", given["part"]["id"], supplier_id=given["supplier"]["id"])
    return {"lead_days": given["supplier"]["lead_days"], "minimum": given["supplier"]["minimum"]}


def _take(db: View, given: Given) -> Row:
    made = db.insert(
        "picks",
        keeper_id=given["keeper"]["id"],
        part_id=given["part"]["id"],
        item=given["part"]["name"],
        pieces=given["pieces"],
        site=given["site"],
        status="open",
    )
    return {"pick_id": made["id"], "bin": given["part"]["bin"]}


def _pick(db: View, given: Given) -> Row:
    pick = given["pick"]
    part, keeper = db.get("parts", pick["part_id"]), db.get("keepers", pick["keeper_id"])
    assert part is not None
    assert keeper is not None
    db.update("picks", pick["id"], status="picked")
    db.update("parts", part["id"], stock=max(0, part["stock"] - pick["pieces"]))
    db.update("keepers", keeper["id"], picks_done=keeper["picks_done"] + 1)
    return {"stock": max(0, part["stock"] - pick["pieces"]), "picks_done": keeper["picks_done"] + 1}


def _short(db: View, given: Given) -> Row:
    db.update("picks", given["pick"]["id"], status="short")
    return {"pieces": given["pick"]["pieces"], "site": given["pick"]["site"]}


def _plan_count(db: View, given: Given) -> Row:
    made = db.insert(
        "counts",
        keeper_id=given["keeper"]["id"],
        part_id=given["part"]["id"],
        item=given["part"]["name"],
        planned_on=given["day"],
        difference=0,
        status="open",
    )
    return {"count_id": made["id"], "bin": given["part"]["bin"]}


def _close_count(db: View, given: Given) -> Row:
    count = given["count"]
    part = db.get("parts", count["part_id"])
    assert part is not None
    db.update("counts", count["id"], status="closed", difference=given["missing"])
    db.update("parts", part["id"], stock=max(0, part["stock"] - given["missing"]))
    return {"stock": max(0, part["stock"] - given["missing"])}


def _transfer(db: View, given: Given) -> Row:
    part = given["part"]
    made = db.insert(
        "transfers",
        keeper_id=given["keeper"]["id"],
        part_id=part["id"],
        item=part["name"],
        to_site=given["site"],
        pieces=given["pieces"],
        leaves=f"{db.today} 18:00",
        status="packed",
    )
    db.update("parts", part["id"], stock=part["stock"] - given["pieces"])
    return {"transfer_id": made["id"], "stock": part["stock"] - given["pieces"]}


def _leave(db: View, given: Given) -> Row:
    db.update("transfers", given["transfer"]["id"], status="on_the_road")
    return {"leaves": given["transfer"]["leaves"], "to_site": given["transfer"]["to_site"]}


def _move_bin(db: View, given: Given) -> Row:
    db.update("parts", given["part"]["id"], bin=given["bin"])
    return {"stock": given["part"]["stock"]}


def _bin(d: Draw, g: Given) -> str:
    return f"Z{d.rng.randint(1, 9)}-{d.rng.randint(10, 60)}"


ACTIONS = (
    Action(
        "order_part",
        "Order pieces of a part",
        {
            "keeper": Wants("keeper"),
            "part": Wants("part"),
            "pieces": says_number("purchase.pieces", "number of pieces", 10, 400, step=10),
        },
        _order,
        ("order more of {part} for me[: {pieces} pieces]",),
        "the purchase is ordered",
        tells=(
            tells_id("purchase", "number of the purchase"),
            tells("purchase", "total", "money", "total of the purchase"),
        ),
        writes=("purchases",),
    ),
    Action(
        "receive_purchase",
        "Put a delivery into its bin",
        {"purchase": Wants("purchase", {"status": ("ordered",)})},
        _receive,
        ("{purchase} has arrived; book it in", "receive {purchase}"),
        "the delivery is booked in",
        tells=(
            tells("part", "stock", "integer", "number in stock now"),
            tells("part", "bin", "text", "bin where it goes"),
        ),
        reads=("parts",),
        writes=("purchases", "parts"),
        after={"purchase": {"status": "received"}},
    ),
    Action(
        "cancel_purchase",
        "Cancel an ordered purchase",
        {"purchase": Wants("purchase", {"status": ("ordered",)})},
        _cancel,
        ("cancel {purchase}",),
        "the purchase is cancelled",
        tells=(tells("purchase", "total", "money", "total it had"),),
        writes=("purchases",),
        after={"purchase": {"status": "cancelled"}},
    ),
    Action(
        "change_supplier",
        "Buy a part from another supplier",
        {
            "part": Wants("part"),
            "supplier": Wants(
                "supplier",
                where=lambda row, g: row["id"] != g["part"]["supplier_id"],
                why="it comes from there already",
            ),
        },
        _switch,
        ("buy {part} from {supplier} from now on",),
        "the supplier is changed",
        tells=(
            tells("supplier", "lead_days", "integer", "lead time in days of that supplier"),
            tells("supplier", "minimum", "money", "minimum order value there"),
        ),
        writes=("parts",),
    ),
    Action(
        "open_pick",
        "Open a pick for a site",
        {
            "keeper": Wants("keeper"),
            "part": Wants("part"),
            "pieces": says_number("pick.pieces", "number of pieces", 1, 5),
            "site": says_word("pick.site", "receiving site", "site"),
        },
        _take,
        ("open a pick of {part} for me[: {pieces} pieces for {site}]",),
        "the pick is open",
        tells=(tells_id("pick", "number of the pick"), tells("part", "bin", "text", "bin where it lies")),
        writes=("picks",),
    ),
    Action(
        "finish_pick",
        "Finish an open pick",
        {"pick": Wants("pick", {"status": ("open",)})},
        _pick,
        ("{pick} is done; book it", "finish {pick}"),
        "the pick is booked",
        tells=(
            tells("part", "stock", "integer", "number in stock now"),
            tells("keeper", "picks_done", "integer", "number of picks done"),
        ),
        reads=("parts", "keepers"),
        writes=("picks", "parts", "keepers"),
        after={"pick": {"status": "picked"}},
    ),
    Action(
        "report_short",
        "Note that an open pick cannot be done",
        {"pick": Wants("pick", {"status": ("open",)})},
        _short,
        ("there is nothing left for {pick}; note it as short",),
        "the pick is noted as short",
        tells=(
            tells("pick", "pieces", "integer", "number of pieces it was for"),
            tells("pick", "site", "text", "receiving site of it"),
        ),
        writes=("picks",),
        after={"pick": {"status": "short"}},
    ),
    Action(
        "plan_count",
        "Plan a count of a part",
        {"keeper": Wants("keeper"), "part": Wants("part"), "day": says_day("count.planned_on", "day", 31, 60)},
        _plan_count,
        ("plan a count of {part} for me[ on {day}]",),
        "the count is planned",
        tells=(tells_id("count", "number of the count"), tells("part", "bin", "text", "bin of that part")),
        writes=("counts",),
    ),
    Action(
        "close_count",
        "Close an open count with what is missing",
        {
            "count": Wants("count", {"status": ("open",)}),
            "missing": says_number("count.difference", "number of pieces missing", 0, 4),
        },
        _close_count,
        ("close {count}[; {missing} pieces are missing]",),
        "the count is closed",
        tells=(tells("part", "stock", "integer", "number in stock now"),),
        reads=("parts",),
        writes=("counts", "parts"),
        after={"count": {"status": "closed"}},
    ),
    Action(
        "send_transfer",
        "Pack pieces of a part for another site",
        {
            "keeper": Wants("keeper"),
            "part": Wants("part", where=lambda row, g: row["stock"] >= 5, why="there are too few"),
            "pieces": says_number("transfer.pieces", "number of pieces", 1, 5),
            "site": says_word("transfer.to_site", "receiving site", "site"),
        },
        _transfer,
        ("send some of {part} to another site for me[: {pieces} pieces to {site}]",),
        "the transfer is packed",
        tells=(
            tells_id("transfer", "number of the transfer"),
            tells("part", "stock", "integer", "number left in stock"),
        ),
        writes=("transfers", "parts"),
    ),
    Action(
        "dispatch_transfer",
        "Note that a packed transfer has left",
        {"transfer": Wants("transfer", {"status": ("packed",)})},
        _leave,
        ("{transfer} has left; note it",),
        "the departure is noted",
        tells=(
            tells("transfer", "leaves", "clock", "departure that was planned"),
            tells("transfer", "to_site", "text", "site it goes to"),
        ),
        writes=("transfers",),
        after={"transfer": {"status": "on_the_road"}},
    ),
    Action(
        "move_part",
        "Move a part to another bin",
        {"part": Wants("part"), "bin": Says("part.bin", "text", _bin, "bin")},
        _move_bin,
        ("move {part} to another bin[, namely {bin}]",),
        "the part has moved",
        tells=(tells("part", "stock", "integer", "number in stock there"),),
        writes=("parts",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="inventory",
        title="A warehouse",
        role="You run the stock system of a warehouse for its keepers.",
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
