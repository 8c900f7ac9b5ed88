"""A bank: accounts, cards, payments, payees, standing orders, loans and disputes."""

from __future__ import annotations

from pathlib import Path

from stackloom.environments.domain import Action, Domain, Given, Says, Tells, Wants, read_words
from stackloom.environments.domains.people import address, person_columns
from stackloom.environments.entities import Blueprint, Column, Entity, Handle, Row
from stackloom.environments.rows import Draw
from stackloom.environments.world import View

ACCOUNTS = ("checking", "savings", "joint", "travel")
DISPUTES = ("charged_twice", "goods_missing", "amount_differs", "card_was_stolen")
BLOCKS = ("lost", "stolen", "damaged")


def _category(draw: Draw) -> str:
    return draw.rng.choice(("groceries", "transport", "leisure", "household"))


BLUEPRINT = Blueprint(
    person="client",
    entities=(
        Entity(
            "client",
            "clients",
            "CL",
            (
                *person_columns(),
                Column("address", "text", address, noun="postal address", edit="change my postal address[ to {value}]"),
                Column("adviser", "text", lambda d: f"{d.one('first')} {d.one('last')}", asked=False),
                Column(
                    "statements",
                    "choice",
                    lambda d: d.rng.choice(("paper", "electronic")),
                    noun="kind of statements",
                    choices=("paper", "electronic"),
                    edit="switch my statements[ to {value}]",
                ),
            ),
            count=4,
        ),
        Entity(
            "account",
            "accounts",
            "AC",
            (
                Column("client_id", "id", parent="client", own=True),
                Column("type", "choice", lambda d: d.rng.choice(ACCOUNTS), choices=ACCOUNTS, known=True, shown=True),
                Column("balance", "money", lambda d: d.money(400, 9000, step=1)),
                Column(
                    "overdraft",
                    "money",
                    lambda d: d.money(0, 1000, step=10000),
                    noun="overdraft limit",
                    high=500_000,
                    edit="change the overdraft limit of {it}[ to {value}]",
                ),
                Column("opened_on", "date", lambda d: d.day(-900, -200), noun="opening date"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("active", "active", "active", "dormant")),
                    shown=True,
                    choices=("active", "dormant", "closed"),
                    asked=False,
                ),
            ),
            handles=(Handle(("type",), "my {type} account"),),
            count=8,
        ),
        Entity(
            "card",
            "cards",
            "CD",
            (
                Column("account_id", "id", parent="account", own=True),
                Column(
                    "last_four",
                    "text",
                    lambda d: d.digits(4),
                    noun="last four digits",
                    known=True,
                    shown=True,
                    unique=True,
                ),
                Column("type", "choice", lambda d: d.rng.choice(("debit", "credit")), choices=("debit", "credit")),
                Column(
                    "daily_limit",
                    "money",
                    lambda d: d.money(200, 2000, step=10000),
                    noun="daily limit",
                    low=5_000,
                    high=1_000_000,
                    edit="change the daily limit of {it}[ to {value}]",
                ),
                Column("expires_on", "date", lambda d: d.day(10, 220), noun="expiry date"),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("active", "active", "frozen")),
                    shown=True,
                    asked=False,
                    choices=("active", "frozen", "blocked"),
                ),
            ),
            handles=(Handle(("last_four",), "the card ending in {last_four}"),),
            count=6,
        ),
        Entity(
            "transaction",
            "transactions",
            "TX",
            (
                Column("account_id", "id", parent="account", own=True),
                Column("booked_on", "date", lambda d: d.day(-60, 0), noun="booking date", known=True, shown=True),
                Column("merchant", "text", lambda d: d.one("merchant"), known=True, shown=True),
                Column("amount", "money", lambda d: d.money(4, 260)),
                Column(
                    "category",
                    "choice",
                    _category,
                    choices=("groceries", "transport", "leisure", "household", "transfer"),
                ),
            ),
            handles=(Handle(("booked_on", "merchant"), "the {merchant} payment of {booked_on} on {account}"),),
            count=12,
        ),
        Entity(
            "payee",
            "payees",
            "PY",
            (
                Column("client_id", "id", parent="client", own=True),
                Column("name", "text", lambda d: d.one("payee"), known=True, shown=True),
                Column("iban", "text", lambda d: f"GB{d.digits(2)}STLM{d.digits(14)}", noun="account number"),
                Column("added_on", "date", lambda d: d.day(-400, -10), noun="date of entry"),
            ),
            handles=(Handle(("name",), "my payee {name}"),),
            count=7,
        ),
        Entity(
            "standing_order",
            "standing_orders",
            "SO",
            (
                Column("account_id", "id", parent="account", own=True),
                Column("payee_name", "text", lambda d: d.one("payee"), noun="payee", known=True, shown=True),
                Column(
                    "amount",
                    "money",
                    lambda d: d.money(10, 600, step=100),
                    low=100,
                    high=10_000_00,
                    edit="change the amount of {it}[ to {value}]",
                ),
                Column(
                    "next_on",
                    "date",
                    lambda d: d.day(2, 30),
                    noun="next payment date",
                    edit="move the next payment of {it}[ to {value}]",
                ),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("running", "running", "stopped")),
                    shown=True,
                    asked=False,
                    choices=("running", "stopped"),
                ),
            ),
            handles=(Handle(("payee_name",), "the standing order to {payee_name} on {account}"),),
            count=6,
            noun="standing order",
        ),
        Entity(
            "loan",
            "loans",
            "LN",
            (
                Column("client_id", "id", parent="client", own=True),
                Column(
                    "purpose",
                    "choice",
                    lambda d: d.rng.choice(("car", "kitchen", "studies", "renovation")),
                    known=True,
                    shown=True,
                    choices=("car", "kitchen", "studies", "renovation"),
                ),
                Column("outstanding", "money", lambda d: d.money(900, 12_000, step=100), noun="outstanding amount"),
                Column("instalment", "money", lambda d: d.money(60, 400, step=100), noun="monthly instalment"),
                Column("ends_on", "date", lambda d: d.day(60, 220), noun="end date"),
            ),
            handles=(Handle(("purpose",), "my {purpose} loan"),),
            count=4,
        ),
        Entity(
            "dispute",
            "disputes",
            "DS",
            (
                Column("transaction_id", "id", parent="transaction", own=True),
                Column("about", "choice", lambda d: d.rng.choice(DISPUTES), choices=DISPUTES, asked=False),
                Column("opened_on", "date", lambda d: d.day(-40, -1), noun="date", shown=True, known=True),
                Column(
                    "status",
                    "choice",
                    lambda d: d.rng.choice(("submitted", "investigated", "refunded")),
                    shown=False,
                    choices=("submitted", "investigated", "refunded", "withdrawn"),
                ),
            ),
            handles=(Handle(("id",), "dispute {id}"),),
            count=3,
            known_id=True,
        ),
    ),
)


def _covers(db: View, given: Given) -> str:
    account = given.get("account") or given["from_account"]
    return "" if account["balance"] + account["overdraft"] >= given["amount"] else "the account does not hold that much"


def _transfer(db: View, given: Given) -> Row:
    source, goal, amount = given["from_account"], given["to_account"], given["amount"]
    db.update("accounts", source["id"], balance=source["balance"] - amount)
    db.update("accounts", goal["id"], balance=goal["balance"] + amount)
    made = db.insert(
        "transactions",
        account_id=source["id"],
        booked_on=db.today,
        merchant="own transfer",
        amount=amount,
        category="transfer",
    )
    return {"transaction_id": made["id"], "balance": goal["balance"] + amount}


def _pay(db: View, given: Given) -> Row:
    account, amount = given["account"], given["amount"]
    db.update("accounts", account["id"], balance=account["balance"] - amount)
    made = db.insert(
        "transactions",
        account_id=account["id"],
        booked_on=db.today,
        merchant=given["payee"]["name"],
        amount=amount,
        category="household",
    )
    return {"transaction_id": made["id"], "balance": account["balance"] - amount}


def _freeze(db: View, given: Given) -> Row:
    db.update("cards", given["card"]["id"], status="frozen")
    return {"expires_on": given["card"]["expires_on"]}


def _unfreeze(db: View, given: Given) -> Row:
    db.update("cards", given["card"]["id"], status="active")
    return {"daily_limit": given["card"]["daily_limit"]}


def _replace(db: View, given: Given) -> Row:
    card = given["card"]
    db.update("cards", card["id"], status="blocked")
    made = db.insert(
        "cards",
        account_id=card["account_id"],
        last_four=f"{(int(card['last_four']) * 7 + 13) % 9000 + 1000}",
        type=card["type"],
        daily_limit=card["daily_limit"],
        expires_on="2026-12-31",
        status="active",
    )
    db.insert(
        "disputes",
        transaction_id=given["transaction"]["id"],
        about=given["about"],
        opened_on=db.today,
        status="submitted",
    )
    return {"card_id": made["id"], "expires_on": "2026-12-31"}


def _unique_card(db: View, given: Given) -> str:
    number = f"{(int(given['card']['last_four']) * 7 + 13) % 9000 + 1000}"
    return "the card cannot be replaced now" if db.select("cards", last_four=number) else ""


def _dispute(db: View, given: Given) -> Row:
    made = db.insert(
        "disputes",
        transaction_id=given["transaction"]["id"],
        about=given["about"],
        opened_on=db.today,
        status="submitted",
    )
    return {"dispute_id": made["id"], "amount": given["transaction"]["amount"]}


def _withdraw(db: View, given: Given) -> Row:
    db.update("disputes", given["dispute"]["id"], status="withdrawn")
    return {"opened_on": given["dispute"]["opened_on"]}


def _standing(db: View, given: Given) -> Row:
    made = db.insert(
        "standing_orders",
        account_id=given["account"]["id"],
        payee_name=given["payee"]["name"],
        amount=given["amount"],
        next_on=given["first_on"],
        status="running",
    )
    return {"standing_order_id": made["id"]}


def _stop(db: View, given: Given) -> Row:
    db.update("standing_orders", given["standing_order"]["id"], status="stopped")
    return {"amount": given["standing_order"]["amount"], "next_on": given["standing_order"]["next_on"]}


def _repay(db: View, given: Given) -> Row:
    account, loan, amount = given["account"], given["loan"], given["amount"]
    db.update("accounts", account["id"], balance=account["balance"] - amount)
    db.update("loans", loan["id"], outstanding=loan["outstanding"] - amount)
    return {"outstanding": loan["outstanding"] - amount, "ends_on": loan["ends_on"]}


def _add_payee(db: View, given: Given) -> Row:
    made = db.insert(
        "payees", client_id=given["client"]["id"], name=given["name"], iban=given["iban"], added_on=db.today
    )
    return {"payee_id": made["id"]}


def _reactivate(db: View, given: Given) -> Row:
    db.update("accounts", given["account"]["id"], status="active")
    return {"balance": given["account"]["balance"], "opened_on": given["account"]["opened_on"]}


def _open(db: View, given: Given) -> Row:
    made = db.insert(
        "accounts",
        client_id=given["client"]["id"],
        type=given["type"],
        balance=0,
        overdraft=0,
        opened_on=db.today,
        status="active",
    )
    return {"account_id": made["id"]}


AMOUNT = Says("transaction.amount", "money", lambda d, g: d.money(10, 300, step=50), "amount", low=100, high=1_000_000)
ACTIVE = {"status": ("active",)}
OWN_PAYEE = Wants(
    "payee",
    where=lambda row, g: row["client_id"] == g["account"]["client_id"],
    why="the payee belongs to another client",
)
ACTIONS = (
    Action(
        "transfer",
        "Move money between two accounts of a client",
        {
            "from_account": Wants("account", ACTIVE),
            "to_account": Wants(
                "account", ACTIVE, lambda row, g: row["id"] != g["from_account"]["id"], "an account cannot pay itself"
            ),
            "amount": AMOUNT,
        },
        _transfer,
        ("move {amount} from {from_account} to {to_account}", "transfer {amount} to {to_account} from {from_account}"),
        "the money is transferred",
        tells=(
            Tells("transaction_id", "id", "transaction.id", "number of the transaction"),
            Tells("balance", "money", "account.balance", "new balance of the account that received it"),
        ),
        writes=("accounts", "transactions"),
        pre=_covers,
    ),
    Action(
        "pay_payee",
        "Pay a client's payee from an account",
        {"account": Wants("account", ACTIVE), "payee": OWN_PAYEE, "amount": AMOUNT},
        _pay,
        ("pay {amount} to {payee} from {account}", "send {amount} from {account} to {payee}"),
        "the payment is made",
        tells=(
            Tells("balance", "money", "account.balance", "new balance of that account"),
            Tells("transaction_id", "id", "transaction.id", "number of the payment"),
        ),
        writes=("accounts", "transactions"),
        pre=_covers,
    ),
    Action(
        "freeze_card",
        "Freeze an active card",
        {"card": Wants("card", ACTIVE)},
        _freeze,
        ("freeze {card}", "put a temporary stop on {card}"),
        "the card is frozen",
        tells=(Tells("expires_on", "date", "card.expires_on", "expiry date of that card"),),
        writes=("cards",),
        after={"card": {"status": "frozen"}},
    ),
    Action(
        "unfreeze_card",
        "Make a frozen card work again",
        {"card": Wants("card", {"status": ("frozen",)})},
        _unfreeze,
        ("unfreeze {card}", "make {card} work again"),
        "the card works again",
        tells=(Tells("daily_limit", "money", "card.daily_limit", "daily limit of that card"),),
        writes=("cards",),
        after={"card": {"status": "active"}},
    ),
    Action(
        "replace_card",
        "Block a card for good, dispute a payment made with it and send a new card",
        {
            "card": Wants("card", {"status": ("active", "frozen")}),
            "transaction": Wants(
                "transaction",
                where=lambda row, g: row["account_id"] == g["card"]["account_id"],
                why="the payment is of another account",
            ),
            "about": Says("dispute.about", "choice", lambda d, g: d.rng.choice(DISPUTES), "reason", choices=DISPUTES),
        },
        _replace,
        ("replace {card} and dispute {transaction}[; the reason is {about}]",),
        "a new card is on its way",
        tells=(
            Tells("expires_on", "date", "card.expires_on", "expiry date of the new card"),
            Tells("card_id", "id", "card.id", "number of the new card"),
        ),
        writes=("cards", "disputes"),
        pre=_unique_card,
        after={"card": {"status": "blocked"}},
    ),
    Action(
        "open_dispute",
        "Dispute a transaction",
        {
            "transaction": Wants("transaction"),
            "about": Says("dispute.about", "choice", lambda d, g: d.rng.choice(DISPUTES), "reason", choices=DISPUTES),
        },
        _dispute,
        ("dispute {transaction}[, reason: {about}]", "contest {transaction}[; the reason is {about}]"),
        "the dispute is filed",
        tells=(
            Tells("dispute_id", "id", "dispute.id", "number of the dispute"),
            Tells("amount", "money", "transaction.amount", "disputed amount"),
        ),
        writes=("disputes",),
    ),
    Action(
        "withdraw_dispute",
        "Withdraw a dispute that is not decided",
        {"dispute": Wants("dispute", {"status": ("submitted", "investigated")})},
        _withdraw,
        ("withdraw {dispute}", "take back {dispute}"),
        "the dispute is withdrawn",
        tells=(Tells("opened_on", "date", "dispute.opened_on", "date on which it was opened"),),
        writes=("disputes",),
        after={"dispute": {"status": "withdrawn"}},
    ),
    Action(
        "start_standing_order",
        "Start a monthly standing order to a payee",
        {
            "account": Wants("account", ACTIVE),
            "payee": OWN_PAYEE,
            "amount": Says(
                "standing_order.amount",
                "money",
                lambda d, g: d.money(10, 300, step=100),
                "monthly amount",
                low=100,
                high=1_000_000,
            ),
            "first_on": Says("standing_order.next_on", "date", lambda d, g: d.day(3, 40), "date of the first payment"),
        },
        _standing,
        ("set up a monthly standing order of {amount} to {payee} from {account}[, first on {first_on}]",),
        "the standing order runs",
        tells=(Tells("standing_order_id", "id", "standing_order.id", "number of the standing order"),),
        writes=("standing_orders",),
    ),
    Action(
        "stop_standing_order",
        "Stop a running standing order",
        {"standing_order": Wants("standing_order", {"status": ("running",)})},
        _stop,
        ("stop {standing_order}", "end {standing_order}"),
        "the standing order is stopped",
        tells=(
            Tells("amount", "money", "standing_order.amount", "amount of the stopped order"),
            Tells("next_on", "date", "standing_order.next_on", "date on which it would have paid next"),
        ),
        writes=("standing_orders",),
        after={"standing_order": {"status": "stopped"}},
    ),
    Action(
        "repay_loan",
        "Pay a part of a loan off early",
        {
            "account": Wants("account", ACTIVE),
            "loan": Wants("loan", where=lambda row, g: row["outstanding"] >= 30_000, why="the loan is nearly paid off"),
            "amount": AMOUNT,
        },
        _repay,
        ("pay {amount} of {loan} off from {account}",),
        "the loan is reduced",
        tells=(
            Tells("outstanding", "money", "loan.outstanding", "outstanding amount now"),
            Tells("ends_on", "date", "loan.ends_on", "end date of the loan"),
        ),
        writes=("accounts", "loans"),
        pre=lambda db, g: (
            _covers(db, g) or ("" if g["amount"] <= g["loan"]["outstanding"] else "that is more than is owed")
        ),
    ),
    Action(
        "add_payee",
        "Add a payee for a client",
        {
            "client": Wants("client"),
            "name": Says("payee.name", "text", lambda d, g: d.one("payee"), "payee's name"),
            "iban": Says("payee.iban", "text", lambda d, g: f"GB{d.digits(2)}STLM{d.digits(14)}", "account number"),
        },
        _add_payee,
        ("add {name} as a payee[, account number {iban}]",),
        "the payee is added",
        tells=(Tells("payee_id", "id", "payee.id", "number of the payee"),),
        writes=("payees",),
    ),
    Action(
        "reactivate_account",
        "Make a dormant account active again",
        {"account": Wants("account", {"status": ("dormant",)})},
        _reactivate,
        ("reactivate {account}", "wake up {account}"),
        "the account can be used again",
        tells=(
            Tells("balance", "money", "account.balance", "balance of that account"),
            Tells("opened_on", "date", "account.opened_on", "opening date of that account"),
        ),
        writes=("accounts",),
        after={"account": {"status": "active"}},
    ),
    Action(
        "open_account",
        "Open an account for a client",
        {
            "client": Wants("client"),
            "type": Says(
                "account.type", "choice", lambda d, g: d.rng.choice(ACCOUNTS), "type of account", choices=ACCOUNTS
            ),
        },
        _open,
        ("open another account for me[; I want a {type} account]",),
        "the account is opened",
        tells=(Tells("account_id", "id", "account.id", "number of the new account"),),
        writes=("accounts",),
    ),
)


def domain() -> Domain:
    """Return the domain."""
    return Domain(
        name="banking",
        title="A bank",
        role="You serve the clients of a bank.",
        blueprint=BLUEPRINT,
        actions=ACTIONS,
        words=read_words(Path(__file__).parent),
        greetings=(
            "Good morning, this is {name}.",
            "Hello, {name} here.",
            "Hi, I'm {name}.",
            "Good afternoon, my name is {name}.",
        ),
    )
