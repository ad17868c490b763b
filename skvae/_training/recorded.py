"""A step of training that a GPU records once and repeats: one launch instead of a hundred."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .rows import Batch

V = TypeVar("V")  # what a step returns: tensors that each replay fills anew
_one_at_a_time = threading.Lock()


class Recorded(Generic[V]):
    """A step on complete batches of one size; the recording reads and writes fixed places.

    Parameters
    ----------
    step : callable
        Takes a batch and the noise of its codes; what it changes has a place of its own.
    batch : Batch
        One of the batches.
    size : tuple of int
        Of the noise.
    """

    def __init__(
        self, step: Callable[[Batch, Tensor], V], batch: Batch, size: tuple[int, int, int]
    ) -> None:
        self.batch = Batch(batch.x.clone(), None, batch.weight.clone())
        self.eps = batch.x.new_zeros(size)
        self._replay = record(lambda: step(self.batch, self.eps), batch.x.device)

    def __call__(self, batch: Batch, eps: Tensor) -> V:
        self.batch.x.copy_(batch.x)
        self.batch.weight.copy_(batch.weight)
        self.eps.copy_(eps)
        return self._replay()


def can_record(device: torch.device) -> bool:
    return device.type == "cuda"


def record(launch: Callable[[], V], device: torch.device) -> Callable[[], V]:
    """Return what repeats the GPU's part of ``launch``; recording does none of it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), _one_at_a_time:
        stream = torch.cuda.current_stream()
        try:
            # Other threads may go on with their own work.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = launch()
        finally:
            torch.cuda.set_stream(stream)  # after a failure it might be the recording's

    def replay() -> V:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay
