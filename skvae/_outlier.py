"""VAEOutlierDetector: rows ranked by how odd they are, by scikit-learn's conventions."""

from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from ._frames import take_rows
from ._inputs import read_table, unchanged_on_error, validated
from ._linear_start import MAX_COLUMNS_FOR_COVARIANCE
from ._parameters import Rule, automatic_batch_size, seed_of
from ._resources import own_gradients
from ._transformer import METHODS, Array, VAETransformer

SCORE_METHODS = ("auto", "aggregate", *METHODS)
RULES = {
    "score_method": Rule(SCORE_METHODS),
    "contamination": Rule(("auto",), Real, 0.0, 0.5, open_low=True),
    "support_fraction": Rule((), Real, 0.5, 1.0),
    "calibration_fraction": Rule((), Real, 0.0, 0.5),
}
WITHOUT_DISTANCES = ("categorical", "ordinal")
ROUNDING = 1e-9  # of a score, relative
CONCENTRATION_STEPS = 3
CONCENTRATION_ROWS = 1000  # that a linear model is fitted to in each of them
LEARNING_RATE = 0.003
TRAINING_STEPS = 150  # more gave better densities, but no better ranking: outliers are learnt too
MAX_EPOCHS = 100
SMALL_TABLE = 500  # rows, below which training hardly ever left the linear model
ENOUGH_CALIBRATION = 20  # rows for quartiles


class VAEOutlierDetector(OutlierMixin, BaseEstimator):
    """Outlier and novelty detection by a variational autoencoder, in tables of any columns.

    The model is fitted to the most typical 90% of the rows. Which ones is found by concentration
    steps [1]_, from the half nearest the medians on, with the linear model that the autoencoder
    starts from. A row of numbers is scored by its density under the aggregated posterior [2]_: a
    Gaussian kernel for each row, half-way from it to what encoding and decoding make of it; rows
    that stand alone, at most a tenth, get none. Rows with categories are scored by the ELBO. The
    other scores of the autoencoder are there as ``score_method``.

    Parameters
    ----------
    vae : VAETransformer, default=None
        The model of the table; a clone of it is fitted. None is one with noise per column (up to
        1,500 columns) and about 150 training steps; below 500 rows, none: the linear model.
    score_method : {"auto", "aggregate", "log_likelihood", "elbo", "reconstruction", "kl"}, \
            default="auto"
        What ``score_samples`` returns. ``"aggregate"`` is the density under the aggregated
        posterior; ``"log_likelihood"`` is log p(x) by importance sampling; ``"elbo"`` its lower
        bound; ``"reconstruction"`` the reconstruction probability [3]_; ``"kl"`` minus the
        divergence of the posterior from the prior. ``"auto"`` is ``"elbo"`` for
        tables with categories, between which distances mean little, else ``"aggregate"``. Of counts
        and log-normal columns that is the density of their logarithms.
    contamination : "auto" or float, default="auto"
        Fraction of the rows of ``fit`` that ``predict`` calls outliers, at most 0.5. With
        ``"auto"`` a row is an outlier below the lower Tukey fence of the scores: the first
        quartile less 1.5 interquartile ranges, of the held-out rows where there are 20.
    support_fraction : float, default=0.9
        Fraction of the rows that the model is fitted to, as in
        :class:`sklearn.covariance.MinCovDet`. 1 fits all of them, which is right, and slightly
        better, where the rows are known to be clean.
    calibration_fraction : float, default=0.1
        Fraction of the rows held out of everything, for ``p_values``. With 0 there are none.
    random_state : int, RandomState instance or None, default=None
        Seed of the fit and of the choice of held-out rows.

    Attributes
    ----------
    vae_ : VAETransformer
        The fitted model.
    score_method_ : str
        What ``score_samples`` returns.
    offset_ : float
        Score below which a row is an outlier: ``decision_function = score_samples - offset_``.
    calibration_scores_ : ndarray of shape (n_held_out,)
        Scores of the held-out rows, rising.
    support_ : ndarray of bool of shape (n_samples,)
        Rows of ``fit`` that the model was fitted to.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where they all are strings.

    See Also
    --------
    sklearn.ensemble.IsolationForest : Rows that few random cuts set apart.
    sklearn.covariance.EllipticEnvelope : One robust Gaussian.

    Notes
    -----
    A row's score does not depend on the rows beside it, beyond rounding: 1e-9 of its size.
    Training on typical rows costs four fits of the linear model. ``benchmarks/outliers.py``
    compares with other detectors, and names the data sets where they are better.

    References
    ----------
    .. [1] Rousseeuw & Van Driessen (1999), A fast algorithm for the minimum covariance determinant
           estimator; for likelihoods: Neykov & Mueller (2003), Breakdown point and computation of
           trimmed likelihood estimators; the beginning: Hubert, Rousseeuw & Verdonck (2012), A
           deterministic algorithm for robust location and scatter.
    .. [2] Hoffman & Johnson (2016), ELBO surgery; Norouzi, Fleet & Norouzi (2020), Exemplar VAE.
    .. [3] An & Cho (2015), Variational autoencoder based anomaly detection using reconstruction
           probability.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_wine
    >>> from skvae import VAEOutlierDetector
    >>> X, _ = load_wine(return_X_y=True)
    >>> detector = VAEOutlierDetector(random_state=0).fit(X)
    >>> odd = X[:1].copy()
    >>> odd[0, 4] += 6 * X[:, 4].std()  # too much magnesium
    >>> detector.predict(odd)
    array([-1])
    >>> usual = np.median(detector.score_features(X), axis=0)
    >>> int((detector.score_features(odd) - usual).argmin())  # what is odd about it
    4
    """

    def __init__(
        self,
        vae: VAETransformer | None = None,
        *,
        score_method: str = "auto",
        contamination: float | str = "auto",
        support_fraction: float = 0.9,
        calibration_fraction: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.vae = vae
        self.score_method = score_method
        self.contamination = contamination
        self.support_fraction = support_fraction
        self.calibration_fraction = calibration_fraction
        self.random_state = random_state

    # -- fitting --------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: None = None) -> "VAEOutlierDetector":
        """Fit the model, the threshold and the calibration to X.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, of which up to ``1 - support_fraction`` may be outliers.
        y : None
            Ignored.

        Returns
        -------
        self : VAEOutlierDetector
            The fitted detector.

        Raises
        ------
        ValueError
            If a parameter or X is not admissible. The detector is then left as it was.
        """
        with unchanged_on_error(self), own_gradients():
            self._check_parameters()
            table: Any = validated(self, X, reset=True)
            n_rows, seed = table.shape[0], seed_of(self.random_state)
            generator = np.random.default_rng(seed)
            order = generator.permutation(n_rows)
            n_held_out = int(self.calibration_fraction * n_rows)
            held_out, fitted = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
            model = self._model(len(fitted), table.shape[1], seed)
            # A level that no typical row has is no error in a row of fit.
            handle_unknown, model.handle_unknown = model.handle_unknown, "ignore"
            typical = fitted[self._typical(model, take_rows(table, fitted), generator)]
            self.vae_ = model._fit(take_rows(table, typical), advise=self.vae is not None)
            self.support_ = np.zeros(n_rows, dtype=bool)
            self.support_[typical] = True
            self.score_method_ = self._method()
            self._aggregate = None
            if self.score_method_ == "aggregate":
                self._aggregate = self._kernels(table, fitted, generator)
            calibration: Array = np.zeros(0)
            if n_held_out:
                calibration = np.sort(self._scores(take_rows(table, held_out)))
            self.calibration_scores_ = calibration
            self.offset_ = self._threshold(table)
            model.handle_unknown = handle_unknown
        return self

    def _check_parameters(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            if not rule.admits(value):
                raise ValueError(
                    f"The {name!r} parameter of VAEOutlierDetector must be {rule}. "
                    f"Got {value!r} instead."
                )
        if self.vae is not None and not isinstance(self.vae, VAETransformer):
            raise ValueError(
                f"The 'vae' parameter of VAEOutlierDetector must be a VAETransformer or None. "
                f"Got {self.vae!r} instead."
            )

    def _model(self, n_rows: int, n_columns: int, seed: int) -> VAETransformer:
        if self.vae is not None:
            vae: VAETransformer = clone(self.vae)
            return vae if vae.random_state is not None else vae.set_params(random_state=seed)
        batch_size = automatic_batch_size(n_rows)
        max_iter = int(np.clip(-(-TRAINING_STEPS * batch_size // n_rows), 4, MAX_EPOCHS))
        return VAETransformer(
            noise="per_column" if n_columns <= MAX_COLUMNS_FOR_COVARIANCE else "auto",
            batch_size=batch_size,
            learning_rate_init=LEARNING_RATE,  # a short run is wanted, not a hasty one
            max_iter=0 if n_rows < SMALL_TABLE else max_iter,
            random_state=seed,
        )

    def _typical(
        self, model: VAETransformer, X: Any, generator: np.random.Generator
    ) -> NDArray[np.intp]:
        """The most typical rows under the linear model, which is fitted to such rows alone.

        Each concentration step raises the likelihood of the rows that it keeps. Where they end
        depends on where they begin: from all rows, a cluster of outliers can hold a component. So
        they begin at the half that is nearest the medians (as in DetMCD: Hubert et al. 2012).
        """
        n_rows = X.shape[0]
        n_typical = int(np.ceil(self.support_fraction * n_rows))
        if n_typical == n_rows:
            return np.arange(n_rows)
        linear = clone(model).set_params(max_iter=0, hidden_layer_sizes=(), n_importance_samples=2)

        def fit_to(rows: NDArray[np.intp], noise: str = linear.noise) -> None:
            few = generator.permutation(rows)[:CONCENTRATION_ROWS]
            linear.set_params(noise=noise)._fit(take_rows(X, np.sort(few)), advise=False)

        fit_to(np.arange(n_rows), "shared")  # for its units alone: the fastest
        typical = _highest(_centrality(linear, X), -(-n_rows // 2))
        for _ in range(CONCENTRATION_STEPS):
            fit_to(typical)
            typical = _highest(linear.score_samples(X, refine=False), n_typical)
        return typical

    def _method(self) -> str:
        if self.score_method != "auto":
            return self.score_method
        categories = np.isin(self.vae_.likelihood_, WITHOUT_DISTANCES).any()
        return "elbo" if categories else "aggregate"

    def _kernels(
        self, X: Any, fitted_rows: NDArray[np.intp], generator: np.random.Generator
    ) -> tuple[NDArray, ...]:
        """Kernels at some fitted rows, typical or not: the latter are rebuilt as typical ones."""
        import torch

        from ._aggregate import aggregate_of, n_kernels

        fitted = self.vae_
        vae = fitted._fitted_module()
        n_rows = len(fitted_rows)
        chosen = np.sort(generator.permutation(n_rows)[: n_kernels(n_rows, vae.n_features)])
        rows = fitted_rows[chosen]
        x, observed = fitted._columns.encode(read_table(fitted, take_rows(X, rows)))
        varies = torch.from_numpy(fitted._columns.varies).to(vae.device)
        seen = None if observed is None else torch.from_numpy(observed).to(vae.device)
        on_device = torch.from_numpy(x).to(vae.device)
        aggregate = aggregate_of(vae, on_device, seen, varies, self.support_fraction)
        return tuple(part.numpy(force=True) for part in aggregate)

    def _threshold(self, X: Any) -> float:
        if not isinstance(self.contamination, str):
            return float(np.percentile(self._scores(X), 100.0 * self.contamination))
        scores = self.calibration_scores_
        if len(scores) < ENOUGH_CALIBRATION:
            scores = self._scores(X)
        lower, upper = np.percentile(scores, [25.0, 75.0])
        return float(lower - 1.5 * (upper - lower))

    # -- scores -----------------------------------------------------------------------------------

    def score_samples(self, X: ArrayLike) -> Array:
        """Score each row by ``score_method_``, in nats: higher is more normal.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            Log-densities in original units (``"kl"``: minus a divergence). The same in every call,
            whatever the other rows are.
        """
        check_is_fitted(self)
        return self._scores(validated(self, X, reset=False))

    def decision_function(self, X: ArrayLike) -> Array:
        """How far each row's score lies above the threshold.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        decision : ndarray of shape (n_samples,)
            ``score_samples(X) - offset_``, in nats: negative for outliers.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int_]:
        """Tell outliers from inliers.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        is_inlier : ndarray of int of shape (n_samples,)
            -1 for outliers and 1 for inliers.
        """
        return np.where(self.decision_function(X) < 0.0, -1, 1)

    def p_values(self, X: ArrayLike) -> Array:
        """Split-conformal p-values: how often an inlier scores as low as each row.

        Rows with p <= alpha are called outliers; of inliers that come from where the held-out rows
        come from, at most a fraction alpha is, whatever the model, in finite samples [1]_. The
        p-values of several rows are positively dependent, so that the Benjamini-Hochberg procedure
        (``scipy.stats.false_discovery_control``) controls the false discovery rate [2]_. Outliers
        among the held-out rows make p-values larger: fewer discoveries, no false ones.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            New rows, not those of ``fit``.

        Returns
        -------
        p : ndarray of shape (n_samples,)
            (1 + number of held-out rows that score no higher) / (1 + number of held-out rows).

        Raises
        ------
        ValueError
            If no rows were held out.

        References
        ----------
        .. [1] Laxhammar & Falkman (2010), Conformal prediction for distribution-independent anomaly
               detection.
        .. [2] Bates, Candes, Lei, Romano & Sesia (2023), Testing for outliers with conformal
               p-values, theorem 2.
        """
        scores = self.score_samples(X)
        n_held_out = len(self.calibration_scores_)
        if n_held_out == 0:
            raise ValueError(
                "p_values needs rows that were held out of the fit, and there are none: "
                f"calibration_fraction={self.calibration_fraction} of {len(self.support_)} rows. "
                "Fit with more rows or a larger calibration_fraction."
            )
        # A row that ties with a held-out one ties whatever rounding the rows beside it bring.
        ties = scores + ROUNDING * (1.0 + np.abs(scores))
        no_higher = np.searchsorted(self.calibration_scores_, ties, side="right")
        return (1.0 + no_higher) / (1.0 + n_held_out)

    def score_features(self, X: ArrayLike) -> Array:
        """Say which columns make a row odd, as :meth:`VAETransformer.score_features`.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_features)
            Expected log p(x_d | z) under the encoder, in nats and original units: the lower, the
            odder. Columns differ in what is usual for them: compare with the training rows'
            medians. A row's sum is its ``"reconstruction"`` score.
        """
        check_is_fitted(self)
        return self.vae_.score_features(validated(self, X, reset=False))

    def _scores(self, X: Any) -> Array:
        if self.score_method_ != "aggregate":
            return self.vae_.score_samples(X, method=self.score_method_)
        import torch

        from ._aggregate import Aggregate, aggregate_log_density

        fitted = self.vae_
        vae = fitted._fitted_module()
        kernels = [torch.from_numpy(part).to(vae.device) for part in self._aggregate or ()]
        aggregate = Aggregate(*kernels)
        table = read_table(fitted, X)
        function = partial(aggregate_log_density, vae, aggregate=aggregate)
        widest = max(parameter.shape[0] for parameter in vae.parameters())
        per_row = -(-len(aggregate.center) // widest)  # its largest array has a number a kernel
        (scores,) = fitted._by_chunks(function, table, vae, per_row)
        return scores + fitted._columns.log_jacobian_of(table)

    # -- scikit-learn's conventions ---------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _highest(scores: Array, number: int) -> NDArray[np.intp]:
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - number :])


def _centrality(fitted: VAETransformer, X: Any) -> Array:
    """Minus the mean square of each row's cells, in robust units."""
    from ._scoring import negative_distance

    vae = fitted._fitted_module()
    return fitted._by_chunks(partial(negative_distance, vae), read_table(fitted, X), vae)[0]
