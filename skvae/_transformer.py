"""VAETransformer: the estimator. scikit-learn's conventions live here; torch is imported inside."""

from __future__ import annotations  # help() shows ArrayLike by its name

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array

from ._by_parts import ByParts
from ._callbacks import CallbackSupportMixin, Listeners, with_callbacks
from ._conditions import How, check_drawn, drawn_given, drawn_rows
from ._effects import WithEffects
from ._health import warn_about_columns, warn_about_divergence, warn_about_estimates, warn_about_fit
from ._html import Shown
from ._inputs import (
    attributes_of,
    become,
    check_transformer,
    columns_shown,
    fitted_now,
    given,
    model_attributes,
    snapshot,
    validated,
)
from ._parameters import COUNT, check_score, seed_of
from ._resources import own_gradients
from ._table.column import Array
from ._table.frames import float_dtype
from ._table.unseen import with_cost
from ._versions import Versioned


class VAETransformer(
    Versioned,
    Shown,
    WithEffects,
    ByParts,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Dimensionality reduction, density and generation by a variational autoencoder.

    The model [1]_ starts as the maximum-likelihood linear one, probabilistic PCA [2]_ or factor
    analysis, and learns what a linear model cannot. Rows are held out while it trains, and the
    linear start is kept if nothing beats it.

    Columns are standardised inside; rows keep the user's units. Scores are in nats: more is better.

    Parameters
    ----------
    n_components : int, "auto" or "evidence", default="auto"
        Number of components K of z, at most one a column, or a level. ``"auto"`` is a third of the
        columns, at most 10, and at most a third of the distinct rows: enough for codes.
        ``"evidence"`` is for densities: the smallest number with which the linear model's
        log-density of held-out rows is within a standard error of the best (see ``evidence_``).
    hidden_layer_sizes : "auto" or sequence of int, default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. ``"auto"`` is
        (128, 128) below 100 columns and (256, 256) from there; ``()`` is the linear model.
    activation : {"gelu", "relu", "silu", "tanh"}, default="gelu"
        Activation of the hidden layers.
    likelihood : str, Likelihood or dict, default="auto"
        Distribution p(x | z) of the columns: "gaussian", "student_t", "log_normal", "bernoulli",
        "categorical", "ordinal", "poisson", "negative_binomial", "multinomial" (of all columns
        together), "normal_scores", an instance (see :mod:`skvae.likelihoods`), or
        ``{column: one of these}`` with names or numbers of columns.
        ``"auto"``, also for columns that a dict leaves out, is categorical for categories,
        Bernoulli for booleans and for numbers that are only ever 0 and 1, Student-t for numbers
        with heavy tails (0.5 to 10% of the cells lie more than ten robust standard deviations from
        the median, and no value makes up a tenth), else Gaussian. ``likelihood_`` says which.
        ``"normal_scores"`` is the same with another choice for numbers: each column gets a shape,
        a monotone map to normal scores in which a value of many rows has an interval. Densities,
        imputed values and draws are better, codes and outlier scores are not.
    categorical_features : "from_dtype", None or array-like of bool, int or str, \
            default="from_dtype"
        Columns that hold categories: those with a dtype of categories, strings or objects that are
        no numbers; none; or the columns that a mask, numbers or names point at.
    max_categories : int or None, default=255
        Most levels of a category. Rarer ones share one place: ``sample`` draws among them, scores
        have each one's share, and ``inverse_transform`` gives the most frequent.
    handle_unknown : {"ignore", "error"}, default="ignore"
        What to do with a level that was not in ``fit``, a number outside [0, 1] where ``"auto"``
        found only 0 and 1, or one that a column's shape has no place for: take it as missing
        (scores pay Good's (1953) mass of unseen), or raise.
    missing : {"auto", "ignore", "model"}, default="auto"
        Whether holes say something. ``"ignore"`` marginalises over what is missing. ``"model"``
        adds a Bernoulli likelihood of whether it is [6]_, where ``fit`` had holes: codes
        know them, and scores are log p(values, holes). ``"auto"`` does so where 10 to 90% of the
        cells miss by what other columns hold (Schwarz's criterion), unless others tell that alone.
    noise : {"auto", "shared", "per_column"}, default="auto"
        Whether the (scaled) columns share one Gaussian noise scale, as in probabilistic PCA, or
        each has its own, as in factor analysis. ``"auto"`` is shared, which makes better codes;
        noise per column makes better densities.
    scaling : {"auto", "columns", "common"} or None, default="auto"
        Divide each column by its own standard deviation, all by one, or none. ``"auto"`` takes one
        for columns that share a unit, as pixels do (most span the same range, and neighbours
        resemble each other); ``scaling_`` says which.
    prior : {"normal", "mixture"} or Prior, default="normal"
        p(z); see :mod:`skvae.priors`. ``"mixture"`` is a mixture of Gaussians that is trained with
        the model: samples and densities follow the clusters of the codes.
    whiten : bool, default=False
        Return posterior means as they are, of unit prior variance. By default they are multiplied
        by ``component_scale_``: distances between codes then have the metric of rows, as in PCA.
    objective : {"elbo", "iwae"}, default="elbo"
        Train on the evidence lower bound or the importance-weighted one [3]_ (``n_train_samples``).
    n_train_samples : int, default=2
        Samples of z for each row and step: of the ELBO, if even, pairs of opposite noise.
    beta : float, default=1.0
        Weight of the KL divergence in training [4]_. Scores always use 1. Below 1 codes hold more
        of a row, and its density may fall below the start's. With half as many components as
        columns, 0.1 and ``n_train_samples=4`` bring back about as many levels of categories as an
        autoencoder; 1 leaves out what columns do not share.
    kl_warmup : float, default=0.0
        Fraction of the steps over which the KL divergence is faded in. Training stops no earlier.
    free_bits : float, default=0.0
        KL divergence, in nats, that each component may have for free [5]_.
    alpha : float, default=0.3
        Decoupled weight decay of the hidden layers, which pulls towards the linear start. It is
        divided by how much further a run goes (steps times their size) than 1800 steps of 0.005.
    batch_size : int or "auto", default="auto"
        Rows in a step. ``"auto"`` is 128 below 10,000 rows, 512 below 100,000, else 2048.
    learning_rate_init : float or "auto", default="auto"
        Step size of AdamW for batches of 128 rows; it grows with the square root of
        ``batch_size``, is warmed up, and falls to 0 over ``max_iter`` epochs. ``"auto"`` is 0.005,
        and up to 0.012 where ``max_iter`` is a number that makes less than 1800 steps.
    max_iter : int or "auto", default="auto"
        Most epochs; ``"auto"`` aims at 1800 steps, in 8 to 400 epochs. 0 keeps the linear start.
    early_stopping : bool, default=True
        Keep the epoch with the best held-out objective (the bound with ``beta`` and ``free_bits``),
        less two standard errors of its gain over the start. Below 500 distinct rows, 5-fold
        cross-validation chooses the number of epochs and all rows are trained on. 100,000 complete
        rows and more that show nothing but a linear model are not trained on. False trains always.
    validation_fraction : float, default=0.1
        Fraction of the rows held out, equal ones by number: at most 5000, half the wildest 0.5%.
    n_iter_no_change : int, default=10
        Epochs without a gain of ``tol`` after which training stops.
    tol : float, default=0.0001
        Gain of the held-out objective that counts, in nats per column.
    n_importance_samples : int or "auto", default="auto"
        Samples of z for each row in the scores. ``"auto"`` is 64 for missing values and for the
        log-likelihood, which takes up to 32 times as many where a row needs them; else 16 to 64.
    warm_start : bool, default=False
        Let ``fit`` go on from what the previous fit kept, and its scaling; epochs are counted on.
    precision : {"auto", "float32", "float64"}, default="auto"
        Precision of training. ``"auto"`` is float32, with bfloat16 factors in large products where
        the processor multiplies those. Scores are float64, and so are codes but of float32 rows.
    device : str, default="auto"
        A torch device; ``"auto"`` is a GPU, if any. Codes of complete numbers never need it.
    random_state : int, RandomState instance or None, default=None
        Seed of the hidden layers, held-out rows, noise and draws. None is fresh; nothing moves.
    verbose : int, default=0
        1 prints a line every five seconds, in the units of ``validation_scores_``; 2 each epoch.

    Attributes
    ----------
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where they all are strings.
    n_iter_ : int
        Epochs that were run.
    best_iter_ : int
        Epoch whose weights were kept; 0 is the linear start.
    loss_curve_ : list of float
        Minus the training objective after each epoch, in nats a row and original units.
    validation_scores_ : list of float
        Held-out objective of the start and after each epoch, in nats a row and original units; less
        what the linear model had gained on these rows, where the start is independent columns.
    kl_per_component_ : ndarray of shape (`n_components_`,)
        Mean KL divergence of each component, in nats, falling: the information that it carries.
    n_active_components_ : int
        Components that carry at least 0.01 nats. ``transform`` returns 0 for the others.
    component_scale_ : ndarray of shape (`n_components_`,)
        How far the (scaled) reconstruction moves with a step along a component, root mean square.
    noise_variance_ : ndarray of shape (`n_features_in_`,)
        Variance of the noise of Gaussian and Student-t columns, in original units squared; nan for
        others, for columns with a shape, and where it is infinite.
    likelihood_ : ndarray of shape (`n_features_in_`,)
        Name of each column's likelihood.
    scaling_ : {"columns", "common", "none"}
        How the columns were scaled.
    weights_ : dict of str to ndarray
        The whole fitted network.
    evidence_ : ndarray of shape (n_candidates, 3) or None
        With ``n_components="evidence"``: numbers of components, what the linear model with each
        gives held-out rows in nats a row, up to a constant, and the standard error of the
        difference from the best.
    model_ : Fitted
        The fitted model as one frozen object, from which the attributes that describe it are set.
        To change a model use ``dataclasses.replace(vae.model_, ...)``.

    See Also
    --------
    sklearn.decomposition.PCA : The linear model with shared noise.
    sklearn.decomposition.FactorAnalysis : The linear model with noise per column.

    References
    ----------
    .. [1] Kingma & Welling (2014), Auto-Encoding Variational Bayes, eq. 10.
    .. [2] Tipping & Bishop (1999), Probabilistic Principal Component Analysis.
    .. [3] Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, eq. 8.
    .. [4] Higgins et al. (2017), beta-VAE, eq. 4.
    .. [5] Kingma et al. (2016), Inverse Autoregressive Flow, eq. 15.
    .. [6] Ipsen et al. (2021), Deep Generative Modelling with Missing not at Random Data.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import Pipeline
    >>> from skvae import VAETransformer
    >>> X, y = load_iris(return_X_y=True)
    >>> steps = [("vae", VAETransformer(2, random_state=0)), ("clf", LogisticRegression())]
    >>> pipeline = Pipeline(steps)
    >>> pipeline.fit(X, y).score(X, y) > 0.9
    True
    >>> vae = pipeline["vae"]
    >>> vae.transform(X).shape
    (150, 2)
    >>> vae.score_samples(X[:2]).shape  # log p(x) in nats: higher is more normal
    (2,)
    >>> vae.sample(3, random_state=0).shape
    (3, 4)
    """

    def __init__(
        self,
        n_components: int | Literal["auto", "evidence"] = "auto",
        *,
        hidden_layer_sizes: Any = "auto",
        activation: str = "gelu",
        likelihood: Any = "auto",
        categorical_features: Any = "from_dtype",
        max_categories: int | None = 255,
        handle_unknown: str = "ignore",
        missing: str = "auto",
        noise: str = "auto",
        scaling: str | None = "auto",
        prior: Any = "normal",
        whiten: bool = False,
        objective: str = "elbo",
        n_train_samples: int = 2,
        beta: float = 1.0,
        kl_warmup: float = 0.0,
        free_bits: float = 0.0,
        alpha: float = 0.3,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate_init: float | str = "auto",
        max_iter: int | Literal["auto"] = "auto",
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        n_importance_samples: int | Literal["auto"] = "auto",
        warm_start: bool = False,
        precision: str = "auto",
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.categorical_features = categorical_features
        self.max_categories = max_categories
        self.handle_unknown = handle_unknown
        self.missing = missing
        self.noise = noise
        self.scaling = scaling
        self.prior = prior
        self.whiten = whiten
        self.objective = objective
        self.n_train_samples = n_train_samples
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_importance_samples = n_importance_samples
        self.warm_start = warm_start
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # -- fitting --------------------------------------------------------------------------------

    @with_callbacks
    def fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> VAETransformer:
        """Fit the model to X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, in any units; or a file or another source of rows (``docs/scale.md``).
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts. Weighting a row is the same as repeating it.

        Returns
        -------
        self : VAETransformer
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or X is not admissible, or if the bound becomes infinite at small
            learning rates, too. The estimator is then left as it was. After a KeyboardInterrupt
            while it trains it has the best weights so far, and a warning says which.
        """
        from ._fitting import fit

        listeners = Listeners(self, X, y)
        with own_gradients():
            check_transformer(self)
            going_on = self.warm_start and self.__sklearn_is_fitted__()
            rows, attributes, _ = given(self, X, sample_weight, reset=not going_on)
            parameters, seed = self.get_params(deep=False), seed_of(self.random_state)
            before = (self.model_, self._history) if going_on else None
            listeners.attributes_of = lambda model: attributes | model_attributes(model)
            with columns_shown(self, attributes, listeners.any):
                fitted, history = fit(parameters, rows, seed, before, listeners)
                warn_about_fit(parameters, fitted, history, rows.names)
                if not going_on:
                    warn_about_columns(fitted.schema)
        become(self, attributes | attributes_of(fitted, history))
        listeners.end(history)
        return self

    def partial_fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> VAETransformer:
        """Go on training with one epoch over X.

        The first call sets the columns' scaling and the linear start from X, so let its rows be
        typical. The learning rate stays constant, and nothing is held out.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            More training rows.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.

        Returns
        -------
        self : VAETransformer
            The estimator.

        Raises
        ------
        ValueError
            As ``fit``; the estimator is left as it was.
        """
        from ._fitting import fit_one_epoch

        with own_gradients():
            check_transformer(self)
            now = snapshot(self)
            before = (now.model_, now._history) if now.__sklearn_is_fitted__() else None
            rows, attributes, _ = given(self, X, sample_weight, reset=before is None)
            parameters, seed = self.get_params(deep=False), seed_of(self.random_state)
            fitted, history = fit_one_epoch(parameters, rows, seed, before)
            if before is None:
                warn_about_columns(fitted.schema)
            warn_about_divergence(history)
        become(self, attributes | attributes_of(fitted, history))
        return self

    # -- codes and rows ---------------------------------------------------------------------------

    def transform(self, X: ArrayLike) -> Array:
        """Return the posterior means of the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, `n_components_`)
            Most informative component first; inactive ones are exactly 0. In the metric of the
            (scaled) columns, or with unit prior variance if ``whiten=True``. float32 for float32
            rows, otherwise float64.
        """
        now = fitted_now(self)
        X = validated(now, X, reset=False)
        table = now.model_.read(X, now.handle_unknown)
        return now.model_.encode(table, now.whiten, float_dtype(X), now.device)

    def inverse_transform(self, X: ArrayLike) -> Any:
        """Decode components to the mean of the rows that they stand for.

        Parameters
        ----------
        X : array-like of shape (n_samples, `n_components_`)
            Codes, as ``transform`` returns them.

        Returns
        -------
        X_original : ndarray or frame of shape (n_samples, n_features)
            The decoder's mean, in original units, as the kind of table that was fitted. An array
            is float32 for float32 codes, otherwise float64.
        """
        now = fitted_now(self)
        codes = check_array(X, dtype=[np.float64, np.float32])
        if codes.shape[1] != now.n_components_:
            raise ValueError(
                f"X has {codes.shape[1]} columns, but inverse_transform expects one for each of "
                f"the {now.n_components_} components, as transform returns them."
            )
        return now.model_.write(now.model_.decode(codes, now.whiten, codes.dtype, now.device))

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        mode: bool = False,
        given: Any = None,
        holes: bool = False,
    ) -> Any:
        """Draw rows from the model: prior, decoder, likelihood; or what is missing of a row.

        Rows that are to pass for real ones want ``likelihood="normal_scores"``, whose draws keep a
        column's sign, caps, spikes and grid, ``prior="mixture"`` and ``noise="per_column"``.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows; with rows as ``given`` it must be 1.
        random_state : int, RandomState instance or None, default=None
            Seed of the draw. None takes the estimator's own, and is fresh where that is None, too.
        mode : bool, default=False
            Take the most probable x given z instead of a draw: no noise, and 0 or 1 for Bernoulli.
        given : dict or array-like of shape (n_rows, n_features) or None, default=None
            Values of some columns, by name or, without names, by number: the others are drawn from
            p(rest | given). Or rows with holes, which come back filled by one draw each.
        holes : bool, default=False
            Leave cells missing at their rate in columns whose holes are modelled; not with given.

        Returns
        -------
        X : ndarray or frame of shape (n_samples, n_features)
            Rows in original units, as the kind of table that was fitted.

        Raises
        ------
        ValueError
            If a value that is given has no density, or is a level that fit has not seen.
        """
        now = fitted_now(self)
        if not COUNT.admits(n_samples):
            raise ValueError(f"n_samples must be {COUNT}. Got {n_samples!r} instead.")
        seed = seed_of(random_state, now.random_state)
        check_drawn(now.model_, is_given=given is not None, mode=mode, holes=holes)
        if given is not None:
            return _sampled_given(now, given, int(n_samples), How("auto", now.device, seed))
        table = now.model_.sample(int(n_samples), seed, mode, holes)
        return now.model_.write(table, None if mode else np.random.default_rng(seed))

    # -- scores -----------------------------------------------------------------------------------

    def score_samples(
        self,
        X: ArrayLike,
        *,
        method: str = "log_likelihood",
        refine: bool = True,
        return_diagnostics: bool = False,
    ) -> Any:
        """Score each row, in nats: higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        method : {"log_likelihood", "elbo", "reconstruction", "kl"}, default="log_likelihood"
            ``"log_likelihood"`` is log p(x) by importance sampling; ``"elbo"`` its evidence lower
            bound; ``"reconstruction"`` the expected log p(x | z) under the encoder [2]_; ``"kl"``
            minus the divergence of the encoder's posterior from the prior. All but the last are
            log-densities in original units.
        refine : bool, default=True
            For ``"log_likelihood"``: search the posterior's mode row by row and sample around it,
            which is right also for rows unlike any that the encoder has seen. False samples from
            the encoder [1]_: faster, and too low for such rows.
        return_diagnostics : bool, default=False
            Say also how good the estimate of each row's log-likelihood is.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            The same for a row whatever the other rows are, and in every call.
        diagnostics : dict of str to ndarray of shape (n_samples,)
            Only if ``return_diagnostics``. "n_samples" is the number of importance samples;
            "effective_sample_size" how many equally good ones they are worth; "pareto_k" the
            shape k of the weights' tail [3]_: -inf where the estimate is exact, as for a linear
            model, and nan below 21 samples; "standard_error" that of the estimate, in nats;
            "mode_gap" how much the last search for modes of the posterior has added, in nats: what
            is above 0 may be incomplete, and nan was not searched. Do not rely on rows with a gap
            above 0.1, a standard error above 0.06, or k above min(1 - 1 / log10(n_samples), 0.7)
            and less than a tenth of the samples effective.

        References
        ----------
        .. [1] Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, eq. 8.
        .. [2] An & Cho (2015), Variational autoencoder based anomaly detection using
               reconstruction probability.
        .. [3] Vehtari et al. (2024), Pareto Smoothed Importance Sampling.
        """
        now = fitted_now(self)
        table, unseen = now.model_.read_all(validated(now, X, reset=False), now.handle_unknown)
        check_score(method, return_diagnostics)
        scores, diagnostics = now.model_.score(
            table, method, now.n_importance_samples, refine, now.device
        )
        if method != "kl":
            scores = with_cost(scores, unseen, now.model_.columns.log_unseen)
        warn_about_estimates(diagnostics, refine)
        return (scores, diagnostics) if return_diagnostics else scores

    def score_features(self, X: ArrayLike) -> Array:
        """Say which columns make a row odd: each one's share of the reconstruction term.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_features)
            Expected log p(x_d | z) under the encoder, in nats and original units; a row's sum is
            ``score_samples(X, method="reconstruction")``. Lower is odder.
        """
        now = fitted_now(self)
        table, unseen = now.model_.read_all(validated(now, X, reset=False), now.handle_unknown)
        scores = now.model_.score_features(table, now.n_importance_samples, now.device)
        return with_cost(scores, unseen, now.model_.columns.log_unseen)

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Return the mean of ``score_samples(X)``: log p(x) in nats a row, in original units.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Higher is better, so that GridSearchCV can choose ``n_components``.
        """
        return float(self.score_samples(X).mean())

    # -- scikit-learn's conventions ---------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _sampled_given(vae: VAETransformer, given: Any, n_samples: int, how: How) -> Any:
    """Draw rows that have what is given, or fill rows with holes."""
    if isinstance(given, Mapping):
        labels = list(getattr(vae, "feature_names_in_", range(vae.n_features_in_)))
        return drawn_given(vae.model_, given, labels, n_samples, how)
    if n_samples != 1:
        raise ValueError(f"With rows as given, n_samples must be 1. Got {n_samples} instead.")
    return drawn_rows(vae.model_, validated(vae, given, reset=False), how)
