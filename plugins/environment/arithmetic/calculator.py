"""Exact arithmetic on text: the calculator tool, and numbers as people write them. Nothing is evaluated as code."""

from __future__ import annotations

import ast
import operator
import re
from collections import deque
from decimal import Decimal, localcontext
from fractions import Fraction

from stackloom.core.chat import Tool
from stackloom.core.slots.environment import ToolError

MAX_CHARS = 200
LARGEST = Fraction(10) ** 15
SMALLEST = 1 / Fraction(10) ** 12
EXACT_PLACES = 12
SIGNIFICANT = 10
MAX_NUMBER_CHARS = 60

CALCULATOR = Tool(
    "calculator",
    "exact + - * / with parentheses",
    {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "for instance (12 + 3) * 4"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
)
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

# A number that is no part of a word or of a longer number: thousands grouped by commas or narrow spaces, decimals.
_PLAIN = r"(?:[0-9]{1,3}(?:[,\u00a0\u2009\u202f][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-\u2212+]?)[$\u20ac\u00a3]?(?P<number>{_PLAIN})(?: ?/ ?(?P<below>{_PLAIN}))?"
)


def calculate(expression: str) -> Fraction:
    """Return the exact value of an expression of numbers, + - * / and parentheses.

    Args:
        expression: at most 200 characters.

    Raises:
        ToolError: anything else, a division by zero, or a value beyond 10^15 (or nearer to zero than 10^-12).

    Example:
        >>> calculate("0.1 + 0.2")
        Fraction(3, 10)
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression has more than {MAX_CHARS} characters")
    text = expression.strip()
    if unknown := sorted(set(re.findall(r"[^0-9.+\-*/() ]", text))):
        raise ToolError(f"only numbers, + - * / and parentheses; found {' '.join(map(ascii, unknown[:5]))}")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError("the expression is not complete, for instance (12 + 3) * 4") from None
    value = _value(tree, text)
    if value and abs(value) < SMALLEST:
        raise ToolError("the result is nearer to zero than 10^-12")
    return value


def _value(node: ast.expr, text: str) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            # The literal's own characters: Python has already rounded a decimal to binary.
            found = Fraction(text[node.col_offset : node.end_col_offset])
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            found = -_value(inner, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            found = _value(inner, text)
        case ast.BinOp(op=sign, left=left, right=right) if type(sign) in _OPERATORS:
            one, two = _value(left, text), _value(right, text)
            if isinstance(sign, ast.Div) and not two:
                raise ToolError("division by zero")
            found = _OPERATORS[type(sign)](one, two)
        case _:
            raise ToolError("only numbers, + - * / and parentheses")
    if abs(found) > LARGEST:
        raise ToolError("a number is larger than 10^15")
    return found


def show(value: Fraction) -> str:
    """Write a value for the agent: exact up to 12 decimals, otherwise "about" and 10 significant digits.

    Example:
        >>> show(Fraction(1, 4)), show(Fraction(1, 3))
        ('0.25', 'about 0.3333333333')
    """
    return exact(value) or f"about {_decimal(value, SIGNIFICANT)}"


def exact(value: Fraction) -> str:
    """Write a value that ends within 12 decimals; empty for any other."""
    scaled = value * 10**EXACT_PLACES
    return _decimal(value, len(str(scaled.numerator)) + 1) if scaled.denominator == 1 else ""


def _decimal(value: Fraction, digits: int) -> str:
    with localcontext() as context:
        context.prec = digits
        text = f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def last_number(text: str) -> Fraction | None:
    """Return the last number that a text states; None where it has none or one of absurd length.

    Signs, currency signs, thousands separators, decimals and simple fractions are read; digits inside words are not.

    Example:
        >>> last_number("5 apples at $1,250.50 each.")
        Fraction(2501, 2)
    """
    found = next(iter(deque(_NUMBER.finditer(text), maxlen=1)), None)
    if found is None or len(found[0]) > MAX_NUMBER_CHARS:
        return None
    value = _read(found["number"])
    if found["below"]:
        below = _read(found["below"])
        if not below:
            return None
        value /= below
    return -value if found["sign"] in ("-", "\u2212") else value


def _read(number: str) -> Fraction:
    return Fraction(re.sub(r"[,\u00a0\u2009\u202f]", "", number))
