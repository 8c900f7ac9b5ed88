"""An online shop: orders, their lines, returns, gift cards, subscriptions and reviews."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import address, person_columns
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.rows import Draw, Rows
from stackloom.environments.world import View

CANCEL_REASONS = ("ordered_by_mistake", "found_it_cheaper", "arrives_too_late", "plans_changed")
RETURN_REASONS = ("arrived_damaged", "wrong_item_sent", "too_small", "quality_disappoints", "changed_my_mind")
EXPRESS = 1250  # cents that express delivery costs


def _status(draw: Draw) -> str:
    return draw.rng.choice(("pending", "pending", "shipped", "delivered", "delivered", "cancelled"))


def _line_added(rows: Rows, line: Row) -> None:
    """An order costs what its lines cost, and what has been delivered lies in a delivered order."""
    order = rows.tables["orders"][line["order_id"]]
    changes = {"total": order["total"] + line["quantity"] * line["unit_price"]}
    if line["state"] == "delivered" and order["status"] != "delivered":
        changes["status"] = "delivered"
    rows.set("orders", order["id"], **changes)


def _line_state(draw: Draw) -> str:
    return "delivered" if draw.parent("order_id")["status"] == "delivered" else "ordered"


BLUEPRINT = Blueprint(
    person="customer",
    entities=(
        Entity(
            "customer",
            "customers",
            "CU",
            (
                *person_columns(),
                Column("address", "text", address, noun="home address", edit="change my home address[ to {value}]"),
                Column(
                    "tier",
                    "choice",
                    lambda d: d.rng.choice(("standard", "silver", "gold")),
                    noun="loyalty tier",
                    choices=("standard", "silver", "gold"),
                ),
                Column("store_credit", "money", lambda d: d.money(0, 80, step=50), noun="store credit"),
            ),
            count=4,
        ),
        Entity(
            "product",
            "products",
            "PR",
            (
                Column(
                    "name", "text", lambda d: d.one("product"), noun="product name", known=True, shown=True, unique=True
                ),
                Column(
                    "category",
                    "choice",
                    lambda d: d.rng.choice(("kitchen", "home", "garden", "outdoor")),
                    choices=("kitchen", "home", "garden", "outdoor"),
                    shown=True,
                ),
                Column("price", "money", lambda d: d.money(9, 240, step=5)),
                Column("stock", "integer", lambda d: d.rng.randint(3, 60), noun="number in stock"),
                Column(
                    "warranty_months", "integer", lambda d: d.rng.choice((6, 12, 24, 36)), noun="months of warranty"
                ),
            ),
            handles=(Handle(("name",), "the {name}"),),
            count=9,
        ),
        Entity(
            "order",
            "orders",
            "RO",
            (
                Column("customer_id", "id", parent="customer", own=True),
                Column("placed_on", "date", lambda d: d.day(-40, -2), noun="order date", known=True, shown=True),
                Column(
                    "status", "choice", _status, shown=True, choices=("pending", "shipped", "delivered", "cancelled")
                ),
                Column("ship_to", "text", lambda d: d.parent("customer_id")["address"], noun="delivery address"),
                Column(
                    "delivery",
                    "choice",
                    lambda d: d.rng.choice(("standard", "standard", "express")),
                    noun="delivery method",
                    choices=("standard", "express"),
                ),
                Column("expected_on", "date", lambda d: d.day(1, 12), noun="delivery date"),
                Column("total", "money", lambda d: 0),
                Column("cancel_reason", "choice", lambda d: "none", choices=("none", *CANCEL_REASONS), asked=False),
            ),
            handles=(Handle(("placed_on",), "my order from {placed_on}"), Handle(("id",), "order {id}")),
            count=8,
            known_id=True,
        ),
        Entity(
            "order_line",
            "order_lines",
            "OL",
            (
                Column("order_id", "id", parent="order", own=True),
                Column("product_id", "id", parent="product"),
                Column("product_name", "text", lambda d: d.parent("product_id")["name"], known=True, shown=True),
                Column("quantity", "integer", lambda d: d.rng.choice((1, 1, 1, 2, 3)), high=20),
                Column("unit_price", "money", lambda d: d.parent("product_id")["price"], noun="unit price"),
                Column(
                    "state",
                    "choice",
                    _line_state,
                    shown=True,
                    choices=("ordered", "delivered", "returned", "exchanged", "removed"),
                    asked=False,
                ),
            ),
            handles=(Handle(("product_name",), "the {product_name} in {order}"),),
            count=13,
            added=_line_added,
            noun="order line",
        ),
        Entity(
            "return",
            "returns",
            "RT",
            (
                Column("order_line_id", "id", parent="order_line", own=True),
                Column("opened_on", "date", lambda d: d.day(-20, -1), known=True, shown=True, noun="date"),
                Column("reason", "choice", lambda d: d.rng.choice(RETURN_REASONS), choices=RETURN_REASONS),
                Column("refund", "money", lambda d: d.parent("order_line_id")["unit_price"]),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("open", "received", "refunded")),
                    noun="status",
                    choices=("open", "received", "refunded"),
                    shown=True,
                ),
            ),
            handles=(Handle(("id",), "return {id}"),),
            count=3,
            known_id=True,
        ),
        Entity(
            "gift_card",
            "gift_cards",
            "GC",
            (
                Column("customer_id", "id", parent="customer", own=True),
                Column("balance", "money", lambda d: d.money(10, 100, step=500)),
                Column("valid_until", "date", lambda d: d.day(30, 220), noun="last day of validity"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("active", "active", "redeemed")),
                    choices=("active", "redeemed"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(Handle(("id",), "gift card {id}"),),
            count=4,
            known_id=True,
        ),
        Entity(
            "subscription",
            "subscriptions",
            "SB",
            (
                Column("customer_id", "id", parent="customer", own=True),
                Column("item", "text", lambda d: d.one("consumable"), known=True, shown=True),
                Column(
                    "weeks",
                    "integer",
                    lambda d: d.rng.randint(2, 12),
                    noun="interval in weeks",
                    low=1,
                    high=26,
                    edit="have {it} come[ every {value} weeks]",
                ),
                Column(
                    "next_on",
                    "date",
                    lambda d: d.day(3, 40),
                    noun="next delivery date",
                    edit="move the next delivery of {it}[ to {value}]",
                ),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("active", "active", "paused")),
                    choices=("active", "paused"),
                    shown=True,
                    asked=False,
                ),
            ),
            handles=(Handle(("item",), "my {item} subscription"),),
            count=4,
        ),
        Entity(
            "review",
            "reviews",
            "RV",
            (
                Column("customer_id", "id", parent="customer", own=True),
                Column("product_id", "id", parent="product"),
                Column("posted_on", "date", lambda d: d.day(-90, -3), noun="date", known=True, shown=True),
                Column(
                    "stars",
                    "integer",
                    lambda d: d.rng.randint(1, 5),
                    noun="number of stars",
                    low=1,
                    high=5,
                    edit="change the stars of {it}[ to {value}]",
                ),
            ),
            handles=(Handle(("posted_on",), "my review from {posted_on}"),),
            count=4,
        ),
    ),
)


def _cancel_order(db: View, given: Given) -> Row:
    order = given["order"]
    db.update("orders", order["id"], status="cancelled", cancel_reason=given["reason"])
    return {"refund": order["total"]}


def _return_line(db: View, given: Given) -> Row:
    line = given["order_line"]
    refund = line["unit_price"] * line["quantity"]
    db.update("order_lines", line["id"], state="returned")
    made = db.insert(
        "returns", order_line_id=line["id"], opened_on=db.today, reason=given["reason"], refund=refund, status="open"
    )
    return {"return_id": made["id"], "refund": refund}


def _exchange_line(db: View, given: Given) -> Row:
    line, product = given["order_line"], given["product"]
    db.update(
        "order_lines",
        line["id"],
        state="exchanged",
        product_id=product["id"],
        product_name=product["name"],
        unit_price=product["price"],
    )
    db.update("products", product["id"], stock=product["stock"] - line["quantity"])
    return {"price": product["price"]}


def _place_order(db: View, given: Given) -> Row:
    customer, product, quantity = given["customer"], given["product"], given["quantity"]
    total = product["price"] * quantity
    order = db.insert(
        "orders",
        customer_id=customer["id"],
        placed_on=db.today,
        status="pending",
        ship_to=customer["address"],
        delivery="standard",
        expected_on="2026-05-25",
        total=total,
        cancel_reason="none",
    )
    db.insert(
        "order_lines",
        order_id=order["id"],
        product_id=product["id"],
        product_name=product["name"],
        quantity=quantity,
        unit_price=product["price"],
        state="ordered",
    )
    db.update("products", product["id"], stock=product["stock"] - quantity)
    return {"order_id": order["id"], "total": total}


def _enough(db: View, given: Given) -> str:
    return "" if given["product"]["stock"] >= given["quantity"] else f"only {given['product']['stock']} are in stock"


def _express(db: View, given: Given) -> Row:
    order = given["order"]
    total = order["total"] + EXPRESS
    db.update("orders", order["id"], delivery="express", total=total)
    return {"total": total}


def _ship_elsewhere(db: View, given: Given) -> Row:
    db.update("orders", given["order"]["id"], ship_to=given["ship_to"])
    return {"expected_on": given["order"]["expected_on"]}


def _reschedule(db: View, given: Given) -> Row:
    db.update("orders", given["order"]["id"], expected_on=given["date"])
    return {"status": given["order"]["status"]}


def _redeem(db: View, given: Given) -> Row:
    card = given["gift_card"]
    customer = db.get("customers", card["customer_id"])
    assert customer is not None
    credit = customer["store_credit"] + card["balance"]
    db.update("gift_cards", card["id"], status="redeemed", balance=0)
    db.update("customers", customer["id"], store_credit=credit)
    return {"store_credit": credit}


def _pause(db: View, given: Given) -> Row:
    db.update("subscriptions", given["subscription"]["id"], status="paused")
    return {"item": given["subscription"]["item"]}


def _resume(db: View, given: Given) -> Row:
    db.update("subscriptions", given["subscription"]["id"], status="active", next_on=given["date"])
    return {"item": given["subscription"]["item"]}


def _subscribe(db: View, given: Given) -> Row:
    made = db.insert(
        "subscriptions",
        customer_id=given["customer"]["id"],
        item=given["item"],
        weeks=given["weeks"],
        next_on="2026-05-22",
        status="active",
    )
    return {"subscription_id": made["id"], "next_on": "2026-05-22"}


def _review(db: View, given: Given) -> Row:
    made = db.insert(
        "reviews",
        customer_id=given["customer"]["id"],
        product_id=given["product"]["id"],
        posted_on=db.today,
        stars=given["stars"],
    )
    return {"review_id": made["id"]}


def _remove_line(db: View, given: Given) -> Row:
    line = given["order_line"]
    order = db.get("orders", line["order_id"])
    assert order is not None
    total = order["total"] - line["unit_price"] * line["quantity"]
    db.update("order_lines", line["id"], state="removed")
    db.update("orders", order["id"], total=total)
    return {"total": total}


def _pending(db: View, given: Given) -> str:
    order = db.get("orders", given["order_line"]["order_id"])
    return "" if order and order["status"] == "pending" else "only lines of pending orders can be removed"


REFUND = Tells("refund", "money", "return.refund", "refund")
TOTAL = Tells("total", "money", "order.total", "new total")
ACTIONS = (
    Action(
        "cancel_order",
        "Cancel a pending order",
        {
            "order": Wants("order", {"status": ("pending",)}),
            "reason": Says(
                "order.cancel_reason",
                "choice",
                lambda d, g: d.rng.choice(CANCEL_REASONS),
                "reason for cancelling",
                choices=CANCEL_REASONS,
            ),
        },
        _cancel_order,
        ("cancel {order}[, reason: {reason}]", "call off {order}[; the reason is {reason}]"),
        "the order is cancelled",
        tells=(Tells("refund", "money", "order.total", "refund"),),
        writes=("orders",),
        after={"order": {"status": "cancelled"}},
    ),
    Action(
        "return_order_line",
        "Open a return for a delivered order line",
        {
            "order_line": Wants("order_line", {"state": ("delivered",)}),
            "reason": Says(
                "return.reason",
                "choice",
                lambda d, g: d.rng.choice(RETURN_REASONS),
                "reason for the return",
                choices=RETURN_REASONS,
            ),
        },
        _return_line,
        ("return {order_line}[, reason: {reason}]", "send back {order_line}[; the reason is {reason}]"),
        "the return is open",
        tells=(REFUND, Tells("return_id", "id", "return.id", "return number")),
        writes=("order_lines", "returns"),
        after={"order_line": {"state": "returned"}},
    ),
    Action(
        "exchange_order_line",
        "Exchange a delivered order line for another product",
        {
            "order_line": Wants("order_line", {"state": ("delivered",)}),
            "product": Wants(
                "product",
                where=lambda row, g: row["stock"] > 5 and row["id"] != g["order_line"]["product_id"],
                why="that product is the same one, or too few are left",
            ),
        },
        _exchange_line,
        ("swap {order_line} for {product}", "exchange {order_line} for {product}"),
        "the exchange is arranged",
        tells=(Tells("price", "money", "product.price", "price of the new one"),),
        writes=("order_lines", "products"),
        after={"order_line": {"state": "exchanged"}},
    ),
    Action(
        "place_order",
        "Order a product for a customer",
        {
            "customer": Wants("customer"),
            "product": Wants("product", where=lambda row, g: row["stock"] > 0, why="out of stock"),
            "quantity": Says(
                "order_line.quantity", "integer", lambda d, g: d.rng.randint(1, 3), "quantity", low=1, high=20
            ),
        },
        _place_order,
        ("order {product} for me[, {quantity} of it]", "place a new order for {product}[, quantity {quantity}]"),
        "the new order is placed",
        tells=(
            Tells("total", "money", "order.total", "total of the new order"),
            Tells("order_id", "id", "order.id", "number of the new order"),
        ),
        writes=("orders", "order_lines", "products"),
        pre=_enough,
    ),
    Action(
        "upgrade_to_express",
        "Upgrade a pending order to express delivery, for 12.50",
        {"order": Wants("order", {"status": ("pending",), "delivery": ("standard",)})},
        _express,
        ("upgrade {order} to express delivery", "have {order} sent by express"),
        "the order goes by express",
        tells=(TOTAL,),
        writes=("orders",),
        after={"order": {"delivery": "express"}},
    ),
    Action(
        "change_ship_to",
        "Change the delivery address of a pending order",
        {
            "order": Wants("order", {"status": ("pending",)}),
            "ship_to": Says("order.ship_to", "text", lambda d, g: address(d), "new delivery address"),
        },
        _ship_elsewhere,
        ("send {order} to another address[: {ship_to}]", "have {order} delivered elsewhere[: {ship_to}]"),
        "the order goes to the new address",
        tells=(Tells("expected_on", "date", "order.expected_on", "delivery date"),),
        writes=("orders",),
    ),
    Action(
        "reschedule_delivery",
        "Move the delivery of a shipped order to another day",
        {
            "order": Wants("order", {"status": ("shipped",)}),
            "date": Says("order.expected_on", "date", lambda d, g: d.day(13, 25), "new delivery date"),
        },
        _reschedule,
        ("move the delivery of {order}[ to {date}]", "have {order} delivered later[, on {date}]"),
        "the delivery is moved",
        tells=(Tells("status", "choice", "order.status", "status of that order"),),
        writes=("orders",),
    ),
    Action(
        "redeem_gift_card",
        "Move a gift card's balance to the store credit of its owner",
        {"gift_card": Wants("gift_card", {"status": ("active",)})},
        _redeem,
        ("redeem {gift_card}", "put the balance of {gift_card} on my store credit"),
        "the gift card is redeemed",
        tells=(Tells("store_credit", "money", "customer.store_credit", "new store credit"),),
        reads=("customers",),
        writes=("gift_cards", "customers"),
        after={"gift_card": {"status": "redeemed", "balance": 0}},
    ),
    Action(
        "pause_subscription",
        "Pause an active subscription",
        {"subscription": Wants("subscription", {"status": ("active",)})},
        _pause,
        ("pause {subscription}", "put {subscription} on hold"),
        "the subscription is paused",
        tells=(Tells("item", "text", "subscription.item", "item"),),
        writes=("subscriptions",),
        after={"subscription": {"status": "paused"}},
    ),
    Action(
        "resume_subscription",
        "Resume a paused subscription from a date on",
        {
            "subscription": Wants("subscription", {"status": ("paused",)}),
            "date": Says("subscription.next_on", "date", lambda d, g: d.day(41, 60), "next delivery date"),
        },
        _resume,
        ("resume {subscription}[, next delivery on {date}]", "start {subscription} again[ on {date}]"),
        "the subscription runs again",
        tells=(Tells("item", "text", "subscription.item", "item"),),
        writes=("subscriptions",),
        after={"subscription": {"status": "active"}},
    ),
    Action(
        "start_subscription",
        "Subscribe a customer to an item",
        {
            "customer": Wants("customer"),
            "item": Says("subscription.item", "text", lambda d, g: d.one("consumable"), "item"),
            "weeks": Says(
                "subscription.weeks", "integer", lambda d, g: d.rng.randint(2, 8), "interval in weeks", low=1, high=26
            ),
        },
        _subscribe,
        ("sign me up for {item}[ every {weeks} weeks]", "start a subscription to {item}[, every {weeks} weeks]"),
        "the new subscription is running",
        tells=(
            Tells("next_on", "date", "subscription.next_on", "date of the first delivery"),
            Tells("subscription_id", "id", "subscription.id", "number of the new subscription"),
        ),
        writes=("subscriptions",),
    ),
    Action(
        "post_review",
        "Post a customer's review of a product",
        {
            "customer": Wants("customer"),
            "product": Wants("product"),
            "stars": Says(
                "review.stars", "integer", lambda d, g: d.rng.randint(1, 5), "number of stars", low=1, high=5
            ),
        },
        _review,
        ("post a review of {product}[ with {stars} stars]", "rate {product}[ with {stars} stars]"),
        "the review is posted",
        tells=(Tells("review_id", "id", "review.id", "number of the review"),),
        writes=("reviews",),
    ),
    Action(
        "remove_order_line",
        "Take a line out of a pending order",
        {"order_line": Wants("order_line", {"state": ("ordered",)})},
        _remove_line,
        ("take {order_line} out again", "remove {order_line}"),
        "the item is taken out",
        tells=(TOTAL,),
        reads=("orders",),
        writes=("order_lines", "orders"),
        pre=_pending,
        after={"order_line": {"state": "removed"}},
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="retail",
        title="An online shop",
        role="You serve the customers of an online shop.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Hi, {name} here.",
            "Hello, this is {name}.",
            "Good morning, my name is {name}.",
            "Hey, it's {name}.",
        ),
    )
