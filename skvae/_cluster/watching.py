"""A Dask cluster as a fit sees it: which workers answer, and results that survive their loss."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from .._advice import warn
from .._training.collective import LostProcess

A_STEP = timedelta(minutes=2)  # that a worker may be late, in a step or in its answers
QUIET = 15.0  # seconds without an answer: such a worker is given nothing new
A_WORKER = 60.0  # seconds to wait for a worker, if there is none
PULSE = 0.1  # seconds between two looks at the cluster


class Lost(Exception):
    """Workers died, or do not answer."""


class Cluster:
    """The workers of a cluster."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._heard: dict[str, tuple[float, float]] = {}  # when, by the scheduler's clock and ours

    def ages(self) -> dict[str, float]:
        """Return for how many seconds each worker has not been heard of; one of each process."""
        found: dict[str, float] = {}
        processes, now = set(), time.monotonic()
        for address, worker in self.client.scheduler_info(n_workers=-1)["workers"].items():
            process = address.rpartition("/")[0] if address.startswith("inproc:") else address
            if process in processes or worker["status"] != "running":
                continue
            processes.add(process)
            told, since = self._heard.get(address, (worker["last_seen"], now))
            since = since if told == worker["last_seen"] else now
            self._heard[address] = worker["last_seen"], since
            found[address] = now - since
        return found

    def quiet(self) -> set[str]:
        """Return the workers that do not answer."""
        return {address for address, age in self.ages().items() if age >= QUIET}

    def answering(self) -> list[str]:
        """Return the workers that answer; wait for one if there is none."""
        ends = time.monotonic() + A_WORKER
        while True:
            found = [address for address, age in self.ages().items() if age < QUIET]
            if found:
                return sorted(found)
            if time.monotonic() > ends:
                raise RuntimeError(
                    f"The cluster has had no worker that answers for {A_WORKER:.0f} s. Start some, "
                    "or look into their logs for why they ended."
                )
            time.sleep(PULSE)

    def wait(
        self,
        futures: Sequence[Any],
        gang: Sequence[str] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until tasks have ended; ``gang`` are workers all of which they need.

        Raises the error of a task, or ``Lost`` if they cannot all end.
        """
        while True:
            meanwhile()
            errors = [one.exception() for one in futures if one.status == "error"]
            own = [error for error in errors if not isinstance(error, LostProcess)]
            if own:
                raise own[0]
            if all(one.status == "finished" for one in futures):
                return
            ages = self.ages()
            gone = [address for address in gang if address not in ages]
            late = [one for one in gang or ages if ages.get(one, 0.0) >= A_STEP.total_seconds()]
            if gone or late or errors:
                whom = f"the worker {(gone + late)[0]}" if gone + late else "a worker"
                how = "has ended" if gone else "does not answer"
                raise Lost(f"{whom} {how}")
            time.sleep(PULSE)


class Kept:
    """Results of tasks that a fit keeps on the workers, and makes again where they are lost.

    Dask itself makes those again that a dead worker had. Those of one that is there and does not
    answer have to be asked for under other names.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.futures: dict[Any, Any] = {}

    def let_be(self, names: Sequence[Any], tasks: Callable[[list[Any]], list[Any]]) -> None:
        """Let all of these be there: ``tasks`` makes those of some names."""
        client, quiet = self.cluster.client, self.cluster.quiet()
        for name in self._lost(names, quiet):
            self.futures.pop(name).release()
        new = [name for name in names if name not in self.futures]
        if new:
            among = self.cluster.answering() if quiet else None
            self.futures |= dict(zip(new, client.compute(tasks(new), workers=among), strict=True))
        self.cluster.wait([self.futures[name] for name in names])

    def _lost(self, names: Sequence[Any], quiet: set[str]) -> list[Any]:
        """Return those that were begun and will not be there."""
        known = {name: self.futures[name] for name in names if name in self.futures}
        where = self.cluster.client.who_has(list(known.values())) if quiet and known else {}
        return [
            name
            for name, one in known.items()
            if one.status in ("error", "cancelled")
            or (quiet and set(where.get(one.key, ())) <= quiet)
        ]

    def get(self, names: Sequence[Any]) -> list[Any]:
        """Return results that are kept no longer, and warn as their tasks did."""
        found = self.cluster.client.gather([self.futures.pop(name) for name in names])
        return [heard_of(one) for one in found]

    def forget(self) -> None:
        """Let nothing be kept."""
        self.futures = {}


def heard_of(result: tuple[Any, list[Any]]) -> Any:
    """Return what a task found, and warn as it did."""
    found, said = result
    for message, category in said:
        warn(message, category)
    return found
