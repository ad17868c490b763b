"""scikit-learn's callbacks (1.9 and later), and nothing before."""

from collections.abc import Callable
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing to support."""

    def with_callbacks(method):  # type: ignore[no-untyped-def]
        """Return the method as it is."""
        return method


class FitTask:
    """The task "fit" of an estimator, as its callbacks see it: one subtask for each epoch."""

    def __init__(self, estimator: Any, X: Any, y: Any) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        has_callbacks = hasattr(estimator, "_init_callback_context")
        self.context = estimator._init_callback_context() if has_callbacks else None

    def begin(self, n_epochs: int) -> None:
        if self.context is not None:
            self.context.max_subtasks = n_epochs  # known only now: it depends on the rows
            self.context.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def report_epoch(self, fitted: Callable[[], dict[str, Any]]) -> bool:
        """Tell of one epoch; True if a callback asks to stop."""
        if self.context is None:
            return False
        epoch = self.context.subcontext(task_name="epoch")
        epoch.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        stop = epoch.call_on_fit_task_end(
            estimator=self.estimator, reconstruction_attributes=fitted, **self.data
        )
        return bool(stop)

    def end(self) -> None:
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator, **self.data)
