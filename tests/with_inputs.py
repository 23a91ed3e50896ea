"""Starts of the kind `show_inputs`, and what they can be given."""

import hashlib


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def allowing(web):
    """Settings that let a worker fetch from this web server."""
    return {"allowed_hosts": f"127.0.0.1:{web.port}"}


async def given(worker, process_id="p", **inputs):
    """The reply of a job that was started with these inputs."""
    fields = {name: each for name, each in inputs.items() if name not in ("params", "job_id")}
    return await worker(
        "start",
        kind="show_inputs",
        process_id=process_id,
        inputs=fields,
        params=inputs.get("params", {}),
    )


async def folder_of(crowd, name, **files):
    """An input folder, complete."""
    for path, data in files.items():
        await crowd.store.put(f"inputs/{name}/{path}", data)
    reply = await crowd.worker()("upload", folder=name, complete=True)
    assert reply["complete"], reply
