"""The guard: where a request may go, and that it goes nowhere else."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import httpx
import pytest

from inputs.errors import InputRefused, InputUnreachable
from inputs.public_web import Web, check_url, is_public, parse_allowed_hosts, visit

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLIC = "93.184.216.34"
PUBLIC_TOO = "2606:4700:4700::1111"
METADATA = "169.254.169.254"

NOT_PUBLIC = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0.0.0.0",  # noqa: S104 - nobody listens there
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd00::",
    "fd00:ec2::254",
    "ff02::1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "100::1",
    "5f00::1",
    "4000::1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_does_not_lead_to_the_internet_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", PUBLIC, PUBLIC_TOO, "2a00:1450:4001::1", "::ffff:8.8.8.8"]
)
def test_what_leads_to_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


# ---- what a URL says by itself

NO_URL = [
    "",
    "//public.test/x",
    "public.test",
    "https://",
    "https:///x",
    "https:public.test/x",
    "ftp://public.test/x",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "data:text/plain,x",
    "gopher://public.test/",
    "http://public.test/x",
    "https://name@public.test/",
    "https://name:word@public.test/",
    "https://public.test@127.0.0.1/",
    "https://a@b@public.test/",
    "https://public.test\\@127.0.0.1/",
    "https:\\\\public.test/",
    "https://public.test/a\\b",
    "https://pub\tlic.test/",
    "https://public.test/\n",
    " https://public.test/",
    "https://public.test/a b",
    "https://public.test/\x00",
    "https://public.test/\u2028",
    "https://public.test/\ud800",
    "https://2130706433/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://127.1/",
    "https://127.0.0.1.5/",
    "https://256.1.1.1/",
    "https://①②⑦.0.0.1/",
    "https://127%2e0.0.1/",
    "https://[fe80::1%25eth0]/",
    "https://[::1/",
    "https://[public.test]/",
    "https://a..b/",
    "https://.public.test/",
    "https://...",
    "https://public.test:0/",
    "https://public.test:65536/",
    "https://public.test:x/",
    f"https://{'a' * 64}.test/",
    f"https://{'a.' * 130}test/",
    f"https://public.test/{'x' * 4096}",
]


@pytest.mark.parametrize("url", NO_URL, ids=ascii)
def test_a_url_that_is_refused_without_asking_anybody(url: str) -> None:
    with pytest.raises(InputRefused):
        check_url(url, parse_allowed_hosts(""))


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://public.test/x", "public.test", 443),
        ("HTTPS://PUBLIC.test.:8443/x#fragment", "public.test", 8443),
        ("https://bücher.test/x", "xn--bcher-kva.test", 443),
        ("https://[2606:4700:4700:0::1111]/x", PUBLIC_TOO, 443),
        ("https://127。0。0。1/x", "127.0.0.1", 443),  # judged as what it will be sent to
    ],
)
def test_a_host_has_one_spelling(url: str, host: str, port: int) -> None:
    hop = check_url(url, parse_allowed_hosts(""))
    assert (hop.host, hop.port) == (host, port)
    assert hop.url.host in (host, "bücher.test")


def test_a_hop_is_named_without_its_query() -> None:
    hop = check_url("https://public.test/a/file?X-Signature=secret#more", parse_allowed_hosts(""))
    assert hop.name == "public.test/a/file"


# ---- hosts that the operator allows


def test_a_list_of_allowed_hosts() -> None:
    allowed = parse_allowed_hosts("Minio.internal:9000, 10.0.0.5,[FD00::5]:443 ,[fd00::6],")
    assert allowed == {
        ("minio.internal", 9000),
        ("10.0.0.5", None),
        ("fd00::5", 443),
        ("fd00::6", None),
    }


@pytest.mark.parametrize(
    "text", ["http://minio", "a/b", "a:b", "u@a", "127.1", "*.internal", "a b"]
)
def test_what_is_no_host_is_named_to_the_operator(text: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        parse_allowed_hosts(f"good.test, {text}")


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://minio.internal:9000/x", True),
        ("https://MINIO.internal.:9000/x", True),
        ("http://minio.internal/x", False),
        ("http://minio.internal:9001/x", False),
        ("http://10.0.0.5:1234/x", True),
        ("http://not-minio.internal:9000/x", False),
        ("http://minio.internal.evil.test:9000/x", False),
    ],
)
def test_plain_http_is_for_allowed_hosts_and_their_ports(url: str, good: bool) -> None:
    allowed = parse_allowed_hosts("minio.internal:9000, 10.0.0.5")
    if good:
        assert check_url(url, allowed).allowed
    else:
        with pytest.raises(InputRefused, match="https"):
            check_url(url, allowed)


# ---- the outside, where it cannot be real


class Outside:
    """Names and servers of an internet that is not there."""

    def __init__(self, **addresses: list[str]) -> None:
        #: What DNS answers for a name with its dots left out; each list is one answer.
        self.addresses = addresses
        self.looked_up: list[str] = []
        self.requests: list[httpx.Request] = []
        self.answer: Callable[[httpx.Request], httpx.Response] = lambda _: httpx.Response(200)

    async def resolve(self, host: str, _port: int) -> list[str]:
        self.looked_up.append(host)
        return self.addresses[host.replace(".", "_")]

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)

    async def visit(self, url: str, allowed: str = "") -> int:
        web = Web(
            allowed=parse_allowed_hosts(allowed),
            resolve=self.resolve,
            transport=httpx.MockTransport(self._handle),
        )
        async with visit(url, web, {"Accept-Encoding": "identity"}) as (_, response):
            return response.status_code


def redirects(*locations: str) -> Callable[[httpx.Request], httpx.Response]:
    waiting = list(locations)
    return lambda _: (
        httpx.Response(302, headers={"Location": waiting.pop(0)})
        if waiting
        else httpx.Response(200)
    )


async def test_a_request_goes_to_the_address_and_is_the_names_for_all_else() -> None:
    outside = Outside(public_test=[PUBLIC])
    assert await outside.visit("https://public.test:8443/a%2Fb?x=1%2B1#no") == 200
    (request,) = outside.requests
    assert str(request.url) == f"https://{PUBLIC}:8443/a%2Fb?x=1%2B1"
    assert request.headers["host"] == "public.test:8443"
    assert request.extensions["sni_hostname"] == "public.test"


@pytest.mark.parametrize("address", [METADATA, "127.0.0.1", "::1", "fd00::1", "::ffff:a9fe:a9fe"])
async def test_every_address_of_a_name_must_be_public(address: str) -> None:
    for answer in ([address], [PUBLIC, address], [address, PUBLIC], [PUBLIC_TOO, PUBLIC, address]):
        outside = Outside(public_test=answer)
        with pytest.raises(InputRefused, match="not on the public internet") as caught:
            await outside.visit("https://public.test/")
        assert outside.requests == []
        assert address not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost.",
        "LOCALHOST",
        "127.0.0.1",
        "127.0.0.1.",
        "127。0。0。1",
        "0.0.0.0",  # noqa: S104 - nobody listens there
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        METADATA,
        "100.64.0.1",
        "[fd00::]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
async def test_this_machine_and_its_neighbours_by_whatever_spelling(host: str) -> None:
    with pytest.raises(InputRefused, match="not on the public internet"):
        async with visit(f"https://{host}/latest/meta-data", Web(), {}):
            pass


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1#@public.test/", "https://127.0.0.1?@public.test/"]
)
async def test_what_looks_like_another_host_further_on(url: str) -> None:
    outside = Outside(public_test=[PUBLIC])
    with pytest.raises(InputRefused):
        await outside.visit(url)
    assert outside.looked_up == outside.requests == []


async def test_a_name_is_looked_up_once_so_that_its_answer_cannot_change() -> None:
    outside = Outside(public_test=[PUBLIC])

    def answer(request: httpx.Request) -> httpx.Response:
        outside.addresses["public_test"] = ["127.0.0.1"]
        return httpx.Response(200)

    outside.answer = answer
    await outside.visit("https://public.test/")
    assert [request.url.host for request in outside.requests] == [PUBLIC]
    assert outside.looked_up == ["public.test"]


async def test_a_name_is_judged_anew_when_a_redirect_comes_back_to_it() -> None:
    outside = Outside(public_test=[PUBLIC])

    def answer(request: httpx.Request) -> httpx.Response:
        outside.addresses["public_test"] = ["127.0.0.1"]
        return httpx.Response(302, headers={"Location": "/again"})

    outside.answer = answer
    with pytest.raises(InputRefused):
        await outside.visit("https://public.test/")
    assert [request.url.host for request in outside.requests] == [PUBLIC]
    assert outside.looked_up == ["public.test", "public.test"]


@pytest.mark.parametrize("answer", [[], ["no-dns"]])
async def test_a_name_without_an_address_may_have_one_later(answer: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        if answer:
            raise OSError(-3, "Temporary failure in name resolution")
        return []

    with pytest.raises(InputUnreachable, match=r"public\.test"):
        async with visit("https://public.test/", Web(resolve=resolve), {}):
            pass


async def test_the_next_address_is_tried_if_one_cannot_be_connected_to() -> None:
    outside = Outside(public_test=[PUBLIC_TOO, PUBLIC])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == PUBLIC_TOO:
            raise httpx.ConnectError(f"no route to {request.url}")
        return httpx.Response(200)

    outside.answer = answer
    assert await outside.visit("https://public.test/") == 200
    assert len(outside.requests) == 2
    assert outside.looked_up == ["public.test"]


async def test_an_error_of_the_network_holds_no_query() -> None:
    outside = Outside(public_test=[PUBLIC])

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout(f"no answer from {request.url}")

    outside.answer = answer
    with pytest.raises(InputUnreachable) as caught:
        await outside.visit("https://public.test/file?key=secret")
    assert str(caught.value) == "public.test/file did not answer (ReadTimeout)"
    assert caught.value.__cause__ is caught.value.__context__ is None


# ---- redirects


async def test_redirects_are_followed_and_each_hop_is_looked_up_once() -> None:
    outside = Outside(public_test=[PUBLIC], cdn_test=[PUBLIC_TOO])
    outside.answer = redirects("/b", "//cdn.test/c", "d?e")
    assert await outside.visit("https://public.test/a") == 200
    assert [f"{r.headers['host']}{r.url.path}" for r in outside.requests] == [
        "public.test/a",
        "public.test/b",
        "cdn.test/c",
        "cdn.test/d",
    ]
    assert outside.looked_up == ["public.test", "public.test", "cdn.test", "cdn.test"]


@pytest.mark.parametrize(
    "location",
    [
        f"http://{METADATA}/latest/meta-data",
        f"https://{METADATA}/latest/meta-data",
        "//127.0.0.1/",
        "http://public.test/",
        "file:///etc/passwd",
        "ftp://public.test/x",
        "https://name:word@public.test/",
        "https://private.test/",
        "https://public.test\\@private.test/",
        "https://[::1",
        "https://127.1/",
        "data:text/plain,x",
        "x" * 5000,
    ],
)
async def test_a_redirect_leads_nowhere_that_the_url_itself_may_not(location: str) -> None:
    outside = Outside(public_test=[PUBLIC], private_test=["10.0.0.1"])
    outside.answer = redirects(location)
    with pytest.raises(InputRefused):
        await outside.visit("https://public.test/")
    assert len(outside.requests) == 1


async def test_a_redirect_to_an_allowed_host_gives_no_more_than_its_url_would() -> None:
    outside = Outside(public_test=[PUBLIC], minio_internal=["10.0.0.1"])
    outside.answer = redirects("http://minio.internal:9000/x")
    assert await outside.visit("https://public.test/", allowed="minio.internal:9000") == 200
    assert str(outside.requests[-1].url) == "http://10.0.0.1:9000/x"


@pytest.mark.parametrize("count", [5, 6])
async def test_five_redirects_and_no_more(count: int) -> None:
    outside = Outside(public_test=[PUBLIC])
    outside.answer = redirects(*(f"/{n}" for n in range(count)))
    if count == 5:
        assert await outside.visit("https://public.test/") == 200
    else:
        with pytest.raises(InputRefused, match="more than 5 redirects"):
            await outside.visit("https://public.test/")
    assert len(outside.requests) == 6


async def test_a_redirect_loop_ends() -> None:
    outside = Outside(public_test=[PUBLIC])
    outside.answer = lambda _: httpx.Response(301, headers={"Location": "https://public.test/"})
    with pytest.raises(InputRefused, match="redirects"):
        await outside.visit("https://public.test/")


async def test_cookies_are_not_carried_from_hop_to_hop() -> None:
    outside = Outside(public_test=[PUBLIC], neighbour_test=[PUBLIC])
    outside.answer = lambda request: (
        httpx.Response(302, headers={"Location": "https://neighbour.test/", "Set-Cookie": "a=b"})
        if request.headers["host"] == "public.test"
        else httpx.Response(200)
    )
    await outside.visit("https://public.test/")
    assert "cookie" not in outside.requests[-1].headers
