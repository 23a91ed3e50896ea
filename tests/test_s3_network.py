"""The way to the bucket: proxies, certificates, slow wires and silent ones, changing keys."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from storage import StorageMisconfigured, StorageUnavailable
from stores.s3.files import PART
from stores.s3.signed_calls import BITE
from stores.s3.stopping import StoppableHTTP
from stores.s3.store import S3Store
from tests.faulty_s3 import Answer, FaultyS3
from tests.servers import upload_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import S3Server

FOUND = Answer(200, b"1", (("ETag", '"x"'), ("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")))
EMPTY_LIST = Answer(200, b"<ListBucketResult></ListBucketResult>")


def store_at(server: S3Server, **changes: Any) -> S3Store:
    return S3Store(**{**server.place(), "retry_seconds": 0.5, **changes})


# ---- proxies


def either(asked: Any) -> Answer:
    return EMPTY_LIST if "list-type" in asked.path else FOUND


@pytest.mark.parametrize("call", ["boto3", "signed"])
async def test_requests_go_through_the_proxy_of_the_environment(
    ceph: S3Server, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    proxy.rule = either
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:p%40ss@"))
    monkeypatch.setenv("NO_PROXY", "")
    store = store_at(ceph, endpoint_url="http://store.invalid")
    await (store.get("a") if call == "boto3" else store.list(""))
    await store.close()
    (asked,) = proxy.asked
    assert asked.path.startswith("http://store.invalid/")
    assert asked.headers["host"] == "store.invalid"
    login = base64.b64encode(b"me:p@ss").decode()
    assert asked.headers["proxy-authorization"] == f"Basic {login}"


@pytest.mark.parametrize("call", ["boto3", "signed"])
async def test_no_proxy_names_hosts_that_are_reached_directly(
    ceph: S3Server, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    store = store_at(ceph, endpoint_url=proxy.url)
    proxy.rule = either
    await (store.get("a") if call == "boto3" else store.list(""))
    await store.close()
    assert proxy.asked[0].path.startswith("/")


@pytest.mark.parametrize("url", ["http://us er:hidden@[bad", "http://me:hidden@127.0.0.1:1"])
@pytest.mark.parametrize("call", ["boto3", "signed"])
async def test_a_login_of_a_proxy_is_in_no_error(
    ceph: S3Server, monkeypatch: pytest.MonkeyPatch, url: str, call: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", url)
    monkeypatch.setenv("NO_PROXY", "")
    store = store_at(ceph, endpoint_url="http://store.invalid")
    with pytest.raises((StorageUnavailable, StorageMisconfigured)) as raised:
        await (store.get("a") if call == "boto3" else store.list(""))
    await store.close()
    assert "hidden" not in "".join(traceback.format_exception(raised.value))


# ---- certificates


async def test_a_host_in_capitals_is_signed_as_it_is_sent(ceph: S3Server, proxy: FaultyS3) -> None:
    store = store_at(ceph, endpoint_url=proxy.url.replace("127.0.0.1", "LocalHost"))
    await store.put("a", b"1")
    assert (await store.get("a")).data == b"1"
    assert [row.key for row in (await store.list("")).objects] == ["a"]
    await store.close()


@pytest.mark.parametrize("call", ["boto3", "signed"])
@pytest.mark.parametrize(("scheme", "says"), [
    ("https", "TLS certificate .* is not trusted: set S3_TLS_BUNDLE"),
    ("http-as-https", "does not speak TLS: S3_ENDPOINT_URL begins http://"),
])  # fmt: skip
async def test_tls_that_cannot_be_says_what_to_change(
    ceph: S3Server, scheme: str, says: str, call: str
) -> None:
    url = ceph.tls_url if scheme == "https" else ceph.endpoint_url.replace("http:", "https:")
    store = store_at(ceph, endpoint_url=url)
    with pytest.raises(StorageMisconfigured, match=says):
        await (store.get("a") if call == "boto3" else store.list(""))
    await store.close()


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_certificates_that_boto3_trusts_are_trusted(
    ceph: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(ceph.certificate))
    store = store_at(ceph, endpoint_url=ceph.tls_url)
    await store.put("a", b"1")
    assert [row.key for row in (await store.list("")).objects] == ["a"]
    await store.close()


async def test_a_bundle_that_cannot_be_read_is_a_wrong_setting(
    ceph: S3Server, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for bundle in (tmp_path / "missing.pem", empty):
        store = store_at(ceph, endpoint_url=ceph.tls_url, tls_bundle=str(bundle))
        with pytest.raises(StorageMisconfigured, match="S3_TLS_BUNDLE"):
            await store.list("")
        await store.close()


# ---- slow and silent


@contextmanager
def a_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Gives each connection, one after the other, to `serve`, until that is over."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:  # closed
                    return
                with peer:
                    serve(peer)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def read_head(peer: socket.socket) -> bytes:
    """What came behind the head."""
    came = b""
    while b"\r\n\r\n" not in came:
        came += peer.recv(4096)
    return came.partition(b"\r\n\r\n")[2]


def answer_slowly(peer: socket.socket) -> None:
    """Ten bytes, in some more than the time of silence."""
    read_head(peer)
    peer.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 10\r\n\r\n')
    for _ in range(10):
        time.sleep(0.6)
        peer.sendall(b"1")


async def test_a_slow_answer_is_waited_for_while_it_comes(ceph: S3Server, tmp_path: Path) -> None:
    with a_server(answer_slowly) as url:
        store = store_at(ceph, endpoint_url=url, transfer_timeout=4.0)
        facts = await store.download("a", tmp_path / "got")
        await store.close()
    assert facts.size == 10


async def test_each_bite_of_a_body_has_the_time_of_silence(
    ceph: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's time is for all bytes that it is handed at once, so a slow wire is handed few."""
    path, sent, send = tmp_path / "file", list[tuple[int, float | None]](), StoppableHTTP.send
    path.write_bytes(bytes(PART))

    def noted(connection: StoppableHTTP, data: Any) -> None:
        if len(data) > 4096:  # not a head
            sent.append((len(data), connection.sock.gettimeout()))
        send(connection, data)

    monkeypatch.setattr(StoppableHTTP, "send", noted)
    store = store_at(ceph, connect_timeout=3.0, transfer_timeout=123.0)
    for _ in range(2):  # on a connection that is new, and on one that was used
        await upload_file(store, path, "a")
    await store.close()
    assert sent == [(BITE, 123.0)] * (2 * PART // BITE)


@pytest.mark.parametrize("way", ["up", "down, no head", "down, half a body"])
async def test_silence_ends_a_transfer(ceph: S3Server, tmp_path: Path, way: str) -> None:
    path, over = tmp_path / "file", threading.Event()
    path.write_bytes(bytes(PART))

    def fall_silent(peer: socket.socket) -> None:
        read_head(peer)
        if way == "down, half a body":
            peer.sendall(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 9\r\n\r\n1")
        over.wait()

    with a_server(fall_silent) as url:
        store = store_at(ceph, endpoint_url=url, transfer_timeout=0.5)
        store._files.patience = 0.0
        transfer = (
            upload_file(store, path, "a") if way == "up" else store.download("a", tmp_path / "got")
        )
        try:
            with pytest.raises(StorageUnavailable, match=r"in time|broke off"):
                await transfer
        finally:
            over.set()
            await store.close()


# ---- keys that change


async def test_keys_are_renewed_while_a_transfer_lasts(
    ceph: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They expire at once, so that each request has to ask for new ones."""
    told = {
        "Version": 1,
        "AccessKeyId": ceph.keys.access_key_id,
        "SecretAccessKey": ceph.keys.secret_access_key,
        "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60)),
    }
    (tmp_path / "keys").write_text(json.dumps(told))
    command = f"sh -c 'echo >> {tmp_path}/asked; cat {tmp_path}/keys'"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PART))
    store = store_at(ceph, access_key_id=None, secret_access_key=None)
    await store.put("a", b"")
    before = len((tmp_path / "asked").read_bytes())
    await upload_file(store, path, "a")
    await store.close()
    begin, parts, complete = 1, 3, 1
    assert len((tmp_path / "asked").read_bytes()) - before >= begin + parts + complete


# ---- awscrt, which boto3 signs with where it is installed

CRT = """
import asyncio, os, sys
from pathlib import Path
from stores.s3.signed_calls import BITE
from stores.s3.stopping import StoppableHTTP
from stores.s3.store import S3Store
from tests.servers import upload_file

async def main(place, folder):
    store = S3Store(**place)
    await store.create("a", b"1")
    (folder / "file").write_bytes(os.urandom(17 << 20))
    facts = await upload_file(store, folder / "file", "b")
    assert await store.download("b", folder / "got") == facts
    assert [row.key for row in (await store.list("")).objects] == ["a", "b"]
    assert (await store.capabilities()).conditional_writes
    await store.close()

asyncio.run(main({place!r}, Path({folder!r})))
"""


def test_awscrt_changes_nothing(ceph: S3Server, tmp_path: Path) -> None:
    package = tmp_path / "awscrt"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.38.1'\n")
    (package / "auth.py").write_text("")  # all that boto3 looks at before it decides
    code = CRT.replace("{place!r}", repr(ceph.place())).replace("{folder!r}", repr(str(tmp_path)))
    env = {name: value for name, value in os.environ.items() if name != "BOTO_DISABLE_CRT"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},  # noqa: PTH109
    )
    assert ended.returncode == 0, ended.stderr
