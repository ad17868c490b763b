"""What estimators share that have a VAETransformer."""

from __future__ import annotations  # help() shows ArrayLike by its name

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from ._html import Shown
from ._inputs import Given, attributes_of, become, fitted_now, history_of
from ._parameters import automatic_batch_size, seed_of
from ._resources import own_gradients
from ._table.duplicates import merge_duplicates
from ._table.frames import take_rows
from ._table.schema import LabelledRows
from ._transformer import VAETransformer

if TYPE_CHECKING:
    from ._fitted import Fitted

FEWEST_STEPS, MOST_STEPS = 120, 300  # of a model's further training, in a bag


class WithModel(Shown):
    """An estimator whose ``vae`` is a model, or in what its default model is to differ."""

    vae: VAETransformer | Mapping[str, Any] | None

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the estimator, and of its model as ``vae__<parameter>``.

        Where ``vae`` is None or a dict, the default model is to differ in these: a grid search over
        ``vae__n_components`` needs no model of its own.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        self : estimator instance
            The estimator.
        """
        after = params.get("vae", self.vae)
        if isinstance(after, VAETransformer):
            return super().set_params(**params)  # type: ignore[misc]
        prefix = "vae__"
        own = {
            name.removeprefix(prefix): params.pop(name)
            for name in list(params)
            if name.startswith(prefix)
        }
        VAETransformer().set_params(**own)  # or its error, before anything is set
        super().set_params(**params)  # type: ignore[misc]
        if own:
            self.vae = {**(self.vae or {}), **own}
        return self

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Return the mean log p(x) of the rows by the fitted model, ``vae_.score``.

        It is what ``GridSearchCV`` compares models by if it is given no ``scoring``. It says how
        well ``vae_`` describes rows that it has not seen: of a row with missing cells, those that
        are there. It does not say how well cells are filled or outliers told. Of a detector only
        the parameters of ``vae``, and ``support_fraction``, change it, and outliers among the rows
        weigh most in it: score rows without them. Where labels are known, 1 for inliers and -1 for
        outliers, ``scoring="roc_auc"`` compares detectors.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        y : None
            Ignored.

        Returns
        -------
        score : float
            In nats a row and original units. Higher is better.
        """
        now: Any = fitted_now(self)
        return now.vae_.score(now._read_by_model(X))

    def _read_by_model(self, X: Any) -> Any:
        """Return rows as the model reads them."""
        return X


def check_model(owner: str, vae: Any) -> None:
    """Raise a ValueError unless ``vae`` is a model, parameters of one, or None."""
    if isinstance(vae, Mapping):
        unknown = sorted(set(map(str, vae)) - set(VAETransformer().get_params()))
        if unknown:
            raise ValueError(
                f"The 'vae' parameter of {owner} names {unknown}, which are no parameters of "
                "VAETransformer."
            )
    elif vae is not None and not isinstance(vae, VAETransformer):
        raise ValueError(
            f"The 'vae' parameter of {owner} must be a VAETransformer, a dict of its parameters or "
            f"None. Got {vae!r} instead."
        )


def own_model(
    vae: VAETransformer | Mapping[str, Any] | None, random_state: Any, **defaults: Any
) -> VAETransformer:
    """Clone the model that a user gave an estimator, or make one with these parameters.

    Without a random state of its own it gets the estimator's. Whether holes say something is asked
    for codes: "auto" ignores them here.
    """
    if isinstance(vae, VAETransformer):
        model: VAETransformer = clone(vae)
    else:
        model = VAETransformer(**(defaults | dict(vae or {})))
    if model.missing == "auto":
        model.set_params(missing="ignore")
    return model if model.random_state is not None else model.set_params(random_state=random_state)


def bag_of(
    vae: VAETransformer, rows: LabelledRows, table: Any, seed: int, n_models: int
) -> list[Fitted]:
    """Train a fitted model further on Bayesian bootstraps of its rows (Rubin 1981), each apart.

    The rows are those of ``table``, as the model reads them. What is expected of a cell varies less
    on average over the models. So each may learn rows by heart that held-out rows would not have
    let the model learn: a run goes on for twice the steps that the model took, and its learning
    rate down to 0. A run that diverges gives no model. A model that was not to be trained, or was
    interrupted, has no others beside it.
    """
    from ._fitting import fit

    parameters, history = vae.get_params(deep=False), history_of(vae)
    if history is None or history.interrupted or parameters["max_iter"] == 0:
        return []
    # Of distinct rows, so that weighting a row is repeating it.
    kept, weight, copies = merge_duplicates(table, rows.weight)
    count = weight * max(1.0, copies.sum() / weight.sum())
    n_rows, asked = len(kept), parameters["max_iter"]
    batch_size = parameters["batch_size"]
    batch_size = automatic_batch_size(n_rows) if batch_size == "auto" else batch_size
    per_epoch = -(-n_rows // batch_size)
    n_steps = min(max(2 * history.best_epoch * per_epoch, FEWEST_STEPS), MOST_STEPS)
    n_epochs = -(-n_steps // per_epoch)
    parameters["max_iter"] = n_epochs if asked == "auto" else min(n_epochs, asked)
    parameters |= {"early_stopping": False, "kl_warmup": 0.0}
    rng, models = np.random.default_rng(seed), []
    with own_gradients():
        for number in range(n_models):
            own = rows._replace(X=take_rows(rows.X, kept), weight=rng.gamma(count))
            try:
                models.append(fit(parameters, own, seed + 1 + number, (vae.model_, history))[0])
            except ValueError:  # the rows are admissible, so that run has diverged
                continue
    return models


def quietly_fitted(vae: VAETransformer, data: Given) -> VAETransformer:
    """Fit a model whose parameters the user did not choose: no advice, no callbacks."""
    from ._fitting import fit

    parameters, seed = vae.get_params(deep=False), seed_of(vae.random_state)
    fitted, history = fit(parameters, data.rows, seed)
    become(vae, data.attributes | attributes_of(fitted, history))
    return vae
