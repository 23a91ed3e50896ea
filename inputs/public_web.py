"""Where a request may go, and that it goes nowhere else.

A URL comes from a stranger, and a worker stands where strangers do not: beside the metadata
service of its cloud, in a private network. So a host must have public addresses only, each
redirect is judged as if it were the first URL, and the connection goes to the very address that
was judged: a name is looked up once, and a second answer of its DNS server is never asked for.

The operator may allow hosts by name; these may be private and speak plain http. They are allowed
to whoever names them, in a URL or by a redirect: a redirect gives nothing that the URL itself,
written by the same stranger, would not.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import httpx

from inputs.errors import InputRefused, InputUnreachable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Host names or addresses, each with the only port that is meant or None for all.
AllowedHosts = frozenset[tuple[str, int | None]]
#: The addresses of a host, for a port, as text. Raises OSError.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_URL = 4096
MAX_REDIRECTS = 5
#: A name may have dozens of addresses; if so many do not answer, none will.
MAX_ADDRESSES = 4
#: What breaks while a request or its answer is on the way. Their texts may hold the URL.
FAULTS = (httpx.TransportError, ssl.SSLError)

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
#: How a browser, and many a resolver, knows an IPv4 address: by its last part.
_LIKE_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
_PORTS = {"https": 443, "http": 80}
#: Some servers answer nobody who does not say these.
_ABOUT_US = {"User-Agent": "runpod-worker", "Accept": "*/*"}
#: Not public, whatever `is_global` of this Python says. IPv4: protocol assignments (a cloud has
#: its metadata there), 6to4 relays, and a cloud's own service on an address that looks public.
#: IPv6: Teredo and others; documentation; 6to4, where a packet is sent on to the IPv4 inside.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "168.63.129.16/32",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )
)
#: All that is given out of IPv6 so far. What leads into IPv4 otherwise (NAT64, IPv4-compatible
#: addresses) lies outside of it.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")


class Hop(NamedTuple):
    """A URL that may be asked for, if its addresses are right too."""

    #: Without a fragment; what is sent is made from this and from nothing else.
    url: httpx.URL
    #: Lower-case ASCII without a final dot; an IPv6 address without brackets.
    host: str
    port: int
    #: The operator allowed the host by name.
    allowed: bool

    @property
    def name(self) -> str:
        """For messages: host and path, never the query."""
        path = self.url.raw_path.decode("ascii").partition("?")[0]
        return f"{self.host}{path[:200]}"


async def look_up(host: str, port: int) -> list[str]:
    """What the system's resolver says, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Web(NamedTuple):
    """The outside, as far as this worker may reach it, and how long it waits there."""

    allowed: AllowedHosts = frozenset()
    #: To find a host's addresses; then, for each of them, to be connected.
    connect_seconds: float = 10.0
    #: For the first byte of an answer: some servers make the file only when they are asked.
    answer_seconds: float = 300.0
    #: Without a byte of its body.
    read_seconds: float = 30.0
    #: Whom to trust; None: whom everybody trusts.
    tls: ssl.SSLContext | None = None
    resolve: Resolver = look_up
    #: Instead of the network.
    transport: httpx.AsyncBaseTransport | None = None


def parse_allowed_hosts(text: str) -> AllowedHosts:
    """`text` is a list as in `minio.internal:9000, 10.0.0.5, [fd00::5]:9000`.

    Raises:
        ValueError: a part of it is no host; the message names it.
    """
    return frozenset(_allowed_host(part.strip()) for part in text.split(",") if part.strip())


def _allowed_host(text: str) -> tuple[str, int | None]:
    no_host = f"{text!r} is no host: write a name or an address, and a port if need be"
    try:
        url = httpx.URL(f"//{text}")  # no scheme, or its usual port would not be told from none
        host = _host(url)
    except (httpx.InvalidURL, InputRefused):
        raise ValueError(no_host) from None
    if url.raw_path not in (b"", b"/") or url.userinfo:
        raise ValueError(no_host)
    return host, url.port


def check_url(url: str, allowed: AllowedHosts) -> Hop:
    """`url` taken apart, if it may be asked for as far as it can be told without the network.

    Raises:
        InputRefused: the message says why and holds nothing of the URL, which may be a secret.
    """
    if len(url) > MAX_URL:
        raise InputRefused(f"a URL has at most {MAX_URL} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        raise InputRefused("a URL holds no spaces, control characters or backslashes")
    try:
        parsed = httpx.URL(url).copy_with(fragment=None)
    except httpx.InvalidURL:
        raise InputRefused("this is no URL, or its host or port is none") from None
    if parsed.scheme not in _PORTS:
        raise InputRefused("only https URLs are fetched")
    if parsed.userinfo:
        raise InputRefused("a URL holds no user name and no password")
    host = _host(parsed)
    port = _PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if not 0 < port < 65536:
        raise InputRefused("a port is a number from 1 to 65535")
    is_allowed = (host, None) in allowed or (host, port) in allowed
    hop = Hop(parsed.copy_with(host=host), host, port, is_allowed)
    if parsed.scheme != "https" and not hop.allowed:
        raise InputRefused(f"{hop.name}: only https URLs are fetched")
    return hop


def _host(url: httpx.URL) -> str:
    """As `Hop` has it. Raises InputRefused."""
    host = url.raw_host.decode("ascii").removesuffix(".")
    if address := _literal(host):
        return str(address)
    if not _NAME.fullmatch(host) or _LIKE_A_NUMBER.fullmatch(host):
        raise InputRefused("the URL has no host, or one that is no name and no plain address")
    return host


def _literal(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if "%" in host else address  # a zone is for addresses of this very link


def is_public(address: Address) -> bool:
    """Whether anybody may be sent there: it leads to the internet, and to nothing else."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in _GIVEN_OUT:
            return False
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def find_addresses(hop: Hop, web: Web) -> list[Address]:
    """Where to connect for `hop`: one address at least. Looks its host up once.

    Raises:
        InputRefused: one of the addresses is not public, and the host is not allowed by name.
        InputUnreachable: the host has no address, or it was not learned in time.
    """
    if literal := _literal(hop.host):
        addresses: list[Address] = [literal]
    else:
        addresses = await _resolve(hop, web)
    if not hop.allowed and not all(map(is_public, addresses)):
        # Not which one: that would draw a map of the private network for whoever asks.
        raise InputRefused(
            f"{hop.host} is not on the public internet; WORKER_ALLOWED_HOSTS can allow it"
        )
    return addresses[:MAX_ADDRESSES]


async def _resolve(hop: Hop, web: Web) -> list[Address]:
    try:
        async with asyncio.timeout(web.connect_seconds):
            found = await web.resolve(hop.host, hop.port)
    except OSError:  # no such name, no DNS server; TimeoutError is one, too
        found = []
    if not found:
        raise InputUnreachable(f"the address of {hop.host} could not be found")
    return list(dict.fromkeys(ipaddress.ip_address(address) for address in found))


@asynccontextmanager
async def visit(
    url: str, web: Web, headers: Mapping[str, str]
) -> AsyncIterator[tuple[Hop, httpx.Response]]:
    """GET `url`, through redirects: where it was in the end, and the answer, its body unread.

    `headers` go to every hop, so they must be nobody's secret. Reading the body raises `FAULTS`.

    Raises:
        InputRefused: a hop leads where no request may go, or its certificate is not to be trusted.
        InputUnreachable: a hop did not answer.
    """
    for _ in range(MAX_REDIRECTS + 1):
        hop = check_url(url, web.allowed)
        addresses = await find_addresses(hop, web)
        async with _send(hop, addresses, web, headers) as response:
            if not response.has_redirect_location:
                yield hop, response
                return
            url = _redirect(hop, response.headers["location"])
    raise InputRefused(f"{hop.name} is the end of more than {MAX_REDIRECTS} redirects")


def _redirect(hop: Hop, location: str) -> str:
    """The URL that `location` means, which nobody has judged yet."""
    if not location.isprintable() or "\\" in location or len(location) > MAX_URL:
        raise InputRefused(f"{hop.name} redirects to what is no URL")
    try:
        return str(hop.url.join(location))
    except (httpx.InvalidURL, ValueError):
        raise InputRefused(f"{hop.name} redirects to what is no URL") from None


@functools.cache
def _usual_tls() -> ssl.SSLContext:
    """Made once: reading all the certificates takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


@asynccontextmanager
async def _send(
    hop: Hop, addresses: Sequence[Address], web: Web, headers: Mapping[str, str]
) -> AsyncIterator[httpx.Response]:
    """The answer of the first address that can be connected to.

    By a bare transport: what a client of httpx adds (cookies, a look at where a redirect leads,
    proxies, the URL in the log) must not happen here. One for each hop: it knows its connections
    again by their address, and would send on them what is for another name at that address.
    """
    async with web.transport or httpx.AsyncHTTPTransport(
        verify=web.tls or _usual_tls(), trust_env=False
    ) as transport:
        timeout = httpx.Timeout(web.answer_seconds, connect=web.connect_seconds)
        requests = [_pinned(hop, address, headers, timeout) for address in addresses]
        response = await _first_answer(transport, hop, requests)
        try:
            yield response
        finally:
            await response.aclose()


async def _first_answer(
    transport: httpx.AsyncBaseTransport, hop: Hop, requests: Sequence[httpx.Request]
) -> httpx.Response:
    """Raises InputRefused (the certificate), InputUnreachable."""
    failure: Exception | None = None
    for request in requests:
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = error
            _check_trust(error, hop)
        except FAULTS as error:
            failure = error
            break
    raise InputUnreachable(f"{hop.name} did not answer ({type(failure).__name__})")


def _pinned(
    hop: Hop, address: Address, headers: Mapping[str, str], timeout: httpx.Timeout
) -> httpx.Request:
    """A request that goes to `address` and is the host's for all else: virtual host, certificate.

    For a host that is an address, its certificate must name that address.
    """
    return httpx.Request(
        "GET",
        hop.url.copy_with(host=str(address)),
        headers={**_ABOUT_US, **headers, "Host": hop.url.netloc.decode("ascii")},
        extensions={"sni_hostname": hop.host, "timeout": timeout.as_dict()},
    )


def _check_trust(error: BaseException, hop: Hop) -> None:
    """Raises InputRefused if that was about a certificate: it will not be better next time."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise InputRefused(
                f"the certificate of {hop.host} is not to be trusted: {cause.verify_message}"
            ) from None
        cause = cause.__cause__ or cause.__context__
