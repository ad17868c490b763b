"""Estimators for Dask collections: a model that the workers of a cluster fit together.

They are shaped like those of ``lightgbm.dask`` and ``xgboost.dask``: ``fit`` takes a Dask DataFrame
or Array, methods for rows are lazy, and ``to_local`` returns the estimator that needs no Dask.
"""

from __future__ import annotations  # help() shows the types by their names

from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from ._callbacks import Listeners, with_callbacks
from ._cluster.collections import (
    check_collection,
    frames,
    head_of,
    is_collection,
    parts_of,
    per_cell,
    per_row,
    weights_of,
)
from ._cluster.estimator import (
    EncodesLazily,
    FillsLazily,
    FittedToSome,
    called,
    checked_rows,
)
from ._health import warn_about_columns, warn_about_fit
from ._imputer import VAEImputer
from ._inputs import (
    attributes_of,
    become,
    check_transformer,
    columns_shown,
    given,
    model_attributes,
    validated,
)
from ._outlier import VAEOutlierDetector
from ._parameters import Rule, check_parameters, check_score, seed_of
from ._resources import own_gradients
from ._table.frames import float_dtype
from ._table.sources import in_slices
from ._transformer import VAETransformer

__all__ = ["DaskVAEImputer", "DaskVAEOutlierDetector", "DaskVAETransformer"]

RULES = {
    "n_shards": Rule((None,), Integral, 1),
    "n_workers": Rule((None,), Integral, 1),
    "max_restarts": Rule((), Integral, 0),
    "checkpoint_every": Rule((), Real, 0.0),
}


class DaskVAETransformer(EncodesLazily, VAETransformer):
    """A VAETransformer that the workers of a Dask cluster fit together.

    The workers read their partitions and take the same steps by sums of gradients. The partitions
    are dealt to logical shards when a fit starts; the model depends on these, and not on how many
    workers there are, but for the rounding of sums. It is that of :func:`skvae.distributed.fit`.

    It takes the parameters of :class:`VAETransformer`, and these:

    Parameters
    ----------
    client : distributed.Client or None, default=None
        The cluster. None is the client that was made last.
    n_shards : int or None, default=None
        Number of logical shards, at most as many as partitions. None is one for each 512 rows of
        ``batch_size``, 2 to 16.
    n_workers : int or None, default=None
        How many workers train, at most one a shard. None is all of them.
    max_restarts : int, default=3
        How often the fit goes on when a worker dies or does not answer.
    checkpoint_every : float, default=60.0
        Seconds of training that such a loss may cost. So often the client gets the state of
        training, and new workers may join.

    See Also
    --------
    skvae.distributed.fit : The same for processes that torchrun or another launcher has started.

    Notes
    -----
    Methods take rows in memory, too, as those of :class:`VAETransformer` do. The workers need
    skvae, and must reach each other's ports: sums of gradients travel by torch's Gloo, without
    encryption. Held-out rows are chosen in each shard. A fit begins anew, whatever ``warm_start``
    is.

    Examples
    --------
    >>> import numpy as np
    >>> from dask import array
    >>> from distributed import Client
    >>> from skvae.dask import DaskVAETransformer
    >>> X = array.from_array(np.random.default_rng(0).normal(size=(500, 4)), chunks=(100, 4))
    >>> with Client(processes=False, dashboard_address=None) as client:
    ...     vae = DaskVAETransformer(2, max_iter=1, random_state=0, client=client).fit(X)
    ...     Z = vae.transform(X).compute()
    >>> Z.shape
    (500, 2)
    """

    own: ClassVar[dict[str, Any]] = {
        "client": None,
        "n_shards": None,
        "n_workers": None,
        "max_restarts": 3,
        "checkpoint_every": 60.0,
    }

    @with_callbacks
    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> DaskVAETransformer:
        """Fit the model to a collection.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows. They are read twice, unless they are persisted; the workers keep them as numbers
            while the fit lasts.
        y : None
            Ignored.
        sample_weight : dask.array.Array or Series of shape (n_samples,), default=None
            How often each row counts, in the partitions of X.

        Returns
        -------
        self : DaskVAETransformer
            The fitted estimator.

        Raises
        ------
        ValueError
            As ``VAETransformer.fit``. A note says in which partition, and on which worker. The
            estimator is left as it was.
        RuntimeError
            If more workers were lost than ``max_restarts`` allows.
        """
        from ._cluster.fit import ClusterFit, Limits, Listener, Rows

        X, local = check_collection(X, type(self).__name__), self.to_local()
        client, own = self._on_cluster()
        check_parameters(type(self).__name__, own, RULES)
        check_transformer(local)
        parts = parts_of(X)
        found = given(local, in_slices(head_of(X), 2))
        blank = type(local)()
        become(blank, vars(blank) | found.attributes)
        rows = Rows(
            found.rows.names,
            found.rows.labels,
            parts,
            weights_of(sample_weight, len(parts)),
            partial(_checked, blank),
            own["n_shards"],
        )
        limits = Limits(own["n_workers"], own["max_restarts"], float(own["checkpoint_every"]))
        parameters, listeners = local.get_params(deep=False), Listeners(self, X, None)
        listeners.attributes_of = lambda model: found.attributes | model_attributes(model)
        with own_gradients(), columns_shown(self, found.attributes, listeners.any):
            whole = ClusterFit(client, parameters, rows, Listener(listeners, listeners.any), limits)
            fitted, history = whole.run(seed_of(self.random_state))
            warn_about_fit(parameters, fitted, history, rows.names)
            warn_about_columns(fitted.schema)
        become(self, found.attributes | attributes_of(fitted, history))
        listeners.end(history)
        return self

    def inverse_transform(self, X: Any) -> Any:
        """Decode components to the mean of the rows that they stand for, lazily.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, `n_components_`)
            Codes, as ``transform`` returns them.

        Returns
        -------
        X_original : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            The decoder's mean, in original units, as the kind of collection that was fitted.
        """
        if not is_collection(X):
            return super().inverse_transform(X)
        local, X = self.for_tasks(), check_collection(X, "inverse_transform")
        codes = np.zeros((1, X.shape[1]), float_dtype(head_of(X)))
        some = local.inverse_transform(codes)  # or its error
        head = some[:0] if isinstance(some, np.ndarray) else some.head(0)
        return frames(partial(called, "inverse_transform"), X, local, head)

    def score_samples(
        self,
        X: Any,
        *,
        method: str = "log_likelihood",
        refine: bool = True,
        return_diagnostics: bool = False,
    ) -> Any:
        """Score each row, in nats, lazily: higher is more normal.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        method : {"log_likelihood", "elbo", "reconstruction", "kl"}, default="log_likelihood"
            As that of :meth:`VAETransformer.score_samples`.
        refine : bool, default=True
            As that of :meth:`VAETransformer.score_samples`.
        return_diagnostics : bool, default=False
            For rows in memory only.

        Returns
        -------
        scores : dask.dataframe.Series or dask.array.Array of shape (n_samples,)
            As X is.
        """
        if not is_collection(X):
            return super().score_samples(
                X, method=method, refine=refine, return_diagnostics=return_diagnostics
            )
        check_score(method, return_diagnostics)
        if return_diagnostics:
            raise ValueError(
                "return_diagnostics=True is for rows in memory. Got a Dask collection: compute "
                "some of its rows first."
            )
        local, how = self.for_tasks(), {"method": method, "refine": refine}
        X, _ = checked_rows(X, local, "score_samples")
        return per_row(partial(_scores, how=how), X, local)

    def score_features(self, X: Any) -> Any:
        """Say which columns make a row odd, lazily: each one's share of the reconstruction term.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        scores : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            As X is, in nats.
        """
        if not is_collection(X):
            return super().score_features(X)
        local = self.for_tasks()
        X, head = checked_rows(X, local, "score_features")
        names = list(getattr(head, "columns", range(local.n_features_in_)))
        return per_cell(partial(called, "score_features"), X, local, names)

    def score(self, X: Any, y: None = None) -> float:
        """Return the mean log p(x) of the rows, in nats a row and original units.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Higher is better. It is computed at once.
        """
        if not is_collection(X):
            return super().score(X)
        client, _ = self._on_cluster()
        return float(client.compute(self.score_samples(X).mean()).result())


class DaskVAEOutlierDetector(FittedToSome, VAEOutlierDetector):
    """A VAEOutlierDetector for Dask collections.

    It is fitted to as many rows as one worker keeps in memory, and scores all of them, lazily.

    It takes the parameters of :class:`VAEOutlierDetector`, and these:

    Parameters
    ----------
    client : distributed.Client or None, default=None
        The cluster. None is the client that was made last.

    Notes
    -----
    Methods take rows in memory, too, as those of :class:`VAEOutlierDetector` do.

    Examples
    --------
    >>> import numpy as np
    >>> from dask import array
    >>> from distributed import Client
    >>> from skvae.dask import DaskVAEOutlierDetector
    >>> X = array.from_array(np.random.default_rng(0).normal(size=(500, 4)), chunks=(100, 4))
    >>> with Client(processes=False, dashboard_address=None) as client:
    ...     detector = DaskVAEOutlierDetector(random_state=0, client=client).fit(X)
    ...     labels = detector.predict(X).compute()
    >>> labels.shape
    (500,)
    """

    def score_samples(self, X: Any) -> Any:
        """Score each row by ``score_method_``, in nats, lazily: higher is more normal.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        scores : dask.dataframe.Series or dask.array.Array of shape (n_samples,)
            As X is.
        """
        return self._of_rows("score_samples", X)

    def decision_function(self, X: Any) -> Any:
        """Return how far each row's score lies above the threshold, lazily.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        decision : dask.dataframe.Series or dask.array.Array of shape (n_samples,)
            In nats: negative for outliers.
        """
        return self._of_rows("decision_function", X)

    def p_values(self, X: Any) -> Any:
        """Return conformal p-values, lazily, as :meth:`VAEOutlierDetector.p_values`.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        p : dask.dataframe.Series or dask.array.Array of shape (n_samples,)
            As X is.
        """
        return self._of_rows("p_values", X)

    def predict(self, X: Any) -> Any:
        """Tell outliers from inliers, lazily.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        is_inlier : dask.dataframe.Series or dask.array.Array of int of shape (n_samples,)
            -1 for outliers and 1 for inliers.

        Raises
        ------
        ValueError
            With ``fdr``, which looks at all rows together.
        """
        if is_collection(X) and self.fdr is not None:
            raise ValueError(
                f"predict with fdr={self.fdr} looks at all rows together, and those of a "
                "collection are looked at in partitions. Take p_values(X).compute(), and "
                "scipy.stats.false_discovery_control of them; or contamination instead of fdr."
            )
        return self._of_rows("predict", X, np.int64)

    def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """Fit to X, and tell outliers from inliers among its rows, lazily.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, of which some may be outliers.
        y : None
            Ignored.
        sample_weight : dask.array.Array or Series of shape (n_samples,), default=None
            As in :meth:`fit`.

        Returns
        -------
        is_inlier : dask.dataframe.Series or dask.array.Array of int of shape (n_samples,)
            -1 for outliers and 1 for inliers, each as a new row.
        """
        return self.fit(X, sample_weight=sample_weight).predict(X)

    def _of_rows(self, method: str, X: Any, dtype: Any = np.float64) -> Any:
        local = self.for_tasks()
        if not is_collection(X):
            return getattr(local, method)(X)
        X, _ = checked_rows(X, local, method)
        return per_row(partial(called, method), X, local, dtype)


class DaskVAEImputer(FillsLazily, VAEImputer):
    """A VAEImputer for Dask collections.

    It is fitted to as many rows as one worker keeps in memory, and fills all of them, lazily.

    It takes the parameters of :class:`VAEImputer`, and these:

    Parameters
    ----------
    client : distributed.Client or None, default=None
        The cluster. None is the client that was made last.

    Notes
    -----
    Methods take rows in memory, too, as those of :class:`VAEImputer` do.

    Examples
    --------
    >>> import numpy as np
    >>> from dask import array
    >>> from distributed import Client
    >>> from skvae.dask import DaskVAEImputer
    >>> X = np.random.default_rng(0).normal(size=(500, 4))
    >>> X[::5, 1] = np.nan
    >>> with Client(processes=False, dashboard_address=None) as client:
    ...     rows = array.from_array(X, chunks=(100, 4))
    ...     filled = DaskVAEImputer(random_state=0, client=client).fit_transform(rows).compute()
    >>> bool(np.isnan(filled).any())
    False
    """


def _checked(blank: Any, part: Any) -> Any:
    return validated(blank, part, reset=False)


def _scores(local: Any, part: Any, how: dict[str, Any]) -> Any:
    return local.score_samples(part, **how)
