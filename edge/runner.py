"""One job at a time, in the thread "job"; begun unless STOP came since its start was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge.jobs import Job


class Runner:
    """The place of the one job. STOP takes its lock only to count and to end, and never waits for a job.

    Attributes
    ----------
    job : Job or None
        The one that runs, or was the last to run.
    stops : int
        How often STOP came. Who reads a number sees the ``stop`` of the job that ran then as set; nobody waits for it.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.stops = 0
        # A job is begun, or ended by STOP: a late end would stop the next one's camera.
        self._stopping = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self.job is not None and self.job.running

    def begin(
        self,
        job: Job,
        work: Callable[[], None],
        *,
        stops: int,
        quitting: threading.Event,
        first: Callable[[], None] = lambda: None,
    ) -> bool:
        """Begin ``work`` as the thread of ``job``; whether it began. Only while none runs, and by one thread at a time.

        Parameters
        ----------
        stops
            What :attr:`stops` said when the job was asked for: after one more it does not begin.
        quitting
            Once it is set nothing begins.
        first
            Called where the job does begin, before its first instruction.
        """
        thread = threading.Thread(target=work, name="job", daemon=True)
        with self._stopping:
            if self.stops != stops or quitting.is_set():
                return False
            first()
            job.thread, self.job = thread, job
            thread.start()
        return True

    def stop(self) -> None:
        """End the job that runs, and keep the one that is being started from beginning. From any thread."""
        with self._stopping:
            if self.job is not None:
                self.job.stop.set()  # before it is counted, as `stops` says
            self.stops += 1
            if self.job is not None:
                self.job.end()

    def join(self, timeout_s: float) -> None:
        """Wait for the job's end for so long; :attr:`running` says whether it came. The job itself does not wait."""
        job = self.job
        if job is not None and job.thread is not None and job.thread is not threading.current_thread():
            job.thread.join(timeout_s)
