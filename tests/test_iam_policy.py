"""The worker's key needs what `docs/iam-policy.json` allows: all of it, and nothing else.

Ceph RGW enforces it here, for a user to whom the owner of the bucket allowed exactly that.
"""

from __future__ import annotations

import ast
import json
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from storage import ObjectNotFound, StorageMisconfigured
from stores.s3.files import PART
from stores.s3.store import S3Store
from tests import servers
from tests.test_storage_streams import BrokenSource, Chunks, cut
from worker.meter import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.servers import S3Server

ROOT = Path(__file__).parent.parent
POLICY: dict[str, Any] = json.loads((ROOT / "docs" / "iam-policy.json").read_text())
#: What AWS asks for, operation by operation (the service authorization reference of Amazon S3).
ASKS_FOR = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "ListParts": "s3:ListMultipartUploadParts",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
DATA = os.urandom(PART + 1000)


def allowed() -> dict[str, str]:
    """Action to resource."""
    return {
        action: statement["Resource"]
        for statement in POLICY["Statement"]
        for action in statement["Action"]
    }


def operations_in_the_code() -> set[str]:
    """Every operation that a client is asked for, or a link is made for, in `stores/`."""
    with closing(servers.client("http://127.0.0.1", servers.Keys("nobody", "nothing"))) as client:
        names = client.meta.method_to_api_mapping
    trees = [ast.parse(path.read_text()) for path in (ROOT / "stores" / "s3").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    said = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    said |= {node.value for node in nodes if isinstance(node, ast.Constant)} - {None}
    return {names[name] for name in said if name in names} | (said & set(names.values()))


def test_the_policy_allows_what_the_code_asks_for_and_nothing_else() -> None:
    assert sorted(allowed()) == sorted({ASKS_FOR[name] for name in operations_in_the_code()})


def test_objects_are_allowed_on_objects_and_the_list_on_the_bucket() -> None:
    on_bucket = {action for action, what in allowed().items() if what == "arn:aws:s3:::BUCKET"}
    assert on_bucket == {"s3:ListBucket"}
    assert set(allowed().values()) == {"arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"}


def test_the_documents_name_the_same_actions() -> None:
    text = (ROOT / "docs" / "stores.md").read_text()
    assert [action for action in allowed() if f"`{action}`" not in text] == []


# ---- what the policy does, at a store that enforces it


def give(server: S3Server, actions: Mapping[str, str]) -> None:
    """Let the second user do these, and no more."""
    statements = [
        {
            "Effect": "Allow",
            "Action": action,
            "Resource": resource.replace("BUCKET", server.bucket),
            "Principal": {"AWS": ["arn:aws:iam:::user/other"]},
        }
        for action, resource in [*actions.items(), *quirk(actions)]
    ]
    with closing(servers.client(server.endpoint_url, server.keys)) as owner:
        owner.put_bucket_policy(
            Bucket=server.bucket,
            Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}),
        )


def quirk(actions: Mapping[str, str]) -> list[tuple[str, str]]:
    """For DeleteObjects, Ceph RGW asks for the same action on the bucket, too."""
    return [("s3:DeleteObject", "arn:aws:s3:::BUCKET")] if "s3:DeleteObject" in actions else []


@pytest.fixture
async def guest(ceph: S3Server, strict: S3Server) -> AsyncIterator[S3Store]:
    """A store whose key is allowed what the policy says."""
    assert ceph.other is not None
    place = strict.place()
    give(ceph, allowed())
    store = S3Store(**{**place, **ceph.other._asdict()})  # type: ignore[arg-type]
    yield store
    await store.close()
    give(ceph, allowed())  # some test took away from it
    store = S3Store(**{**place, **ceph.other._asdict()})  # type: ignore[arg-type]
    await store.delete([row.key for row in (await store.list("")).objects])
    await store.close()
    with closing(servers.client(ceph.endpoint_url, ceph.keys)) as owner:
        owner.delete_bucket_policy(Bucket=ceph.bucket)


async def use(store: S3Store) -> None:
    """Everything that a worker, and whoever holds its links, asks of a bucket."""
    version = await store.create("a/record", b"1")
    await store.replace("a/record", b"2", version)
    assert (await store.get("a/record")).data == b"2"
    with pytest.raises(ObjectNotFound):  # and not "may not say whether it is there"
        await store.stat("a/nothing")
    assert [row.key for row in (await store.list("a/")).objects] == ["a/record"]
    await store.upload_stream(Chunks(*cut(DATA, 1 << 20)), "a/large", size=len(DATA))
    broken = Chunks(*cut(DATA, 1 << 20), error=BrokenSource())
    with pytest.raises(BrokenSource):
        await store.upload_stream(broken, "a/broken", size=len(DATA) + 1)
    await bring_in_parts(store, "a/parts")
    assert (await store.capabilities()).degraded == ()
    await store.delete(["a/record"])
    assert (await store.check()).ok


async def bring_in_parts(store: S3Store, key: str) -> None:
    """As a caller does who was given links."""
    links = await store.presign_parts(key, size=len(DATA), part_size=PART, expires_in=60)
    async with httpx.AsyncClient() as http:
        for number, url in enumerate(links.urls):
            data = DATA[number * PART : (number + 1) * PART]
            (await http.put(url, content=data)).raise_for_status()
    await store.join_parts(key, links.upload_id, size=len(DATA))


async def test_a_key_with_this_policy_is_enough_for_all_that_a_worker_does(
    guest: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()

    def record(_: Meter, operation: str, _outcome: str) -> None:
        asked.add(operation)

    monkeypatch.setattr(Meter, "asked", record)
    await use(guest)
    assert asked == operations_in_the_code()  # so nothing was left out above


async def test_a_large_file_is_refused_with_the_reason_and_not_as_a_broken_connection(
    guest: S3Store, ceph: S3Server, tmp_path: Path
) -> None:
    give(ceph, {action: what for action, what in allowed().items() if action != "s3:PutObject"})
    (tmp_path / "file").write_bytes(DATA[:PART])
    with pytest.raises(StorageMisconfigured, match="s3:PutObject"):
        await servers.upload_file(guest, tmp_path / "file", "a")


# (Who wrote an object may read it at Ceph RGW, whatever the policy says.)
@pytest.mark.parametrize("missing", ["s3:ListBucket", "s3:PutObject"])
async def test_when_an_action_is_missing_the_error_names_it(
    guest: S3Store, ceph: S3Server, missing: str
) -> None:
    give(ceph, {action: what for action, what in allowed().items() if action != missing})
    with pytest.raises(StorageMisconfigured, match=missing):
        await use(guest)
