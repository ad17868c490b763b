"""TrainingCurveDisplay: how a fit went."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._inputs import history_of
from .._table.column import Array
from ._axes import Display, Panel
from ._models import model_and_rows


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingCurveDisplay(Display):
    """The bound and the KL divergence, epoch by epoch.

    Use :meth:`from_estimator` to make one. The start is the linear model, at epoch 0: training was
    worth while if the best epoch's bound of held-out rows is above its line. Where the bound of the
    training rows still rises and that of held-out rows falls, the model over-fits; where the KL
    divergence falls to 0, the codes tell nothing (posterior collapse).

    Parameters
    ----------
    train : array-like of shape (n_epochs + 1,)
        Objective of the training rows in each epoch, in nats a row and original units; nan at the
        start.
    validation : array-like of shape (n_epochs + 1,)
        Objective of the held-out rows, from the start on; nan if nothing was held out.
    train_kl : array-like of shape (n_epochs + 1,)
        KL divergence of the training rows' posteriors from the prior, in nats a row.
    validation_kl : array-like of shape (n_epochs + 1,)
        The same of held-out rows.
    best_iter : int
        Epoch whose weights were kept; 0 is the start.
    objective : str, default="evidence lower bound"
        What the objective is, for the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The panel of the bound.
    axes_ : ndarray of matplotlib Axes
        The panels of the bound and of the KL divergence.
    figure_ : matplotlib Figure
        The figure that holds them.

    See Also
    --------
    skvae.VAETransformer : ``loss_curve_`` and ``validation_scores_`` are the same numbers.

    Notes
    -----
    Below 500 rows all curves are means over the folds of a cross-validation.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from skvae import VAETransformer
    >>> from skvae.displays import TrainingCurveDisplay
    >>> X, _ = load_wine(return_X_y=True)
    >>> vae = VAETransformer(2, max_iter=5, random_state=0).fit(X)
    >>> display = TrainingCurveDisplay.from_estimator(vae)
    >>> display.ax_.get_xlabel()
    'epoch'
    """

    train: Sequence[float] | Array
    validation: Sequence[float] | Array
    train_kl: Sequence[float] | Array
    validation_kl: Sequence[float] | Array
    best_iter: int
    objective: str = "evidence lower bound"

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, kl: bool = True, ax: Any = None
    ) -> "TrainingCurveDisplay":
        """Draw how the last fit of an estimator went.

        Parameters
        ----------
        estimator : VAETransformer, VAEOutlierDetector, VAEImputer or Pipeline
            A fitted estimator; of the second and third it is their ``vae_``, of a pipeline its last
            step that is one of these.
        kl : bool, default=True
            Draw a second panel, with the KL divergence.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : TrainingCurveDisplay
            What was drawn.

        Raises
        ------
        ValueError
            If the model was not trained, but is its linear start.
        """
        vae, _ = model_and_rows(estimator, None, cls.__name__)
        history = history_of(vae)
        if history is None or history.n_epochs == 0:
            raise ValueError(
                "This model was not trained: it is its linear start, so there is no curve. The "
                f"parameter max_iter was {vae.max_iter!r}."
            )
        bounds = history.bounds or [np.nan, *(-loss for loss in history.losses)]
        nothing = np.full(len(bounds), np.nan)
        is_elbo = vae.objective == "elbo"
        plain = is_elbo and vae.beta == 1.0 and vae.free_bits == 0.0
        objective = "evidence lower bound" if is_elbo else "importance-weighted bound"
        display = cls(
            train=np.array(bounds),
            validation=np.array(history.held_out) if history.held_out else nothing,
            train_kl=np.array(history.kl) if history.kl else nothing,
            validation_kl=np.array(history.held_out_kl) if history.held_out_kl else nothing,
            best_iter=history.best_epoch,
            objective=objective if plain or not is_elbo else "training objective",
        )
        return display.plot(kl=kl, ax=ax)

    def plot(self, *, kl: bool = True, ax: Any = None) -> "TrainingCurveDisplay":
        """Draw the curves.

        Parameters
        ----------
        kl : bool, default=True
            Draw a second panel, with the KL divergence.
        ax : matplotlib Axes or array of them, default=None
            Where to draw. None makes a figure.

        Returns
        -------
        display : TrainingCurveDisplay
            This object.
        """
        panel = Panel((4.8, 3.6), n_columns=2)
        panels = self._on(ax, 2 if kl else 1, panel)
        self._draw(self.ax_, self.train, self.validation, f"{self.objective}, nats a row")
        start = float(np.asarray(self.validation)[0])
        if np.isfinite(start):
            self.ax_.axhline(start, color="0.4", linestyle="--", label="linear start", zorder=1)
        self.ax_.legend(fontsize=panels.room.points())
        if len(self.axes_) > 1:
            label = "KL divergence, nats a row"
            self._draw(self.axes_[1], self.train_kl, self.validation_kl, label)
            self.axes_[1].set_ylim(bottom=0.0)
        panels.settle()
        return self

    def _draw(self, ax: Any, train: Any, validation: Any, label: str) -> None:
        epochs = np.arange(len(train))
        ax.plot(epochs, train, color="C0", label="training rows")
        if np.isfinite(validation).any():
            ax.plot(epochs, validation, color="C1", label="held-out rows")
            best = self.best_iter, np.asarray(validation)[self.best_iter]
            where = "the start" if self.best_iter == 0 else f"epoch {self.best_iter}"
            ax.plot(*best, "o", color="C1", markeredgecolor="black", label=f"kept: {where}")
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.get_major_locator().set_params(integer=True)
