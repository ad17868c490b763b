"""VAEImputer: missing values from what the rest of the row says, by scikit-learn's conventions."""

from __future__ import annotations  # help() shows ArrayLike by its name

from collections.abc import Sequence
from itertools import count
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils.validation import _check_feature_names_in

from ._by_parts import at_hand, by_parts
from ._composed import WithModel, bag_of, check_model, own_model
from ._conditions import (
    MOVES,
    How,
    cell_distributions,
    filling,
    levels_of,
    moved_model,
    parameter_moves,
)
from ._health import warn_of_empty
from ._inputs import become, fitted_now, given, validated
from ._parameters import (
    COUNT,
    IMPUTER_RULES,
    check_parameters,
    density_noise,
    seed_of,
)
from ._table.frames import (
    check_indicators,
    completed,
    has_levels,
    library_of,
    where_missing,
    with_missing,
)
from ._table.of_pandas import frame_of
from ._table.schema import LabelledRows, where_strays
from ._transformer import VAETransformer
from ._versions import Versioned

FEW_COLUMNS = 10


class VAEImputer(WithModel, Versioned, TransformerMixin, BaseEstimator):
    """Impute missing values by a variational autoencoder, in tables of any columns.

    A missing value is replaced by its expectation given the observed values of its row,
    E[x_mis | x_obs], estimated by self-normalised importance sampling [1]_; a missing category by
    its most probable level. An expectation of whole numbers need not be whole; ``sample_posterior``
    gives values that the column could hold. What is observed comes back bit by bit, in the frame
    and dtypes that it came in.

    Parameters
    ----------
    vae : VAETransformer, dict or None, default=None
        The model of the table; a clone of it is fitted. None is one whose numbers go through
        normal scores (``likelihood="normal_scores"``), with noise per column (both up to 1,500
        columns), trained on the importance-weighted bound. Where all columns are numbers, it has
        half as many components as columns, of more than ten columns as many as held-out rows call
        for (``n_components="evidence"``). Holes say nothing unless it has ``missing="model"``.
    missing_values : scalar, default=nan
        What stands for a missing value in X; nan is also None, ``pd.NA`` and null.
    sample_posterior : bool, default=False
        Draw each missing value from p(x_mis | x_obs) instead of taking its expectation, and the
        parameters of that distribution, too (see ``sample_imputations``).
    add_indicator : bool, default=False
        Append a column of 0 and 1 for each column that had missing values in ``fit``, as
        :class:`sklearn.impute.MissingIndicator`.
    keep_empty_features : bool, default=False
        Keep columns that were empty in ``fit``: filled with 0 (categories without a level stay
        missing). They are dropped otherwise.
    n_estimators : int, default=1
        Number of models whose expectations are averaged: ``vae_`` and others that go on from it
        on Bayesian bootstraps of the rows. 5 mostly lowers errors, by up to 7%, takes 2 to 3 times
        as long to fit and 5 times or more to fill, and can raise them where rows are few.
    random_state : int, RandomState instance or None, default=None
        Seed of the fit, and of the draws.

    Attributes
    ----------
    vae_ : VAETransformer
        The fitted model, of which draws and ``predict_cells`` are.
    bag_ : tuple of Fitted
        The models beside it; none if its training was interrupted, or ``max_iter`` is 0.
    indicator_ : sklearn.impute.MissingIndicator or None
        Which columns have an indicator; None without ``add_indicator``.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where they all are strings.

    See Also
    --------
    sklearn.impute.IterativeImputer : Each numeric column from the others, in turn.
    sklearn.impute.KNNImputer : From the nearest rows.

    References
    ----------
    .. [1] Mattei & Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete
           Data Sets, eq. 10 and 12.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAEImputer
    >>> X, _ = load_iris(return_X_y=True)
    >>> X[::3, 2] = np.nan
    >>> filled = VAEImputer(random_state=0).fit_transform(X)
    >>> bool(np.isnan(filled).any())
    False
    """

    def __init__(
        self,
        vae: VAETransformer | dict[str, Any] | None = None,
        *,
        missing_values: Any = np.nan,
        sample_posterior: bool = False,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        n_estimators: int = 1,
        random_state: Any = None,
    ) -> None:
        self.vae = vae
        self.missing_values = missing_values
        self.sample_posterior = sample_posterior
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.n_estimators = n_estimators
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> VAEImputer:
        """Fit the model to the observed values of X.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows with missing values.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.

        Returns
        -------
        self : VAEImputer
            The fitted imputer.

        Raises
        ------
        ValueError
            If a parameter or X is not admissible. The imputer is then left as it was.
        """
        check_parameters("VAEImputer", self.get_params(deep=False), IMPUTER_RULES)
        if np.ndim(self.missing_values) > 0:
            raise ValueError(
                "The 'missing_values' parameter of VAEImputer must be one number or string. "
                f"Got {self.missing_values!r} instead."
            )
        check_model("VAEImputer", self.vae)
        rows, attributes, _ = given(self, *at_hand(self, _not_sparse(X), sample_weight))
        X = rows.X
        missing = where_missing(X, self.missing_values)
        noise = density_noise(missing.shape[1])
        vae = own_model(
            self.vae,
            self.random_state,
            n_components=_n_components(rows),
            likelihood="normal_scores" if noise == "per_column" else "auto",
            noise=noise,
            objective="iwae",
            n_train_samples=8,
        )
        vae.fit(_marked(X, missing), sample_weight=rows.weight)
        table, seed = vae.model_.read(_marked(X, missing)), seed_of(vae.random_state)
        moves = parameter_moves(vae.model_, table, rows.weight, seed, vae.device)
        marked = rows._replace(X=_marked(X, missing))
        bag = bag_of(vae, marked, table, seed, self.n_estimators - 1)
        missing = missing | where_strays(_marked(X, missing), vae.model_.schema)
        indicated, empty = np.flatnonzero(missing.any(axis=0)), missing.all(axis=0)
        if not self.keep_empty_features:
            warn_of_empty(vae.model_.schema.names, np.flatnonzero(empty))
        learned = {
            "vae_": vae,
            "bag_": tuple(bag),
            "_moves": moves,
            "_empty": empty,
            "_indicated": indicated,
            "indicator_": None,
        }
        if self.add_indicator:
            check_indicators(X, indicated)
            holes = np.where(missing, np.nan, 0.0)
            learned["indicator_"] = MissingIndicator(error_on_new=False).fit(holes)
        become(self, attributes | learned)
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Fill what is missing.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows with missing values.

        Returns
        -------
        X_imputed : ndarray or frame of shape (n_samples, n_features_out)
            X with its missing values replaced, as the kind of frame or array that X is.
        """
        now, numbers = fitted_now(self), count()
        seed = seed_of(now.random_state) if now.sample_posterior else None

        def filled(part: Any) -> Any:
            # Parts have noise of their own, and parameters in common.
            number = next(numbers)
            own = None if seed is None else seed + number * MOVES
            return _filled(now, validated(now, _not_sparse(part), reset=False), own)

        return by_parts(filled, X)

    def sample_imputations(
        self, X: ArrayLike, n_imputations: int = 5, random_state: Any = None
    ) -> list[Any]:
        """Draw several completed tables, for multiple imputation (Rubin 1987).

        The draws are proper: each table is drawn by parameters of its own, drawn from their
        approximate posterior given the rows of ``fit``, so that Rubin's rules give intervals that
        cover. After 20 tables the parameters repeat.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows with missing values.
        n_imputations : int, default=5
            Number of tables.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws. None takes the estimator's own, and is fresh where that is None, too.

        Returns
        -------
        tables : list of n_imputations tables
            Each as the kind of frame or array that X is, with values drawn from
            p(x_mis | x_obs).
        """
        now = fitted_now(self)
        X = validated(now, _not_sparse(X), reset=False)
        if not COUNT.admits(n_imputations):
            raise ValueError(f"n_imputations must be {COUNT}. Got {n_imputations!r} instead.")
        seed = seed_of(random_state, now.random_state)
        return [_filled(now, X, seed + number) for number in range(n_imputations)]

    def predict_cells(
        self, X: ArrayLike, quantiles: Sequence[float] = (0.05, 0.5, 0.95)
    ) -> dict[Any, Any]:
        """Return what every cell may be, given the other cells of its row: p(x_d | rest).

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, which may have missing values. What a cell itself holds has no part in its own
            prediction.
        quantiles : sequence of float, default=(0.05, 0.5, 0.95)
            Which quantiles of numbers, between 0 and 1.

        Returns
        -------
        distributions : dict
            For each column, by name or, without names, by number: quantiles of numbers, in original
            units and days, (n_samples, n_quantiles); probabilities of levels, and of 0 and 1,
            (n_samples, n_levels). Arrays, or for pandas frames a frame whose columns are the
            quantiles or the levels.

        Raises
        ------
        ValueError
            If a quantile is not between 0 and 1, or if a likelihood of your own has no ``cdf``.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAEImputer
        >>> X, _ = load_iris(return_X_y=True, as_frame=True)
        >>> cells = VAEImputer(random_state=0).fit(X).predict_cells(X)
        >>> list(cells["petal length (cm)"])
        [0.05, 0.5, 0.95]
        """
        now = fitted_now(self)
        rows: Any = validated(now, _not_sparse(X), reset=False)
        asked: list[Any] = list(quantiles) if np.ndim(quantiles) == 1 else []
        if not asked or not all(isinstance(q, Real) and 0.0 < float(q) < 1.0 for q in asked):
            raise ValueError(
                f"quantiles must be numbers between 0 and 1. Got {quantiles!r} instead."
            )
        vae, missing = now.vae_, where_missing(rows, now.missing_values)
        table = vae.model_.read(_marked(rows, missing), vae.handle_unknown)
        found = cell_distributions(vae.model_, table, asked, vae.device)
        labels = getattr(now, "feature_names_in_", range(now.n_features_in_))
        if library_of(rows) != "pandas":
            return dict(zip(labels, found, strict=True))
        parts = {}
        for number, (label, cells) in enumerate(zip(rows.columns, found, strict=True)):
            names = levels_of(vae.model_, number)
            names = asked if names is None else names
            parts[label] = frame_of(cells, rows.index, names)
        return parts

    def get_feature_names_out(self, input_features: Any = None) -> NDArray:
        """Return the names of the columns of the output.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the columns; None takes those of ``fit``.

        Returns
        -------
        feature_names_out : ndarray of str
            Names of the kept columns, then ``missingindicator_<name>`` of those with an indicator.
        """
        now = fitted_now(self)
        names = _check_feature_names_in(now, input_features)
        kept = names if now.keep_empty_features else names[~now._empty]
        if not now.add_indicator:
            return kept
        indicators = [f"missingindicator_{name}" for name in names[now._indicated]]
        return np.array([*kept, *indicators], dtype=object)

    def _read_by_model(self, X: Any) -> Any:
        X = validated(self, _not_sparse(X), reset=False)
        return _marked(X, where_missing(X, self.missing_values))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = False
        return tags


def _n_components(rows: LabelledRows) -> int | str:
    """Choose how many components impute well: too few of them bias what is drawn."""
    n_columns = rows.X.shape[1]
    if has_levels(rows.X, rows.names):  # whose indicators explain each other: evidence rewards it
        return "auto"
    # Half as many as columns can have almost any covariance (Ledermann 1937).
    return -(-n_columns // 2) if n_columns <= FEW_COLUMNS else "evidence"


def _filled(now: VAEImputer, X: Any, seed: int | None) -> Any:
    """Complete validated rows, by expectations or by draws with a seed."""
    model, missing = now.vae_.model_, where_missing(X, now.missing_values)
    if seed is not None:
        model = moved_model(model, now._moves, seed)
    missing = missing | where_strays(_marked(X, missing), model.schema)
    empty, indicated = now._empty, now._indicated
    rows = np.flatnonzero(missing.any(axis=1))
    # All rows, so that what is wrong in any of them is said.
    table = model.read(_marked(X, missing), now.vae_.handle_unknown)
    how = How(now.vae_.n_importance_samples, now.vae_.device, seed)
    filled = filling([model, *now.bag_], X, table, rows, how, empty=empty)
    kept = np.arange(len(empty)) if now.keep_empty_features else np.flatnonzero(~empty)
    shown = indicated if now.add_indicator else indicated[:0]
    return completed(X, missing, filled, kept, shown)


def _marked(X: Any, missing: NDArray[np.bool_]) -> Any:
    """Return X with its missing values in a form that every estimator knows."""
    hidden = missing & ~where_missing(X)
    return with_missing(X, hidden) if hidden.any() else X


def _not_sparse(X: Any) -> Any:
    if issparse(X):
        raise TypeError(
            "Sparse input is not supported by VAEImputer: a cell that is not stored is 0, not "
            "missing. Use X.toarray()."
        )
    return X
