"""A stack inside a link: the fragment of a URL, which browsers keep to themselves and no server sees."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlsplit

from stackloom.core.errors import ConfigError

KEY = "stack="
MAX_CHARACTERS = 256 * 1024


def is_link(text: str) -> bool:
    """Whether `text` is a link and no file name."""
    return text.startswith(("http://", "https://", "file://"))


def encode(stack: str) -> str:
    """Return the fragment that holds a stack's YAML.

    Example:
        >>> encode("name: a")
        'stack=bmFtZTogYQ'
    """
    return KEY + base64.urlsafe_b64encode(stack.encode()).decode().rstrip("=")


def decode(link: str) -> str:
    """Return the YAML that a link's fragment holds; nothing is fetched.

    Raises:
        ConfigError: there is no stack in it, or it is damaged.

    Example:
        >>> decode("https://example.org/composer.html#stack=bmFtZTogYQ")
        'name: a'
    """
    fragment = urlsplit(link).fragment
    if not fragment.startswith(KEY):
        raise ConfigError("the link holds no stack", where=link[:120], fix="copy the whole link, #stack=... included")
    code = fragment.removeprefix(KEY)
    if len(code) > MAX_CHARACTERS:
        raise ConfigError(f"the link's stack is longer than {MAX_CHARACTERS} characters", fix="save it as a file")
    try:
        return base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as cause:
        raise ConfigError(f"the link's stack is damaged: {cause}", where=link[:120], fix="copy it again") from cause
