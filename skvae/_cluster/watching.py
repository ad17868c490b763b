"""A Dask cluster as a fit sees it: which workers answer, and results that survive their loss."""

import pickle
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from .._advice import warn
from .._training.collective import LostProcessError

A_STEP = timedelta(minutes=2)  # that a worker may be late, in a step or in its answers
QUIET = 15.0  # seconds without an answer: such a worker is given nothing new
A_WORKER = 300.0  # seconds to wait for a worker, if there is none
RESTARTS = 3  # of each worker, on the average, while a fit waits for one thing
PULSE = 0.1  # seconds between two looks at the cluster


class Lost(Exception):
    """Workers died, or do not answer."""


class Cluster:
    """The workers of a cluster."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._heard: dict[str, tuple[float, float]] = {}  # when, by the scheduler's clock and ours
        self._n_restarts = 0  # of workers that did not answer

    def workers(self) -> dict[str, Any]:
        """Return what the scheduler knows of each worker."""
        found: dict[str, Any] = self.client.scheduler_info(n_workers=-1).get("workers", {})
        return found

    def ages(self) -> dict[str, float]:
        """Return for how many seconds each worker has not been heard of."""
        found, now = {}, time.monotonic()
        for address, worker in self.workers().items():
            told, since = self._heard.get(address, (worker["last_seen"], now))
            since = since if told == worker["last_seen"] else now
            self._heard[address] = worker["last_seen"], since
            found[address] = now - since
        return found

    def answering(self) -> list[str]:
        """Return the workers that answer, one of each process; wait for one if there is none."""
        ends = time.monotonic() + A_WORKER
        while True:
            ages, found = self.ages(), {}
            for address, worker in self.workers().items():
                if worker["status"] == "running" and ages.get(address, 0.0) < QUIET:
                    is_thread = address.startswith("inproc:")
                    found[address.rpartition("/")[0] if is_thread else address] = address
            if found:
                return sorted(found.values())
            self._check_for_workers(ends)
            time.sleep(PULSE)

    def _check_for_workers(self, ends: float) -> None:
        if time.monotonic() > ends:
            raise RuntimeError(
                f"The cluster has had no worker that answers for {A_WORKER:.0f} s. Start some, or "
                "look into their logs for why they ended."
            )

    def wait(
        self,
        futures: Sequence[Any],
        gang: Sequence[str] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Return when tasks have ended; ``gang`` are workers all of which they need.

        Raises the error of a task, or ``Lost`` if they cannot all end.
        """
        ends = time.monotonic() + A_WORKER
        most = self._n_restarts + RESTARTS * max(len(self.workers()), 1)
        while True:
            meanwhile()
            errors = [one.exception() for one in futures if one.status == "error"]
            for error in errors:
                if not isinstance(error, LostProcessError):
                    raise _copied(error)
            if all(one.status == "finished" for one in futures):
                return
            if any(one.status == "cancelled" for one in futures):
                raise Lost("its tasks were cancelled")
            ages = self._look_after(gang)
            ends = time.monotonic() + A_WORKER if ages else ends
            self._check_for_workers(ends)
            self._check_restarts(most)
            if errors:
                raise Lost("a worker does not answer")
            time.sleep(PULSE)

    def _check_restarts(self, most: int) -> None:
        """Raise an error if it does not help to start workers again: it is not done forever."""
        if self._n_restarts > most:
            raise RuntimeError(
                f"Workers were started again {self._n_restarts} times, because they did not answer "
                f"for {A_STEP.total_seconds():.0f} s, and the fit got no further. Look into their "
                "logs, and at their machines: too little memory or too many processes may make "
                "them late."
            )

    def _look_after(self, gang: Sequence[str]) -> dict[str, float]:
        """Start workers again that do not answer; raise ``Lost`` if one of them is needed."""
        ages = self.ages()
        late = [one for one, age in ages.items() if age >= A_STEP.total_seconds()]
        for address in late:
            self._restart(address)
        for address in gang:
            if address not in ages or address in late:
                how = "does not answer" if address in late else "has ended"
                raise Lost(f"the worker {address} {how}")
        return ages

    def _restart(self, address: str) -> None:
        """Let a worker that does not answer be started again, or else be taken out of the cluster.

        The scheduler does so itself, some minutes later. Until then it waits for what the worker
        has, and gives it more to do.
        """

        async def removed(dask_scheduler: Any) -> None:
            await dask_scheduler.remove_worker(
                address, stimulus_id=f"skvae-{time.time()}", close=False
            )

        self._n_restarts += 1
        warn(
            f"The worker {address} has not answered for {A_STEP.total_seconds():.0f} s. It is "
            "started again, or taken out of the cluster if it has no nanny.",
            RuntimeWarning,
        )
        if self.workers().get(address, {}).get("nanny"):
            self.client.restart_workers([address], timeout=A_WORKER, raise_for_error=False)
        else:
            self.client.run_on_scheduler(removed)

    def result(self, future: Any, gang: Sequence[str] = ()) -> Any:
        """Return what a task has found, and warn as it did.

        The worker that has it may be lost after the task has ended.
        """
        ends = time.monotonic() + A_STEP.total_seconds()
        while time.monotonic() < ends:
            try:
                found, said = future.result(timeout=1.0)
            except TimeoutError:
                self._look_after(gang)
                continue
            for message, category in said:
                warn(message, category)
            return found
        raise Lost("a worker does not hand out what it has")


class Kept:
    """Results of tasks that a fit keeps on the workers; Dask makes those again that are lost."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.futures: dict[Any, Any] = {}

    def let_be(self, names: Sequence[Any], tasks: Callable[[list[Any]], list[Any]]) -> None:
        """Let all of these be there: ``tasks`` makes those of some names."""
        for name in [name for name, one in self.futures.items() if one.status == "cancelled"]:
            del self.futures[name]
        new = [name for name in names if name not in self.futures]
        if new:
            self.futures |= dict(zip(new, self.cluster.client.compute(tasks(new)), strict=True))
        self.cluster.wait([self.futures[name] for name in names])

    def get(self, names: Sequence[Any]) -> list[Any]:
        """Return results that are kept no longer."""
        found = [self.cluster.result(self.futures[name]) for name in names]
        for name in names:
            self.futures.pop(name).release()
        return found

    def forget(self) -> None:
        """Let nothing be kept."""
        for one in self.futures.values():
            one.release()
        self.futures = {}


def _copied(error: BaseException) -> BaseException:
    """Return an error whose traceback holds none of the frames that hold tasks."""
    try:
        found: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return error.with_traceback(None)
    return found
