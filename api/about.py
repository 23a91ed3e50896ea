"""The actions that are about workers and not about a process: `health`, `metrics`, `kinds`."""

from __future__ import annotations

from api.actions import HealthAction, KindsAction, MetricsAction
from health.examine import Examiner, health
from health.metrics import metrics
from health.presence import Presence
from health.versions import API, WORKER
from jobs import COMMAND, JOBS
from process_manager import ProcessManager
from programs.declaration import Programs
from records.replies import Reply
from storage import Store
from worker.settings import Settings


class AboutActions:
    """Answers them for this worker."""

    def __init__(
        self,
        store: Store,
        manager: ProcessManager,
        settings: Settings,
        presence: Presence,
        programs: Programs,
    ) -> None:
        self._programs = programs
        self._manager = manager
        self._settings = settings
        self._presence = presence
        self._examiner = Examiner(store, settings)

    async def answer(self, action: HealthAction | MetricsAction | KindsAction) -> Reply:
        """The reply to one of them.

        Raises:
            StorageUnavailable, StorageMisconfigured: figures of all workers were asked for, as a
                text that has no place to say that they cannot be had.
        """
        match action:
            case HealthAction(deep=deep):
                return await health(self._examiner, self._manager, self._settings, deep=deep)
            case MetricsAction(scope=scope, format=form):
                as_text = form == "prometheus"
                return await metrics(self._presence, everyone=scope == "all", as_text=as_text)
            case KindsAction():
                return {"api": API, "worker_version": WORKER, "kinds": self._schemas()}

    def _schemas(self) -> Reply:
        """Of the params of all kinds; of the declared programs, if there are any."""
        schemas: Reply = {
            name: job.params.model_json_schema() | {"description": job.sentence}
            for name, job in JOBS.items()
        }
        if self._programs.by_name:
            return schemas | {COMMAND: self._programs.schema()}
        return {name: schema for name, schema in schemas.items() if name != COMMAND}
