"""The guard in front of real servers: names are pinned, and certificates are for names."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from inputs.errors import InputRefused, InputUnreachable
from inputs.public_web import Web, parse_allowed_hosts, visit
from tests.web_server import Reply, WebServer, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def local(host: str, port: int) -> list[str]:
    """Every name is here."""
    return ["127.0.0.1"]


async def test_an_allowed_name_is_pinned_too() -> None:
    with WebServer(in_turn(Reply(302, headers={"Location": "/b"}), Reply(body=b"b"))) as server:
        web = Web(parse_allowed_hosts("minio.internal"), resolve=local)
        url = f"http://minio.internal:{server.port}/a"
        async with visit(url, web, {}) as (hop, response):
            assert await response.aread() == b"b"
        assert hop.name == "minio.internal/b"
        assert [asked.headers["host"] for asked in server.asked] == [url[7:-2]] * 2


async def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with WebServer() as server:
        async with visit(server.url, Web(parse_allowed_hosts("127.0.0.1")), {}) as (_, response):
            assert response.status_code == 200


async def test_a_port_where_nobody_listens() -> None:
    with WebServer() as server:
        pass
    with pytest.raises(InputUnreachable, match="did not answer"):
        async with visit(server.url, Web(parse_allowed_hosts("127.0.0.1")), {}):
            pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate and its key, in one file: for `files.test` and for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("files.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(pem)
    )
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[WebServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with WebServer(tls=context) as server:
        yield server


async def say_hello(server: WebServer, host: str, trusted: Path | None) -> int:
    tls = ssl.create_default_context(cafile=trusted) if trusted else None
    web = Web(parse_allowed_hosts(host), tls=tls, resolve=local)
    async with visit(f"https://{host}:{server.port}/", web, {}) as (_, response):
        return response.status_code


@pytest.mark.parametrize("host", ["files.test", "127.0.0.1"])
async def test_a_certificate_is_checked_by_the_hosts_name(
    secure: WebServer, certificate: Path, host: str
) -> None:
    assert await say_hello(secure, host, certificate) == 200
    assert secure.asked[0].headers["host"] == f"{host}:{secure.port}"


async def test_a_certificate_for_the_address_is_none_for_the_name(
    secure: WebServer, certificate: Path
) -> None:
    with pytest.raises(InputRefused, match=r"certificate of other\.test.*[Hh]ostname mismatch"):
        await say_hello(secure, "other.test", certificate)
    assert secure.asked == []


async def test_a_certificate_that_nobody_vouches_for(secure: WebServer) -> None:
    with pytest.raises(InputRefused, match="self-signed"):
        await say_hello(secure, "files.test", None)
    assert secure.asked == []
