"""The one way out: how a tool of an environment reads from the network.

Nothing is allowed that is not named. A name is resolved once, every address of the answer is checked, and one of these
is dialled, so that a second answer cannot lead elsewhere; each redirect begins anew. Bytes and time are capped.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

from stackloom.core.errors import ConfigError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
CARRIERS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))  # IPv4 in the last 32 bits


class EgressRefused(Exception):
    """A request that is not allowed, or an answer that is too large, too slow or packed; the message says which."""


@dataclass(frozen=True)
class Rules:
    """Where tools may go.

    Attributes:
        hosts: names that may be asked: "example.org", "*.example.org" for what lies below, "*" for every public one.
        networks: addresses that may be dialled although they are not public, such as "127.0.0.1" or "10.1.0.0/16".
        ports: besides 80 for http and 443 for https.
        bytes: of an answer's body.
        seconds: for the whole request, redirects included.
        redirects: to follow.

    Raises:
        ConfigError: a network that is none.
    """

    hosts: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    bytes: int = 4 << 20
    seconds: float = 10.0
    redirects: int = 5

    def __post_init__(self) -> None:
        """Read the networks once."""
        for text in self.networks:
            try:
                ipaddress.ip_network(text)
            except ValueError as cause:
                raise ConfigError(f"{text!r} is no address or network: {cause}", where="rules.networks") from None

    def names(self, host: str) -> bool:
        """Whether a host may be asked."""
        return any(
            pattern == "*" or host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self.hosts
        )

    def reaches(self, address: Address) -> bool:
        """Whether an address may be dialled: it is public, in every disguise, or listed."""
        if any(address in ipaddress.ip_network(text) for text in self.networks):
            return True
        return all(each.is_global and not each.is_multicast and not each.is_reserved for each in disguises(address))


@dataclass(frozen=True)
class Page:
    """An answer: the address that gave it after redirects, status, headers in lower case, and the body."""

    url: str
    status: int
    headers: dict[str, str]
    body: bytes


def fetch(url: str, rules: Rules, *, resolve: Resolve | None = None) -> Page:
    """Get one page.

    Args:
        url: http or https.
        rules: where it may lead; nowhere by default.
        resolve: from a host and a port to its addresses; the system's if absent.

    Raises:
        EgressRefused: the url, an address that its host has, a redirect or the answer breaks the rules, or nothing
            answered.
    """
    import httpx

    deadline, ask = time.monotonic() + rules.seconds, resolve or _resolve
    for _ in range(rules.redirects + 1):
        parts = _checked(url, rules)
        host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
        address = _address(host, port, rules, ask)
        literal = f"[{address}]" if address.version == 6 else str(address)
        target = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
        named = host if port == PORTS[parts.scheme] else f"{host}:{port}"
        try:
            # No proxy, no cookies and no credentials of the host; certificates are checked for the name.
            with (
                httpx.Client(trust_env=False, follow_redirects=False, timeout=_left(deadline)) as client,
                client.stream(
                    "GET",
                    target,
                    headers={"Host": named, "Accept-Encoding": "identity", "User-Agent": "stackloom"},
                    extensions={"sni_hostname": host},
                ) as answer,
            ):
                if answer.status_code in REDIRECTS and "location" in answer.headers:
                    url = urljoin(url, answer.headers["location"])
                    continue
                headers = {name.lower(): value for name, value in answer.headers.items()}
                if headers.get("content-encoding", "identity") != "identity":
                    raise EgressRefused(f"{url} answered in {headers['content-encoding']}, which was not asked for")
                return Page(url, answer.status_code, headers, _body(answer, url, rules, deadline))
        except httpx.TimeoutException:
            raise EgressRefused(f"{url} took longer than {rules.seconds:g} s") from None
        except httpx.HTTPError as cause:
            raise EgressRefused(f"{url}: {cause}") from None
    raise EgressRefused(f"more than {rules.redirects} redirects")


def _checked(url: str, rules: Rules) -> SplitResult:
    """The url's parts, if their form and the host's name are allowed."""
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise EgressRefused("a url holds no spaces, backslashes or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as cause:
        raise EgressRefused(f"{url}: {cause}") from None
    if parts.scheme not in PORTS:
        raise EgressRefused(f"{url}: only http and https are spoken")
    if not parts.hostname or "@" in parts.netloc:
        raise EgressRefused(f"{url}: a url names a host, and no user")
    if not rules.names(parts.hostname.rstrip(".")):
        raise EgressRefused(f"{parts.hostname} is not among the hosts that this environment may ask")
    if port not in (None, PORTS[parts.scheme], *rules.ports):
        raise EgressRefused(f"{url}: port {port} is not allowed")
    return parts


def _address(host: str, port: int, rules: Rules, resolve: Resolve) -> Address:
    """One of the host's addresses, if all of them are allowed."""
    try:
        found = [ipaddress.ip_address(text.partition("%")[0]) for text in resolve(host, port)]
    except (OSError, ValueError) as cause:
        raise EgressRefused(f"{host} has no address: {cause}") from None
    if not found:
        raise EgressRefused(f"{host} has no address")
    for address in found:
        if not rules.reaches(address):
            raise EgressRefused(f"{host} leads to {address}, which is not public")
    return found[0]


def disguises(address: Address) -> tuple[Address, ...]:
    """The address, and the IPv4 ones that it carries: mapped, 6to4, Teredo, NAT64."""
    found: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            found = [address.ipv4_mapped]
        if address.sixtofour:
            found.append(address.sixtofour)
        if address.teredo:
            found += address.teredo
        if any(address in network for network in CARRIERS):
            found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return tuple(found)


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise EgressRefused("the time is up")
    return left


def _body(answer: Any, url: str, rules: Rules, deadline: float) -> bytes:
    """The body, unless it is too long; a length that the header promises is believed if it is too large."""
    promised = answer.headers.get("content-length", "")
    if promised.isdigit() and int(promised) > rules.bytes:
        raise EgressRefused(f"{url} is {promised} bytes long, {rules.bytes} are allowed")
    body = bytearray()
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > rules.bytes:
            raise EgressRefused(f"{url} is longer than the {rules.bytes} bytes that are allowed")
        _left(deadline)
    return bytes(body)
