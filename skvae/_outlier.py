"""VAEOutlierDetector: rows ranked by how odd they are, by scikit-learn's conventions."""

from __future__ import annotations  # help() shows ArrayLike by its name

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin

from ._advice import warn
from ._by_parts import ByParts, at_hand, by_parts
from ._calibration import Calibration, discoveries
from ._composed import WithModel, check_model
from ._detector import Recipe
from ._explanation import Explanation, as_frame, explained, explanation
from ._inputs import become, fitted_now, given, validated
from ._parameters import DETECTOR_RULES, check_parameters, seed_of
from ._resources import own_gradients
from ._table.column import Array
from ._table.frames import has_pandas
from ._transformer import VAETransformer
from ._versions import Versioned

FEWEST_CALIBRATION = 19  # rows: with fewer, no p-value is 0.05


class VAEOutlierDetector(WithModel, ByParts, Versioned, OutlierMixin, BaseEstimator):
    """Outlier and novelty detection by a variational autoencoder, in tables of any columns.

    A row is scored by its density among the rows of fit: a heavy-tailed kernel at each of them, in
    the metric of the linear model that the autoencoder starts from. That is the distance between
    rows beside the distance between what the model cannot reproduce of them [1]_. So two kinds of
    row are odd: those far from all others, and those whose columns do not go together. A kernel is
    as wide as its neighbourhood, and weighs the less the further it is from most rows: outliers
    among the rows of fit hardly hide each other. ``score_method`` has the other scores.

    Labels and p-values hold for new rows: each row of fit is scored by the others, and in tables of
    less than 20 rows for each feature, by a model that was fitted without it [2]_. The other scores
    are always by such models (up to 10,000 rows), which takes six fits.

    Parameters
    ----------
    vae : VAETransformer, dict or None, default=None
        The model of the table; a clone of it is fitted. None is the linear model with noise per
        column (up to 1,500 columns) and up to 50 components, two for three columns. For the other
        scores it trains for about 150 steps, from 500 rows on. A dict says in which parameters
        the model differs from that; ``set_params(vae__n_components=3)`` writes it.
    score_method : {"auto", "aggregate", "log_likelihood", "elbo", "reconstruction", "kl"}, \
            default="auto"
        What ``score_samples`` returns. ``"auto"`` is ``"aggregate"``, the density among the rows of
        fit; ``"log_likelihood"`` is log p(x) by importance sampling; ``"elbo"`` its lower bound;
        ``"reconstruction"`` the reconstruction probability [3]_; ``"kl"`` minus the divergence of
        the posterior from the prior.
    contamination : "auto" or float, default="auto"
        Fraction of the rows of ``fit``, and of new ones like them, that ``predict`` calls outliers,
        at most 0.5. With ``"auto"`` a row is an outlier below the lower Tukey fence of the scores
        of the rows of fit: the first quartile less 1.5 interquartile ranges.
    support_fraction : "auto" or float, default="auto"
        ``"auto"`` fits all rows, and lets the weights of the kernels say which are outliers: from
        the scores alone it cannot be read how many there are. A number fits the model, and places
        kernels, at the most typical rows only, by concentration steps [4]_ as in
        :class:`sklearn.covariance.MinCovDet`: better where many are outliers, worse where none is.
    fdr : float, default=None
        If given, ``predict`` calls rows outliers by the Benjamini-Hochberg procedure on their
        p-values: of these, at most this share is expected to be inliers. ``contamination`` has to
        be "auto" then.
    random_state : int, RandomState instance or None, default=None
        Seed of the fit. The linear model has no random part.

    Attributes
    ----------
    vae_ : VAETransformer
        The fitted model.
    score_method_ : str
        What ``score_samples`` returns.
    offset_ : float
        Score below which a row is an outlier: ``decision_function = score_samples - offset_``.
    calibration_scores_ : ndarray of shape (n_samples,)
        Scores of the rows of fit, rising: each by the others, as a new row.
    support_ : ndarray of bool of shape (n_samples,)
        Rows of ``fit`` that the model was fitted to.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where they all are strings.

    See Also
    --------
    sklearn.ensemble.IsolationForest : Rows that few random cuts set apart.
    sklearn.covariance.EllipticEnvelope : One robust Gaussian.

    Notes
    -----
    A row's score does not depend on the rows beside it, beyond rounding: 1e-9 of its size. A row
    that equals a row of fit is scored by the others, so that ``score_samples`` of the rows of fit
    gives ``calibration_scores_``. But where a twentieth of the rows of fit are copies of others, a
    new row may be one, too: it is then scored by all, and only ``fit_predict`` knows rows of fit.
    Copies are rows of their own where no column tells the rows apart, as in tables of few levels;
    else it is one row that was entered more often. Kernels stand at up to 4,000 rows.

    Of columns of numbers the score is log p(x) in nats and original units, and integrates to one;
    of counts and log-normal columns that is the density of their logarithms. Levels of categories
    are indicators in the metric: scores then rank rows, but are no log-probabilities.

    A missing cell is marginalised, and adds to the score what a cell of its column adds, given the
    others, in the mean of typical rows: it makes a row neither odd nor typical, in any unit.
    ``benchmarks/outliers.py`` compares with other detectors, and names the data sets where they are
    better.

    References
    ----------
    .. [1] Vincent & Bengio (2003), Manifold Parzen windows; Breiman, Meisel & Purcell (1977),
           Variable kernel estimates of multivariate densities.
    .. [2] Vovk (2015), Cross-conformal predictors; Barber, Candes, Ramdas & Tibshirani (2021),
           Predictive inference with the jackknife+.
    .. [3] An & Cho (2015), Variational autoencoder based anomaly detection using reconstruction
           probability.
    .. [4] Rousseeuw & Van Driessen (1999), A fast algorithm for the minimum covariance determinant
           estimator; for likelihoods: Neykov & Mueller (2003), Breakdown point and computation of
           trimmed likelihood estimators.

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
    >>> int(detector.score_features(odd).argmin())  # what is odd about it
    4
    """

    def __init__(
        self,
        vae: VAETransformer | dict[str, Any] | None = None,
        *,
        score_method: str = "auto",
        contamination: float | str = "auto",
        support_fraction: float | str = "auto",
        fdr: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.vae = vae
        self.score_method = score_method
        self.contamination = contamination
        self.support_fraction = support_fraction
        self.fdr = fdr
        self.random_state = random_state

    # -- fitting --------------------------------------------------------------------------------

    def fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> VAEOutlierDetector:
        """Fit the model, the threshold and the calibration to X.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, of which some may be outliers; or a file or another source (``docs/scale.md``).
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts: in the model, in the density, and among the rows that say
            what is usual. None: once.

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
            check_model("VAEOutlierDetector", self.vae)
            self._check_rule()
            data = given(self, *at_hand(self, X, sample_weight))
            fraction = None if isinstance(self.support_fraction, str) else self.support_fraction
            recipe = Recipe(self.vae, self._method(), fraction, seed_of(self.random_state))
            learned = recipe.fit(data.rows)
        support = np.zeros(len(data.counts), dtype=bool)
        support[data.counts] = learned.support
        become(
            self,
            {
                **data.attributes,
                "vae_": learned.vae,
                "score_method_": learned.score.method,
                "support_": support,
                "_score": learned.score,
                "_usual": learned.usual,
                **self._calibrated(learned.calibration),
                "calibration_scores_": np.sort(learned.scores),
            },
        )
        return self

    def _calibrated(self, calibration: Calibration) -> dict[str, Any]:
        asked = self.contamination
        offset = calibration.fence() if isinstance(asked, str) else calibration.quantile(asked)
        return {
            "offset_": offset,
            "calibration_scores_": calibration.scores,
            "_calibration": calibration,
        }

    def _method(self) -> str:
        return "aggregate" if self.score_method == "auto" else self.score_method

    def _check_rule(self) -> None:
        check_parameters("VAEOutlierDetector", self.get_params(deep=False), DETECTOR_RULES)
        if self.fdr is not None and not isinstance(self.contamination, str):
            raise ValueError(
                "predict follows one rule, contamination or fdr. Got "
                f"contamination={self.contamination} and fdr={self.fdr}: leave one of them at its "
                "default."
            )

    def update_calibration(self, X: ArrayLike) -> VAEOutlierDetector:
        """Take new rows for what is usual: for labels and p-values after a drift.

        The model and its scores stay as they are, ``offset_`` and ``calibration_scores_`` become
        those of X. There is no ``partial_fit``: a kernel density grows with the rows it has seen.
        Fit anew to learn what is usual from more rows.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows that were not in ``fit``, in the units of the training rows.

        Returns
        -------
        self : VAEOutlierDetector
            The detector with the new threshold.
        """
        now, _, scores = _scored(self, X)
        now._check_rule()
        become(self, now._calibrated(Calibration.of(scores, np.ones(len(scores)))))
        return self

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
        return _scored(self, X)[2]

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
        now, _, scores = _scored(self, X)
        tied = scores == now.offset_  # both may be minus infinity
        return np.where(tied, 0.0, scores) - np.where(tied, 0.0, now.offset_)

    def predict(self, X: ArrayLike) -> NDArray[np.int_]:
        """Tell outliers from inliers.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        is_inlier : ndarray of int of shape (n_samples,)
            -1 for outliers and 1 for inliers. With ``fdr``, whether a row is an outlier depends on
            the rows that are given with it.
        """
        now = fitted_now(self)
        return now._labels(now.score_samples(X))

    def fit_predict(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> NDArray[np.int_]:
        """Fit to X, and tell outliers from inliers among its rows.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, of which some may be outliers; or a file or another source (``docs/scale.md``).
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            As in :meth:`fit`.

        Returns
        -------
        is_inlier : ndarray of int of shape (n_samples,)
            -1 for outliers and 1 for inliers, each by its score by the other rows.
        """
        now = fitted_now(self.fit(X, sample_weight=sample_weight))
        return now._labels(by_parts(lambda rows: _scored(now, rows, of_fit=True)[2], X))

    def _labels(self, scores: Array) -> NDArray[np.int_]:
        self._check_rule()
        if self.fdr is None:
            return np.where(scores < self.offset_, -1, 1)
        return np.where(discoveries(self._calibration.p_values(scores), self.fdr), -1, 1)

    def p_values(self, X: ArrayLike) -> Array:
        """Return conformal p-values: how often an inlier scores as low as each row.

        Rows with p <= alpha are called outliers; of inliers that come from where the rows of fit
        come from, about a fraction alpha is, or less, whatever the model [1]_. The p-values of
        several rows are positively dependent, so that the Benjamini-Hochberg procedure (``fdr``)
        controls the false discovery rate [2]_. Outliers among the rows of fit make p-values larger:
        fewer discoveries, no false ones.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        p : ndarray of shape (n_samples,)
            (1 + number of rows of fit that score no higher) / (1 + number of rows of fit), where
            these scores are by the others, as ``calibration_scores_``. Copies of a row and weights
            are shares there: together they count as the rows that they are worth.

        References
        ----------
        .. [1] Vovk (2015), Cross-conformal predictors; Barber, Candes, Ramdas & Tibshirani (2021),
               Predictive inference with the jackknife+.
        .. [2] Bates, Candes, Lei, Romano & Sesia (2023), Testing for outliers with conformal
               p-values, theorem 2.
        """
        now, _, scores = _scored(self, X)
        n_rows = len(now.calibration_scores_)
        if n_rows < FEWEST_CALIBRATION:
            warn(
                f"The smallest possible p-value is {1.0 / (1.0 + n_rows):.2g}, because fit had "
                f"only {n_rows} rows. Fit with more rows."
            )
        return now._calibration.p_values(scores)

    def explain(self, X: ArrayLike) -> Any:
        """Say what makes rows odd, a cell at a time.

        A cell is judged by the others of its row: by the linear-Gaussian model that the autoencoder
        starts from, and by how far ordinary rows are from what it expects.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        explanation : pandas.DataFrame or Explanation
            A row for each cell, indexed by row and column, with its ``value`` and

            - ``share``: what it makes its row odder, in nats; a row's shares add up to the score of
              a typical row (the median of those of fit, each as often as it counts) less its own,
            - ``expected``: what the other cells of the row lead one to expect,
            - ``lower`` and ``upper``: between what 90% of ordinary rows with these other cells
              would lie (nan for categories and truth values),
            - ``likely``: the same for these, a tuple of levels (None for numbers).

            Without pandas, the last five as arrays of shape (n_samples, n_features).

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from skvae import VAEOutlierDetector
        >>> X, _ = load_wine(return_X_y=True, as_frame=True)
        >>> detector = VAEOutlierDetector(random_state=0).fit(X)
        >>> odd = X.head(1).copy()
        >>> odd["magnesium"] += 90
        >>> detector.explain(odd).loc[0]["share"].idxmax()
        'magnesium'
        """
        now, rows, scores = _scored(self, X)
        found = _explanation(now, rows, scores)
        if not has_pandas():
            return found
        names = getattr(now, "feature_names_in_", range(now.n_features_in_))
        return as_frame(found, rows, getattr(rows, "columns", names))

    def score_features(self, X: ArrayLike) -> Array:
        """Say which columns make a row odd: minus the shares of :meth:`explain`.

        Parameters
        ----------
        X : array-like or frame of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_features)
            In nats: the lower, the odder. A row's sum is its score less that of a typical row.
        """
        now, rows, scores = _scored(self, X)
        return -_explanation(now, rows, scores).share

    # -- scikit-learn's conventions ---------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _scored(detector: VAEOutlierDetector, X: Any, of_fit: bool = False) -> tuple[Any, Any, Array]:
    """Return a detector's state as it is now, X as it was validated, and its scores."""
    now = fitted_now(detector)
    X = validated(now, X, reset=False)
    unknown = "ignore" if of_fit else now.vae_.handle_unknown
    return now, X, now._score.of(now.vae_, X, unknown, of_fit=of_fit)


def scoring_of(now: VAEOutlierDetector) -> Any:
    """Return the ``RowScore`` of a fitted detector, as it is now."""
    return now._score


def _explanation(now: VAEOutlierDetector, X: Any, scores: Array) -> Explanation:
    table, unseen = now.vae_.model_.read_all(X, now.vae_.handle_unknown)
    cells = explained(now.vae_, table, now._usual)
    return explanation(now.vae_, cells, unseen, now._calibration.quantile(0.5) - scores)
