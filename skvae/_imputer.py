"""VAEImputer: missing values from what the rest of the row says, by scikit-learn's conventions."""

from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted

from ._frames import Schema, completed, library_of, take_rows, where_missing, with_missing
from ._inputs import counted, read_table, training_weight, unchanged_on_error, validated
from ._linear_start import MAX_COLUMNS_FOR_COVARIANCE
from ._parameters import Rule, seed_of
from ._transformer import VAETransformer

RULES = {
    "add_indicator": Rule((True, False)),
    "keep_empty_features": Rule((True, False)),
    "sample_posterior": Rule((True, False)),
}
COUNT = Rule((), Integral, 1)


class VAEImputer(TransformerMixin, BaseEstimator):
    """Impute missing values by a variational autoencoder, in tables of any columns.

    A missing value is replaced by its expectation given the observed values of its row,
    E[x_mis | x_obs], estimated by self-normalised importance sampling [1]_; a missing category by
    its most probable level. What is observed comes back bit by bit, in the frame and dtypes that
    it came in.

    Parameters
    ----------
    vae : VAETransformer, default=None
        The model of the table; a clone of it is fitted. None is one with noise per column (up to
        1,500 columns), trained on the importance-weighted bound.
    missing_values : scalar, default=nan
        What stands for a missing value in X; nan is also None, ``pd.NA`` and null.
    sample_posterior : bool, default=False
        Draw each missing value from p(x_mis | x_obs) instead of taking its expectation.
    add_indicator : bool, default=False
        Append a column of 0 and 1 for each column that had missing values in ``fit``, as
        :class:`sklearn.impute.MissingIndicator`.
    keep_empty_features : bool, default=False
        Keep columns that were empty in ``fit``: filled with 0 (categories without a level stay
        missing). They are dropped otherwise.
    random_state : int, RandomState instance or None, default=None
        Seed of the fit, and of the draws.

    Attributes
    ----------
    vae_ : VAETransformer
        The fitted model.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
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
        vae: VAETransformer | None = None,
        *,
        missing_values: Any = np.nan,
        sample_posterior: bool = False,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        random_state: Any = None,
    ) -> None:
        self.vae = vae
        self.missing_values = missing_values
        self.sample_posterior = sample_posterior
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> "VAEImputer":
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
        with unchanged_on_error(self):
            self._check_parameters()
            X = validated(self, _not_sparse(X), reset=True)
            X, weight = counted(X, training_weight(sample_weight, X))
            missing = where_missing(X, self.missing_values)
            rows = self._marked(X, missing)
            vae = self._model(missing.shape[1]).fit(rows, sample_weight=weight)
        self.vae_ = vae
        self._empty = missing.all(axis=0)
        self._indicated = np.flatnonzero(missing.any(axis=0))
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
        X, missing = self._check_new_rows(X)
        seed = seed_of(self.random_state) if self.sample_posterior else None
        return self._finished(X, missing, seed)

    def sample_imputations(
        self, X: ArrayLike, n_imputations: int = 5, random_state: Any = None
    ) -> list[Any]:
        """Draw several completed tables, for multiple imputation (Rubin 1987).

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows with missing values.
        n_imputations : int, default=5
            Number of tables.
        random_state : int, RandomState instance or None, default=None
            Seed of the draws. None is fresh every time.

        Returns
        -------
        tables : list of n_imputations tables
            Each as ``transform`` returns it, with values drawn from p(x_mis | x_obs).
        """
        X, missing = self._check_new_rows(X)
        if not COUNT.admits(n_imputations):
            raise ValueError(f"n_imputations must be {COUNT}. Got {n_imputations!r} instead.")
        seed = seed_of(random_state)
        return [self._finished(X, missing, seed + number) for number in range(n_imputations)]

    def _check_parameters(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.admits(value):
                raise ValueError(
                    f"The {name!r} parameter of VAEImputer must be {rule}. Got {value!r} instead."
                )
        if np.ndim(self.missing_values) > 0:
            raise ValueError(
                "The 'missing_values' parameter of VAEImputer must be one number or string. "
                f"Got {self.missing_values!r} instead."
            )
        if self.vae is not None and not isinstance(self.vae, VAETransformer):
            raise ValueError(
                f"The 'vae' parameter of VAEImputer must be a VAETransformer or None. "
                f"Got {self.vae!r} instead."
            )

    def _model(self, n_columns: int) -> VAETransformer:
        if self.vae is None:
            return VAETransformer(
                noise="per_column" if n_columns <= MAX_COLUMNS_FOR_COVARIANCE else "auto",
                objective="iwae",
                n_train_samples=8,
                random_state=self.random_state,
            )
        vae: VAETransformer = clone(self.vae)
        return (
            vae if vae.random_state is not None else vae.set_params(random_state=self.random_state)
        )

    def _check_new_rows(self, X: Any) -> tuple[Any, NDArray[np.bool_]]:
        check_is_fitted(self)
        X = validated(self, _not_sparse(X), reset=False)
        return X, where_missing(X, self.missing_values)

    def _marked(self, X: Any, missing: NDArray[np.bool_]) -> Any:
        """X with its missing values in a form that every estimator knows."""
        hidden = missing & ~where_missing(X)
        return with_missing(X, hidden) if hidden.any() else X

    def _finished(self, X: Any, missing: NDArray[np.bool_], seed: int | None) -> Any:
        rows = np.flatnonzero(missing.any(axis=1))
        filled = None
        if len(rows):
            generator = None if seed is None else np.random.default_rng(seed)
            table = self._conditional(take_rows(self._marked(X, missing), rows), seed)
            filled = _schema_for(self.vae_._schema, X).write(table, generator)
        kept = np.arange(self.n_features_in_)
        if not self.keep_empty_features:
            kept = np.flatnonzero(~self._empty)
        indicated = self._indicated if self.add_indicator else self._indicated[:0]
        return completed(X, missing, rows, filled, kept, indicated)

    def _conditional(self, X: Any, seed: int | None) -> NDArray[np.floating]:
        """Every cell of the rows given the observed ones: its expectation, or a draw (seeded)."""
        import torch

        from ._scoring import conditional_draws, conditional_means

        fitted = self.vae_
        vae = fitted._fitted_module()
        n_samples = fitted.n_importance_samples
        if seed is None:
            function = partial(conditional_means, vae, bank=fitted._noise_bank(vae))
        else:
            generator = torch.Generator(vae.device).manual_seed(seed)
            function = partial(conditional_draws, vae, n_samples=n_samples, generator=generator)
        (cells,) = fitted._by_chunks(function, read_table(fitted, X), vae, n_samples)
        decoded = fitted._columns.decode(cells)
        numbers = np.array([column.kind != "category" for column in fitted._schema.columns])
        decoded[:, self._empty & numbers] = 0.0
        return decoded

    def get_feature_names_out(self, input_features: Any = None) -> NDArray:
        """Names of the columns of the output.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the columns; None takes those of ``fit``.

        Returns
        -------
        feature_names_out : ndarray of str
            Names of the kept columns, then ``missingindicator_<name>`` of those with an indicator.
        """
        check_is_fitted(self)
        names = _check_feature_names_in(self, input_features)
        kept = names if self.keep_empty_features else names[~self._empty]
        if not self.add_indicator:
            return kept
        indicators = [f"missingindicator_{name}" for name in names[self._indicated]]
        return np.array([*kept, *indicators], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = False
        return tags


def _schema_for(schema: Schema, X: Any) -> Schema:
    """The fitted one; writing to what X is where that is another kind of frame or array."""
    library = library_of(X)
    if library == schema.library:
        return schema
    return replace(schema, library=library, template=None if library is None else X.head(0))


def _not_sparse(X: Any) -> Any:
    if issparse(X):
        raise TypeError(
            "Sparse input is not supported by VAEImputer: a cell that is not stored is 0, not "
            "missing. Use X.toarray()."
        )
    return X
