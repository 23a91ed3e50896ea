"""Run long GPU jobs on a RunPod endpoint.

from podjobs import Endpoint

endpoint = Endpoint("abc123")
process = endpoint.start("train_diffusion", inputs={"photos": "./photos"}, steps=1000)
for event in process.events():
    print(event)
process.download("./out")
"""

from podjobs.blocking import Endpoint, Process
from podjobs.endpoint import AsyncEndpoint, AsyncProcess
from podjobs.errors import (
    PodjobsError,
    ProcessCancelled,
    ProcessEnded,
    ProcessFailed,
    ProcessInterrupted,
    WorkerError,
)
from podjobs.models import Failure, Progress, RemoteFile, Row, View, Why
from podjobs.tracking import ArtifactsStored, Event, Logged, Progressed, StatusChanged

__version__ = "0.1.0"
__all__ = [
    "ArtifactsStored",
    "AsyncEndpoint",
    "AsyncProcess",
    "Endpoint",
    "Event",
    "Failure",
    "Logged",
    "PodjobsError",
    "Process",
    "ProcessCancelled",
    "ProcessEnded",
    "ProcessFailed",
    "ProcessInterrupted",
    "Progress",
    "Progressed",
    "RemoteFile",
    "Row",
    "StatusChanged",
    "View",
    "Why",
    "WorkerError",
]
