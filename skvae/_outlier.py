"""VAEOutlierDetector: rows ranked by how odd they are, by scikit-learn's conventions."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin

from ._advice import warn
from ._composed import own_model, quietly_fitted
from ._detection import (
    RowScore,
    expected_of_missing,
    least_expected,
    log_share_of_levels,
)
from ._fitted import Fitted
from ._health import warn_about_columns
from ._inputs import Given, become, fitted_now, given, validated
from ._parameters import (
    DETECTOR_RULES,
    automatic_batch_size,
    check_model,
    check_parameters,
    density_noise,
    seed_of,
)
from ._resources import own_gradients
from ._table.column import Array
from ._table.frames import take_rows
from ._table.schema import LabelledRows, without_strays
from ._transformer import VAETransformer, check_transformer
from ._versions import Versioned

ROUNDING = 1e-9  # of a score, relative
CONCENTRATION_STEPS = 3
CONCENTRATION_ROWS = 1000  # that a linear model is fitted to in each of them
SHORT_RUN_RATE = 0.003  # a short run is wanted, not a hasty one
SHORT_RUN_STEPS = 150  # more gave better densities, but no better ranking: outliers are learnt too
SHORT_RUN_EPOCHS = 100  # at most
LINEAR_BELOW = 500  # rows, where training hardly ever left the linear model
EXPECTED_ROWS = 200  # that say what a missing cell would have added to the score
ENOUGH_CALIBRATION = 20  # rows for quartiles
FEWEST_CALIBRATION = 19  # held-out rows: with fewer, no p-value is 0.05


class VAEOutlierDetector(Versioned, OutlierMixin, BaseEstimator):
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
    A row of ``fit`` that has a kernel is scored by the others, so that it is no denser than a new
    row of the same kind, and ``contamination`` holds for these, too. A missing cell adds to the
    score what a cell of its column adds, given the others, in the mean of typical rows: it makes a
    row neither odd nor typical, in any unit.
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
        with own_gradients():
            check_parameters("VAEOutlierDetector", self.get_params(deep=False), DETECTOR_RULES)
            check_model("VAEOutlierDetector", self.vae, VAETransformer)
            data = given(self, X)
            learned = self._learned(data, seed_of(self.random_state))
        become(self, data.attributes | learned)
        return self

    def _learned(self, data: Given, seed: int) -> dict[str, Any]:
        """Fit the model, the threshold and the calibration: every fitted attribute."""
        from ._fitting import fit_table

        rows, generator = data.rows.X, np.random.default_rng(seed)
        n_rows = rows.shape[0]
        order = generator.permutation(n_rows)
        n_held_out = int(self.calibration_fraction * n_rows)
        held_out, fitted = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
        model = self._model(len(fitted), rows.shape[1], seed)
        check_transformer(model)
        # Of all rows, so that errors name them as X has them, and columns are what all rows say.
        schema, *_ = fit_table(model.get_params(deep=False), data.rows)
        rows = without_strays(rows, schema)
        data = data._replace(rows=data.rows._replace(X=rows))
        # No name for the copy of these rows: it goes when it is done with.
        typical = fitted[self._typical(model, _some_of(data.rows, fitted), generator)]
        vae = self._fitted_model(model, take_rows(rows, typical))
        become(vae, vars(vae) | {"model_": vae.model_.with_strays(schema)})
        warn_about_columns(vae.model_.schema)
        method = self._method(vae)
        score = RowScore(method)
        if method == "aggregate":
            score = score.with_kernels(vae, rows, fitted, self.support_fraction, generator)
        some = typical[:: -(-len(typical) // EXPECTED_ROWS)]  # from all over: rows have an order
        score = score.with_expectations(vae, take_rows(rows, some))
        calibration: Array = np.zeros(0)
        if n_held_out:
            calibration = np.sort(score.of(vae, take_rows(rows, held_out)))
        return {
            "vae_": vae,
            "score_method_": method,
            "offset_": self._threshold(calibration, lambda: score.of(vae, rows)),
            "calibration_scores_": calibration,
            "support_": np.isin(np.arange(n_rows), typical),
            "_score": score,
        }

    def _model(self, n_rows: int, n_columns: int, seed: int) -> VAETransformer:
        batch_size = automatic_batch_size(n_rows)
        max_iter = int(np.clip(-(-SHORT_RUN_STEPS * batch_size // n_rows), 4, SHORT_RUN_EPOCHS))
        return own_model(
            self.vae,
            seed,
            noise=density_noise(n_columns),
            batch_size=batch_size,
            learning_rate_init=SHORT_RUN_RATE,
            max_iter=0 if n_rows < LINEAR_BELOW else max_iter,
        )

    def _fitted_model(self, model: VAETransformer, X: Any) -> VAETransformer:
        return model.fit(X) if self.vae is not None else quietly_fitted(model, given(model, X))

    def _typical(
        self, model: VAETransformer, rows: LabelledRows, generator: np.random.Generator
    ) -> NDArray[np.intp]:
        """Return the most typical rows under the linear model, which is fitted to such rows alone.

        Each concentration step raises the likelihood of the rows that it keeps. Where they end
        depends on where they begin: from all rows, a cluster of outliers can hold a component. So
        they begin at the half that is nearest the medians (as in DetMCD: Hubert et al. 2012). That
        a level is rare makes its rows no less typical: else none of them would be learnt.
        """
        from ._fitting import fit

        n_rows = rows.X.shape[0]
        n_typical = int(np.ceil(self.support_fraction * n_rows))
        if n_typical == n_rows:
            return np.arange(n_rows)
        linear = {**model.get_params(deep=False), "max_iter": 0, "hidden_layer_sizes": ()}

        def fitted_to(typical: NDArray[np.intp], noise: str = model.noise) -> tuple[Fitted, Any]:
            few = np.sort(generator.permutation(typical)[:CONCENTRATION_ROWS])
            fitted, _ = fit({**linear, "noise": noise}, _some_of(rows, few), seed=0)
            return fitted, fitted.read(rows.X)

        fitted, table = fitted_to(np.arange(n_rows), "shared")  # for its units alone: the fastest
        typical = _highest(fitted.centrality(table, model.device), -(-n_rows // 2))
        for _ in range(CONCENTRATION_STEPS):
            fitted, table = fitted_to(typical)
            scores, _ = fitted.score(table, n_samples=2, refine=False, device=model.device)
            scores = scores + expected_of_missing(table, least_expected(fitted.columns))
            scores = scores - log_share_of_levels(table, fitted.columns)
            typical = _highest(scores, n_typical)
        return typical

    def _method(self, vae: VAETransformer) -> str:
        if self.score_method != "auto":
            return self.score_method
        categories = any(vae.model_.columns.kinds.n_levels)  # distances mean little between levels
        return "elbo" if categories else "aggregate"

    def _threshold(self, calibration: Array, of_fit: Callable[[], Array]) -> float:
        """Return the offset; ``of_fit`` scores all rows of ``fit``."""
        if not isinstance(self.contamination, str):
            return float(np.percentile(of_fit(), 100.0 * self.contamination))
        scores = calibration if len(calibration) >= ENOUGH_CALIBRATION else of_fit()
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
        return _scored(self, X)[1]

    def decision_function(self, X: ArrayLike) -> Array:
        """Return how far each row's score lies above the threshold.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        decision : ndarray of shape (n_samples,)
            ``score_samples(X) - offset_``, in nats: negative for outliers.
        """
        now, scores = _scored(self, X)
        return scores - now.offset_

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
        """Return split-conformal p-values: how often an inlier scores as low as each row.

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
        now, scores = _scored(self, X)
        n_held_out = len(now.calibration_scores_)
        if n_held_out == 0:
            raise ValueError(
                "p_values needs rows that were held out of the fit, and there are none: "
                f"calibration_fraction={now.calibration_fraction} of {len(now.support_)} rows. "
                "Fit with more rows or a larger calibration_fraction."
            )
        if n_held_out < FEWEST_CALIBRATION:
            warn(
                f"No p-value is below {1.0 / (1.0 + n_held_out):.2g}: {n_held_out} rows were held "
                "out. Fit with more rows or a larger calibration_fraction."
            )
        # Rounding depends on the rows beside a row: scores this close to each other are ties.
        ties = scores + ROUNDING * (1.0 + np.abs(scores))
        no_higher = np.searchsorted(now.calibration_scores_, ties, side="right")
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
        now = fitted_now(self)
        return now.vae_.score_features(validated(now, X, reset=False))

    # -- scikit-learn's conventions ---------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _scored(detector: VAEOutlierDetector, X: Any) -> tuple[VAEOutlierDetector, Array]:
    """Return a detector's state as it is now, and the scores of X."""
    now = fitted_now(detector)
    X = validated(now, X, reset=False)
    return now, now._score.of(now.vae_, X, now.vae_.handle_unknown)


def _some_of(rows: LabelledRows, index: NDArray[np.intp]) -> LabelledRows:
    return rows._replace(X=take_rows(rows.X, index), weight=rows.weight[index])


def _highest(scores: Array, number: int) -> NDArray[np.intp]:
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - number :])
