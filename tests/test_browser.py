"""Links in a real browser, on a page of another origin: what it takes is in `docs/cors.json`.

On Ceph RGW behind AWS's rule about links. Like most stores it says nothing of CORS until its bucket
is told to.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import subprocess
import threading
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from storage import ObjectNotFound
from tests import servers
from tests.kit import Caller
from tests.test_upload import PART

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage import Store
    from tests.servers import S3Server

RULES = json.loads((Path(__file__).parent.parent / "docs" / "cors.json").read_text())
#: Of one visit, in seconds. It ends much sooner; a busy machine is no reason to fail.
PATIENCE = 200
#: Asks for each of `requests` in turn, and writes down what it was told.
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre></pre><script>
async function ask({url, ...options}) {
  try {
    const answer = await fetch(url, options)
    return {status: answer.status, text: await answer.text()}
  } catch (error) { return {error: String(error)} }
}
async function main(requests) {
  const answers = []
  for (const request of requests) answers.push(await ask(request))
  document.querySelector("pre").textContent = JSON.stringify(answers)
}
main(REQUESTS)
</script>"""

pytestmark = [
    pytest.mark.parametrize("place", ["strict"], indirect=True),
    pytest.mark.timeout(2 * PATIENCE),
]


class Links(NamedTuple):
    """What a page may be given: a link to read `greeting`, and one to write `picture`."""

    read: str
    write: str


@pytest.fixture
async def links(store: Store) -> Links:
    await store.put("greeting", "héllo".encode())
    read = await store.presign_get("greeting", expires_in=3600, filename="greeting.txt")
    write = await store.presign_put("picture", expires_in=3600, content_type="image/png", size=7)
    return Links(read, write)


@contextmanager
def cors(server: S3Server, rules: Any) -> Iterator[None]:
    """The bucket has these rules meanwhile."""
    with closing(servers.client(server.endpoint_url, server.keys)) as s3:
        s3.put_bucket_cors(Bucket=server.bucket, CORSConfiguration=rules)
        try:
            yield
        finally:
            s3.delete_bucket_cors(Bucket=server.bucket)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and does not talk about it."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of that folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def answers_seen(folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What a page that makes these requests by `fetch` gets to see of the answers."""
    browser = shutil.which("chromium")
    if browser is None:
        servers.missing("There is no chromium; scripts/chromium.sh install says why.")
    site = folder / "site"
    site.mkdir()
    page = PAGE.replace("REQUESTS", json.dumps(requests).replace("<", "\\u003c"))
    (site / "index.html").write_text(page)
    with serving(site) as origin:
        visit = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                f"--user-data-dir={folder / 'profile'}",
                "--dump-dom",
                "--virtual-time-budget=10000",
                f"{origin}/index.html",
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    seen = re.search(r"<pre>(.+?)</pre>", visit.stdout, re.DOTALL)
    assert seen, visit.stdout + visit.stderr
    answers: list[dict[str, Any]] = json.loads(html.unescape(seen[1]))
    return answers


def put(url: str, content: str, content_type: str) -> dict[str, Any]:
    return {"url": url, "method": "PUT", "body": content, "headers": {"content-type": content_type}}


async def test_a_page_reads_and_writes_by_links_once_the_bucket_allows_it(
    store: Store, links: Links, ceph: S3Server, tmp_path: Path
) -> None:
    with cors(ceph, RULES):
        read, written = await asyncio.to_thread(
            answers_seen, tmp_path, {"url": links.read}, put(links.write, "pixels!", "image/png")
        )
    assert read == {"status": 200, "text": "héllo"}
    assert written == {"status": 200, "text": ""}
    assert (await store.get("picture")).data == b"pixels!"


async def test_a_page_brings_files_as_the_rows_of_upload_say(
    store: Store, ceph: S3Server, tmp_path: Path
) -> None:
    """A new file, one that replaces another, and one in parts, with the headers of their rows."""
    worker = Caller(store, tmp_path / "worker", background=False, single_put_bytes=PART)
    await store.put("inputs/f/old.txt", b"old")
    files = {"new.txt": "new", "old.txt": "newer", "big.bin": "b" * (PART + 1)}
    puts = list[dict[str, Any]]()
    for path, content in files.items():
        announced = [{"path": path, "size": len(content)}]
        reply = await worker("upload", folder="f", files=announced, overwrite=path == "old.txt")
        [row] = reply["files"]
        size = row.get("part_bytes", len(content))
        options = {"method": row["method"], "headers": row.get("headers", {})}
        for part, url in enumerate(row.get("urls") or [row["url"]]):
            puts.append({"url": url, "body": content[part * size :][:size], **options})
    assert any("If-None-Match" in each["headers"] for each in puts)
    with cors(ceph, RULES):
        answers = await asyncio.to_thread(answers_seen, tmp_path, *puts)
    assert answers == [{"status": 200, "text": ""}] * 4


async def test_without_rules_a_page_sees_nothing_and_writes_nothing(
    store: Store, links: Links, tmp_path: Path
) -> None:
    async with httpx.AsyncClient() as http:  # which is no browser
        assert (await http.get(links.read)).text == "héllo"
    answers = await asyncio.to_thread(
        answers_seen, tmp_path, {"url": links.read}, put(links.write, "pixels!", "image/png")
    )
    assert answers == [{"error": "TypeError: Failed to fetch"}] * 2
    with pytest.raises(ObjectNotFound):
        await store.get("picture")


async def test_rules_that_forget_content_type_forbid_to_write(
    store: Store, links: Links, ceph: S3Server, tmp_path: Path
) -> None:
    rules = [{**rule, "AllowedHeaders": []} for rule in RULES["CORSRules"]]
    with cors(ceph, {"CORSRules": rules}):
        read, written = await asyncio.to_thread(
            answers_seen, tmp_path, {"url": links.read}, put(links.write, "pixels!", "image/png")
        )
    assert read == {"status": 200, "text": "héllo"}
    assert written == {"error": "TypeError: Failed to fetch"}
    with pytest.raises(ObjectNotFound):
        await store.get("picture")
