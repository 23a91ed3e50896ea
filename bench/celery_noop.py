"""The no-op as a Celery task. `BENCH_REDIS` is the URL of its broker and result backend."""

import os

from celery import Celery

app = Celery("noop", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])


@app.task
def noop() -> dict[str, str]:
    """Nothing."""
    return {}
