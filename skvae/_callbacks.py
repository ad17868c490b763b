"""Who is told of the epochs of a fit: scikit-learn's callbacks (1.9 and later), the screen."""

import time
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from math import isnan
from typing import Any, Protocol, TypeVar, cast

M = TypeVar("M", bound=Callable[..., Any])

SECONDS = 5.0  # between two lines of verbose=1
SUPPORTED = find_spec("sklearn.callback") is not None


class CallbackSupportMixin:
    """scikit-learn's support of callbacks, which is loaded when a fit or a callback asks for it.

    It imports ``rich`` where that is installed: as much work as all else that a model needs to be
    read and used.
    """

    if SUPPORTED:

        def set_callbacks(self, *callbacks: Any) -> Any:
            """Set the callbacks that are told of the epochs of a fit.

            Parameters
            ----------
            *callbacks : callback instances
                As of :mod:`sklearn.callback`. None takes away those that were set.

            Returns
            -------
            self : estimator instance
                The estimator.
            """
            from sklearn.callback import CallbackSupportMixin

            return CallbackSupportMixin.set_callbacks(self, *callbacks)

        def _init_callback_context(self, **settings: Any) -> Any:
            from sklearn.callback import CallbackSupportMixin

            return CallbackSupportMixin._init_callback_context(self, **settings)


def with_callbacks(method: M) -> M:
    """Let callbacks be torn down after a fit, whatever became of it."""
    if not SUPPORTED:
        return method

    @wraps(method)
    def managed(estimator: Any, *arguments: Any, **settings: Any) -> Any:
        from sklearn.callback import with_callbacks

        return with_callbacks(method)(estimator, *arguments, **settings)

    return cast(M, managed)


class Audience(Protocol):
    """Whoever wants to be told of the epochs of a fit."""

    def begin(self, max_epochs: int) -> None:
        """Hear how many epochs there may be."""

    def hear(self, epoch: Any, fitted: Callable[[], Any]) -> bool:
        """Hear of an epoch, and what the model would be now; True stops the fit."""


class Nobody:
    """An audience that does not listen."""

    def begin(self, max_epochs: int) -> None:
        """Hear nothing."""

    def hear(self, epoch: Any, fitted: Callable[[], Any]) -> bool:
        """Hear nothing, and never stop."""
        return False


class Listeners:
    """Who is told of the epochs of a fit: scikit-learn's callbacks, and the screen if ``verbose``.

    To callbacks the fit is a task with a subtask for each epoch.
    """

    def __init__(self, estimator: Any, X: Any, y: Any) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        self.attributes_of: Callable[[Any], dict[str, Any]] = lambda fitted: {}
        has_callbacks = hasattr(estimator, "_init_callback_context")
        self.context = estimator._init_callback_context() if has_callbacks else None

    @property
    def any(self) -> bool:
        """Whether callbacks look on."""
        return self.context is not None and bool(vars(self.estimator).get("_skl_callbacks"))

    def begin(self, max_epochs: int) -> None:
        """Hear how many epochs there may be."""
        self.max_epochs = max_epochs
        self._begun = self._printed = time.monotonic()
        if self.context is not None:
            self.context.max_subtasks = max_epochs  # known only now: it depends on the rows
            self.context.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def hear(self, epoch: Any, fitted: Callable[[], Any]) -> bool:
        """Tell of one epoch, and what the model would be now; True if a callback asks to stop."""
        self._print(epoch)
        if self.context is None or epoch.number == 0:
            return False
        task = self.context.subcontext(task_name="epoch")
        task.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        stop = task.call_on_fit_task_end(
            estimator=self.estimator,
            reconstruction_attributes=lambda: self.attributes_of(fitted()),
            **self.data,
        )
        return bool(stop)

    def _print(self, epoch: Any) -> None:
        """Tell the screen, unless it was told just now and another epoch may come."""
        verbose, now = self.estimator.verbose, time.monotonic()
        ends = epoch.number in (0, 1, self.max_epochs)  # the first says how long one takes
        if not (verbose > 1 or (verbose and (ends or now - self._printed >= SECONDS))):
            return
        self._printed = now
        bounds = {"bound": epoch.bound, "held out": epoch.held_out}
        known = [f"{name} {value:.3f}" for name, value in bounds.items() if not isnan(value)]
        which = "linear start"
        if epoch.number > 0:
            seconds = now - self._begun
            which = f"epoch {epoch.number} of at most {self.max_epochs}, {seconds:.0f} s"
        if known:
            print(f"[{type(self.estimator).__name__}] {which}: {', '.join(known)} nats a row")

    def end(self, history: Any) -> None:
        """Tell that the fit is over, and which epoch was kept."""
        if self.estimator.verbose and (history.n_epochs > 0 or history.why_the_start):
            kept = f"epoch {history.best_epoch}" if history.best_epoch else "the linear start"
            after = f"{history.n_epochs} epochs, {time.monotonic() - self._begun:.0f} s"
            why = f": {history.why_the_start}" if history.why_the_start else ""
            print(f"[{type(self.estimator).__name__}] kept {kept} after {after}{why}")
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator, **self.data)
