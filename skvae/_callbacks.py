"""Who is told of the epochs of a fit: scikit-learn's callbacks (1.9 and later), the screen."""

from collections.abc import Callable
from typing import Any, Protocol

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing to support."""

    def with_callbacks(method):  # type: ignore[no-untyped-def]
        """Return the method as it is."""
        return method


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
        if self.context is not None:
            self.context.max_subtasks = max_epochs  # known only now: it depends on the rows
            self.context.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def hear(self, epoch: Any, fitted: Callable[[], Any]) -> bool:
        """Tell of one epoch, and what the model would be now; True if a callback asks to stop."""
        if self.estimator.verbose:
            bounds = {"bound": epoch.bound, "held out": epoch.held_out}
            known = [f"{name} {value:.3f} nats" for name, value in bounds.items() if value == value]
            which = f"epoch {epoch.number} of at most {self.max_epochs}"
            which = "linear start" if epoch.number == 0 else which
            if known:
                print(f"[{type(self.estimator).__name__}] {which}: {', '.join(known)} a row")
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

    def end(self) -> None:
        """Tell that the fit is over."""
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator, **self.data)
