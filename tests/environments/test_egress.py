"""RELIABILITY 14: the attack table of the one way out, against servers on the loopback interface."""

import gzip
import http.server
import ipaddress
import threading
import time

import pytest

from stackloom.core.errors import ConfigError
from stackloom.environments.egress import EgressRefused, Rules, disguises, fetch

PUBLIC = "93.184.216.34"


class Pages(http.server.BaseHTTPRequestHandler):
    """What the servers answer, by path."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        name, _, rest = self.path.lstrip("/").partition("?")
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif name == "long":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(10_000))
        elif name == "promised":
            self.send_response(200)
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        elif name == "bomb":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(bytes(50_000_000)))
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(b"hello")

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as made:
        made.asked, made.handle_error = [], lambda *a: None
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def allowed(server):
    """Rules under which the server can be reached, by its name alone."""
    return Rules(hosts=("test.example",), networks=("127.0.0.1",), ports=(server.server_port,), seconds=3)


def local(server, path=""):
    return f"http://test.example:{server.server_port}/{path}"


def loopback(host, port):
    return ["127.0.0.1"]


def test_an_allowed_page_is_read(server, allowed):
    page = fetch(local(server, "a?b=c#d"), allowed, resolve=loopback)
    assert (page.status, page.body, page.headers["content-type"]) == (200, b"hello", "text/plain")
    assert server.asked[-1] == ("/a?b=c", f"test.example:{server.server_port}")


@pytest.mark.parametrize("host", ["test.example", "other.example", "127.0.0.1"])
def test_nothing_is_allowed_by_default(server, host):
    before = len(server.asked)
    with pytest.raises(EgressRefused, match="not among the hosts"):
        fetch(f"http://{host}:{server.server_port}/", Rules(), resolve=loopback)
    assert len(server.asked) == before


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0", "0.0.0.0",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]", "169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "[ff02::1]",
    ],
)  # fmt: skip
def test_no_spelling_of_a_private_address_gets_through(server, host):
    rules = Rules(hosts=("*",), ports=(server.server_port,), seconds=2)
    before = len(server.asked)
    with pytest.raises(EgressRefused, match=r"not public|no address"):
        fetch(f"http://{host}:{server.server_port}/", rules)
    assert len(server.asked) == before


@pytest.mark.parametrize("answer", [[PUBLIC, "127.0.0.1"], ["10.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%eth0"], []])
def test_one_private_address_in_the_answer_is_enough_to_refuse(answer):
    with pytest.raises(EgressRefused):
        fetch("http://test.example/", Rules(hosts=("*",)), resolve=lambda host, port: answer)


def test_a_name_is_resolved_once_and_that_address_is_dialled(server, allowed):
    answers = [["127.0.0.1"], ["10.9.9.9"], ["10.9.9.9"]]  # a second question would be answered otherwise
    assert fetch(local(server), allowed, resolve=lambda host, port: answers.pop(0)).body == b"hello"
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("http://169.254.169.254/latest", "not among the hosts"),
        ("http://other.example/", "not among the hosts"),
        ("file:///etc/passwd", "only http"),
        ("ftp://test.example/", "only http"),
        ("http://test.example:22/", "port 22"),
        ("//other.example/", "not among the hosts"),
    ],
)
def test_every_redirect_is_checked(server, allowed, target, why):
    with pytest.raises(EgressRefused, match=why):
        fetch(local(server, f"redirect?{target}"), allowed, resolve=loopback)


def test_a_redirect_is_resolved_anew(server, allowed):
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    with pytest.raises(EgressRefused, match=r"leads to 10\.0\.0\.1"):
        fetch(local(server, "redirect?/a"), allowed, resolve=lambda host, port: answers.pop(0))


def test_redirects_are_followed_and_end(server, allowed):
    assert fetch(local(server, "redirect?/a"), allowed, resolve=loopback).url == local(server, "a")
    with pytest.raises(EgressRefused, match="more than 5 redirects"):
        fetch(
            local(server, "redirect?redirect?redirect?redirect?redirect?redirect?redirect?a"), allowed, resolve=loopback
        )


@pytest.mark.parametrize(
    ("path", "why"), [("long", "longer than"), ("promised", "bytes long"), ("bomb", "answered in gzip")]
)
def test_what_is_too_large_or_packed_is_refused(server, allowed, path, why):
    rules = Rules(allowed.hosts, allowed.networks, allowed.ports, bytes=100_000)
    with pytest.raises(EgressRefused, match=why):
        fetch(local(server, path), rules, resolve=loopback)


def test_what_drips_is_cut_at_the_deadline(server, allowed):
    rules = Rules(allowed.hosts, allowed.networks, allowed.ports, seconds=0.5)
    begun = time.monotonic()
    with pytest.raises(EgressRefused, match=r"time is up|longer than"):
        fetch(local(server, "slow"), rules, resolve=loopback)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "url",
    [
        "http://test.example@other.example/", "http://user:pw@test.example/", "http:///x", "http://test.example\\@x/",
        "http://test.example/\r\nX: y", "http://test.example:99999/", "http://[::1", "", "javascript:alert(1)",
        "test.example", "http://test.example:0/",
    ],
)  # fmt: skip
def test_a_bad_url_is_refused(url):
    with pytest.raises(EgressRefused):
        fetch(url, Rules(hosts=("test.example",)), resolve=lambda host, port: [PUBLIC])


def test_no_proxy_of_the_host_is_used(server, allowed, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(local(server), allowed, resolve=loopback).body == b"hello"


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("example.org", "example.org", True),
        ("example.org", "a.example.org", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "evilexample.org", False),
        ("*", "anything", True),
    ],
)
def test_patterns_of_hosts(pattern, host, fits):
    assert Rules(hosts=(pattern,)).names(host) is fits


def test_an_address_is_seen_through_its_disguises():
    inner = ipaddress.ip_address("10.0.0.1")
    for text in ("::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1"):
        assert inner in disguises(ipaddress.ip_address(text))


def test_a_network_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="no address or network"):
        Rules(networks=("nowhere",))
