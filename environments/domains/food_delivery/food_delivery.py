"""A food delivery: restaurants, dishes, orders, order lines, addresses, coupons and couriers."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import address, full_name, person_columns
from stackloom.environments.domains.shorthand import (
    amount,
    clock,
    day,
    number,
    one_of,
    parent,
    says_amount,
    says_number,
    says_one,
    status,
    tells,
    tells_id,
    word,
)
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.world import View

PROBLEMS = ("cold", "late", "missing_dish", "wrong_dish")
PLACES = ("home", "office", "gym", "parents")

BLUEPRINT = Blueprint(
    person="diner",
    entities=(
        Entity(
            "diner",
            "diners",
            "DN",
            (
                *person_columns(),
                one_of("diet", ("anything", "vegetarian", "vegan", "no_nuts"), edit="change my diet[ to {value}]"),
                amount("wallet", 0, 90, step=100, noun="wallet balance"),
                one_of("member", ("yes", "no"), asked=False),
            ),
            count=5,
        ),
        Entity(
            "restaurant",
            "restaurants",
            "RS",
            (
                word("name", "restaurant", noun="restaurant", known=True, shown=True, unique=True),
                amount("fee", 0, 6, step=50, noun="delivery fee"),
                number("minutes", 15, 75, step=5, noun="delivery time in minutes"),
                number("stars", 1, 5, noun="number of stars", most=5),
                status(("open", "closed"), drawn=("open", "open", "open", "closed")),
            ),
            handles=(Handle(("name",), "the restaurant {name}"),),
            count=7,
        ),
        Entity(
            "dish",
            "dishes",
            "DS",
            (
                parent("restaurant"),
                word("name", "dish", noun="dish", known=True, shown=True, unique=True),
                amount("price", 5, 24, step=10),
                number("calories", 200, 1400, step=10, noun="number of calories"),
                one_of("spice", ("none", "mild", "hot")),
            ),
            handles=(Handle(("name",), "the dish {name}"),),
            count=10,
        ),
        Entity(
            "place",
            "places",
            "PL",
            (
                parent("diner", own=True),
                one_of("label", PLACES, noun="address label", known=True, shown=True),
                Column("street", "text", address, noun="street", edit="change the street of {it}[ to {value}]"),
                Column("door_code", "text", lambda d: d.digits(4), noun="door code"),
            ),
            handles=(Handle(("label",), "my {label} address"),),
            count=7,
            noun="address",
        ),
        Entity(
            "order",
            "orders",
            "",
            (
                parent("diner", own=True),
                parent("restaurant"),
                Column(
                    "kitchen",
                    "text",
                    lambda d: d.parent("restaurant_id")["name"],
                    noun="restaurant",
                    known=True,
                    shown=True,
                ),
                clock("placed_at", -10, 0, hours=(11, 22), step=5, noun="time of ordering"),
                amount("total", 12, 90, step=10),
                amount("tip", 0, 8, step=50),
                Column("problem", "choice", lambda d: "none", choices=("none", *PROBLEMS), asked=False),
                status(
                    ("placed", "cooking", "delivered", "cancelled"), drawn=("placed", "placed", "cooking", "delivered")
                ),
            ),
            handles=(Handle(("id",), "order {id}"), Handle(("kitchen",), "my order from {kitchen}")),
            count=8,
            known_id=True,
        ),
        Entity(
            "order_line",
            "order_lines",
            "OL",
            (
                parent("order", own=True),
                word("dish_name", "dish", noun="dish", known=True, shown=True),
                number("portions", 1, 4, noun="number of portions", most=9),
                amount("price", 5, 40, step=10),
            ),
            handles=(Handle(("dish_name",), "the {dish_name} in {order}"),),
            count=8,
            noun="order line",
        ),
        Entity(
            "coupon",
            "coupons",
            "CP",
            (
                parent("diner", own=True),
                Column(
                    "code",
                    "text",
                    lambda d: f"{d.rng.choice(('TASTY', 'YUM', 'SAVE', 'BITE'))}{d.digits(3)}",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                amount("value", 2, 15, step=50),
                day("ends_on", 2, 90, noun="last day"),
                status(("unused", "used"), drawn=("unused", "unused", "used")),
            ),
            handles=(Handle(("code",), "coupon {code}"),),
            count=5,
        ),
        Entity(
            "courier",
            "couriers",
            "CO",
            (
                Column("name", "text", full_name, noun="courier's name", known=True, shown=True, unique=True),
                one_of("vehicle", ("bicycle", "scooter", "car")),
                number("runs", 0, 18, noun="number of runs today"),
            ),
            handles=(Handle(("name",), "courier {name}"),),
            count=4,
        ),
    ),
)


def _order(db: View, given: Given) -> Row:
    dish, portions = given["dish"], given["portions"]
    kitchen = db.get("restaurants", dish["restaurant_id"])
    assert kitchen is not None
    price = dish["price"] * portions
    made = db.insert(
        "orders",
        diner_id=given["diner"]["id"],
        restaurant_id=kitchen["id"],
        kitchen=kitchen["name"],
        placed_at=f"{db.today} 12:00",
        total=price + kitchen["fee"],
        tip=0,
        problem="none",
        status="placed",
    )
    db.insert("order_lines", order_id=made["id"], dish_name=dish["name"], portions=portions, price=price)
    return {"order_id": made["id"], "total": price + kitchen["fee"], "minutes": kitchen["minutes"]}


def _kitchen_open(db: View, given: Given) -> str:
    kitchen = db.get("restaurants", given["dish"]["restaurant_id"])
    return "" if kitchen and kitchen["status"] == "open" else "that restaurant is closed"


def _add(db: View, given: Given) -> Row:
    order, dish = given["order"], given["dish"]
    made = db.insert("order_lines", order_id=order["id"], dish_name=dish["name"], portions=1, price=dish["price"])
    db.update("orders", order["id"], total=order["total"] + dish["price"])
    return {"order_line_id": made["id"], "total": order["total"] + dish["price"]}


def _same_kitchen(row: Row, given: Given) -> bool:
    return bool(row["restaurant_id"] == given["order"]["restaurant_id"])


def _cancel(db: View, given: Given) -> Row:
    order = given["order"]
    diner = db.get("diners", order["diner_id"])
    assert diner is not None
    wallet = diner["wallet"] + order["total"]
    db.update("orders", order["id"], status="cancelled")
    db.update("diners", diner["id"], wallet=wallet)
    return {"wallet": wallet}


def _tip(db: View, given: Given) -> Row:
    order = given["order"]
    db.update("orders", order["id"], tip=given["tip"], total=order["total"] + given["tip"] - order["tip"])
    return {"total": order["total"] + given["tip"] - order["tip"]}


def _complain(db: View, given: Given) -> Row:
    order = given["order"]
    diner = db.get("diners", order["diner_id"])
    assert diner is not None
    back = order["total"] // 2 if given["problem"] in ("missing_dish", "wrong_dish") else order["total"] // 4
    db.update("diners", diner["id"], wallet=diner["wallet"] + back)
    db.update("orders", order["id"], total=order["total"] - back, problem=given["problem"])
    return {"refund": back}


def _use(db: View, given: Given) -> Row:
    order, coupon = given["order"], given["coupon"]
    total = max(0, order["total"] - coupon["value"])
    db.update("orders", order["id"], total=total)
    db.update("coupons", coupon["id"], status="used")
    return {"total": total}


def _give(db: View, given: Given) -> Row:
    courier = given["courier"]
    db.update("orders", given["order"]["id"], status="delivered")
    db.update("couriers", courier["id"], runs=courier["runs"] + 1)
    return {"runs": courier["runs"] + 1}


def _place(db: View, given: Given) -> Row:
    made = db.insert(
        "places", diner_id=given["diner"]["id"], label=given["label"], street=given["street"], door_code="0000"
    )
    return {"place_id": made["id"]}


def _forget(db: View, given: Given) -> Row:
    db.delete("places", given["place"]["id"])
    return {"street": given["place"]["street"]}


def _top_up(db: View, given: Given) -> Row:
    diner = given["diner"]
    db.update("diners", diner["id"], wallet=diner["wallet"] + given["amount"])
    return {"wallet": diner["wallet"] + given["amount"]}


def _join(db: View, given: Given) -> Row:
    diner = given["diner"]
    db.update("diners", diner["id"], member="yes", wallet=diner["wallet"] - 500)
    return {"wallet": diner["wallet"] - 500}


PLACED = {"status": ("placed",)}
ACTIONS = (
    Action(
        "place_order",
        "Order portions of a dish",
        {
            "diner": Wants("diner"),
            "dish": Wants("dish"),
            "portions": says_number("order_line.portions", "number of portions", 1, 4),
        },
        _order,
        ("order {dish} for me[, {portions} portions]",),
        "your order is placed",
        tells=(
            tells_id("order", "number of the order"),
            tells("order", "total", "money", "total of the order"),
            tells("restaurant", "minutes", "integer", "delivery time in minutes"),
        ),
        reads=("restaurants",),
        writes=("orders", "order_lines"),
        pre=_kitchen_open,
    ),
    Action(
        "add_dish",
        "Add a portion of a dish of the same restaurant to an order",
        {
            "order": Wants("order", PLACED),
            "dish": Wants("dish", where=_same_kitchen, why="another restaurant cooks that"),
        },
        _add,
        ("add {dish} to {order}",),
        "the dish is added",
        tells=(tells_id("order_line", "number of the line"), tells("order", "total", "money", "new total")),
        writes=("orders", "order_lines"),
    ),
    Action(
        "cancel_order",
        "Cancel an order that is not cooking yet; its total goes to the wallet",
        {"order": Wants("order", PLACED)},
        _cancel,
        ("cancel {order}",),
        "the order is cancelled",
        tells=(tells("diner", "wallet", "money", "wallet balance now"),),
        reads=("diners",),
        writes=("orders", "diners"),
        after={"order": {"status": "cancelled"}},
    ),
    Action(
        "set_tip",
        "Set the tip of an order",
        {
            "order": Wants("order", {"status": ("placed", "cooking", "delivered")}),
            "tip": says_amount("order.tip", "tip", 1, 9, step=50),
        },
        _tip,
        ("set the tip for {order}[ to {tip}]",),
        "the tip is set",
        tells=(tells("order", "total", "money", "new total"),),
        writes=("orders",),
    ),
    Action(
        "report_problem",
        "Report a problem with a delivered order; part of it goes to the wallet",
        {
            "order": Wants("order", {"status": ("delivered",)}),
            "problem": says_one("order.problem", "problem", PROBLEMS),
        },
        _complain,
        ("report a problem with {order}[: {problem}]",),
        "the problem is reported",
        tells=(Tells("refund", "money", "order.refund", "refund"),),
        reads=("diners",),
        writes=("orders", "diners"),
    ),
    Action(
        "use_coupon",
        "Use a coupon for an order",
        {"order": Wants("order", PLACED), "coupon": Wants("coupon", {"status": ("unused",)})},
        _use,
        ("use {coupon} for {order}",),
        "the coupon is used",
        tells=(tells("order", "total", "money", "new total"),),
        writes=("orders", "coupons"),
        after={"coupon": {"status": "used"}},
    ),
    Action(
        "confirm_delivery",
        "Note that a courier has brought an order",
        {"order": Wants("order", {"status": ("cooking",)}), "courier": Wants("courier")},
        _give,
        ("{courier} has brought {order}; note it",),
        "the delivery is noted",
        tells=(tells("courier", "runs", "integer", "number of runs of that courier today"),),
        writes=("orders", "couriers"),
        after={"order": {"status": "delivered"}},
    ),
    Action(
        "add_address",
        "Add an address",
        {
            "diner": Wants("diner"),
            "label": says_one("place.label", "address label", PLACES),
            "street": Says("place.street", "text", lambda d, g: address(d), "street"),
        },
        _place,
        ("add an address of mine[: {label}, {street}]",),
        "the address is added",
        tells=(tells_id("place", "number of the address"),),
        writes=("places",),
    ),
    Action(
        "delete_address",
        "Delete an address",
        {"place": Wants("place")},
        _forget,
        ("delete {place}", "forget {place}"),
        "the address is gone",
        tells=(tells("place", "street", "text", "street that was in it"),),
        writes=("places",),
    ),
    Action(
        "top_up_wallet",
        "Put money into a wallet",
        {"diner": Wants("diner"), "amount": says_amount("diner.top_up", "amount", 5, 60)},
        _top_up,
        ("put money into my wallet[: {amount}]",),
        "the money is there",
        tells=(tells("diner", "wallet", "money", "wallet balance now"),),
        writes=("diners",),
    ),
    Action(
        "join_club",
        "Make a diner a member; it costs five from the wallet",
        {
            "diner": Wants(
                "diner",
                {"member": ("no",)},
                where=lambda row, g: row["wallet"] >= 500,
                why="the wallet holds too little",
            )
        },
        _join,
        ("make me a member of your club",),
        "you are a member",
        tells=(tells("diner", "wallet", "money", "wallet balance now"),),
        writes=("diners",),
        after={"diner": {"member": "yes"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="food_delivery",
        title="A food delivery",
        role="You serve the customers of a food delivery.",
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
