"""What may go wrong with a cluster."""

from __future__ import annotations

from .._errors import ProcessDied, ProcessError

__all__ = ["ClusterError", "WorkerLostError"]


class ClusterError(ProcessError):
    """The cluster cannot serve the call.

    There is no scheduler at the address, or it has gone away; a Dask worker has another version of
    Python or of creche, or none. The message names both sides.
    """


class WorkerLostError(ClusterError, ProcessDied):
    """The Dask worker that ran the call is gone: its machine, or its process there.

    How much of the call had been done is not known. (A :exc:`creche.ProcessDied` too: to the caller
    it is the same.)
    """

    worker: str
    """The address of the Dask worker."""

    def __init__(self, worker: str, detail: str = "") -> None:
        super().__init__(None, detail=detail)
        self.worker = worker

    def __reduce__(self) -> tuple[object, ...]:
        return WorkerLostError, (self.worker, self.detail)

    def __str__(self) -> str:
        text = f"the Dask worker {self.worker} went away while it had the call"
        return f"{text}: {self.detail}" if self.detail else text
