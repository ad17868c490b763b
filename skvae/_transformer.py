"""VAETransformer: the estimator. scikit-learn's conventions live here; torch is imported inside."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from ._callbacks import CallbackSupportMixin, FitTask, with_callbacks
from ._codes import complete_codes
from ._frames import float_dtype
from ._health import DIAGNOSTICS, warn_about_estimates, warn_about_fit
from ._inputs import (
    column_name,
    counted,
    fit_table,
    read_table,
    training_weight,
    unchanged_on_error,
    validated,
)
from ._parameters import (
    ARCHITECTURE,
    INACTIVE_KL,
    check_choice,
    check_parameters,
    check_same_architecture,
    seed_of,
)
from ._resources import enough_threads, for_each, own_gradients, training_resources

Array = NDArray[np.floating]

METHODS = ("log_likelihood", "elbo", "reconstruction", "kl")
if TYPE_CHECKING:
    import torch

    from ._batches import Rows
    from ._columns import Columns
    from ._frames import Schema
    from ._training import Epoch, NonFiniteBoundError, Plan
    from ._vae import VAE


class VAETransformer(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Dimensionality reduction, density and generation by a variational autoencoder.

    The model [1]_ starts as the maximum-likelihood linear one, probabilistic PCA [2]_ or factor
    analysis, and learns what a linear model cannot. Rows are held out while it trains, and the
    linear start is kept if nothing beats it.

    Columns are standardised inside; inputs and outputs are in the user's units. Log-densities are
    in nats, and higher is better.

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components K of z. ``"auto"`` is a third of the columns, at most 10, and at most
        a third of the distinct rows.
    hidden_layer_sizes : "auto" or sequence of int, default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. ``"auto"`` is
        (128, 128) below 100 columns and (256, 256) from there; ``()`` is the linear model.
    activation : {"gelu", "relu", "silu", "tanh"}, default="gelu"
        Activation of the hidden layers.
    likelihood : str, Likelihood or dict, default="auto"
        Distribution p(x | z) of the columns: "gaussian", "student_t", "log_normal", "bernoulli",
        "categorical", "ordinal", "poisson", "negative_binomial", an instance (see
        :mod:`skvae.likelihoods`), or ``{column: one of these}`` with names or numbers of columns.
        ``"auto"``, also for columns that a dict leaves out, is categorical for categories,
        Bernoulli for booleans and for numbers that are only ever 0 and 1, Student-t for numbers
        with heavy tails (0.5 to 10% of the cells lie more than ten robust standard deviations from
        the median, and no value makes up a tenth), else Gaussian. ``likelihood_`` says which.
    categorical_features : "from_dtype", None or array-like of bool, int or str, \
            default="from_dtype"
        Columns that hold categories: those with a dtype of categories, strings or objects that are
        no numbers; none; or the columns that a mask, numbers or names point at.
    max_categories : int or None, default=255
        Most levels of a category. Rarer ones share one level, of which ``sample`` draws one, and
        for which ``inverse_transform`` gives the most frequent.
    handle_unknown : {"ignore", "error"}, default="ignore"
        What to do with a level that was not there in ``fit``, or another number where ``"auto"``
        found only 0 and 1: treat it as missing (it then counts in no score), or raise.
    noise : {"auto", "shared", "per_column"}, default="auto"
        Whether the (scaled) columns share one Gaussian noise scale, as in probabilistic PCA, or
        each has its own, as in factor analysis. ``"auto"`` is shared, which makes better codes;
        noise per column makes better densities.
    scaling : {"auto", "columns", "common"} or None, default="auto"
        Divide each column by its own standard deviation, all by one, or none. ``"auto"`` takes one
        for columns that share a unit, such as pixels or spectra (most span the same range, and
        neighbours resemble each other), and says what it chose in ``scaling_``.
    prior : {"normal"} or Prior, default="normal"
        p(z); see :mod:`skvae.priors`.
    whiten : bool, default=False
        Return posterior means as they are (their prior has unit variance). By default they are
        multiplied by ``component_scale_``, which gives distances between codes the metric of
        distances between rows, as in PCA.
    objective : {"elbo", "iwae"}, default="elbo"
        Train on the evidence lower bound, or on the importance-weighted bound [3]_ with
        ``n_train_samples`` samples.
    n_train_samples : int, default=1
        Samples of z for each row and step.
    beta : float, default=1.0
        Weight of the KL divergence in training [4]_. Scores always use 1.
    kl_warmup : float, default=0.0
        Fraction of the training steps over which the KL divergence is faded in.
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
        Most epochs to train. ``"auto"`` aims at 1800 steps, between 8 and 400 epochs. 0 keeps the
        linear start.
    early_stopping : bool, default=True
        Keep the epoch with the best held-out ELBO, less two standard errors of its gain over the
        start. Below 500 distinct rows, 5-fold cross-validation chooses the number of epochs and
        all rows are trained on. False trains ``max_iter`` epochs on all rows.
    validation_fraction : float, default=0.1
        Fraction of the rows held out (at most 5000 rows, and half of the wildest 0.5%).
    n_iter_no_change : int, default=10
        Epochs without a gain of ``tol`` after which training stops.
    tol : float, default=0.0001
        Gain of the held-out ELBO that counts, in nats per column.
    n_importance_samples : int, default=64
        Samples of z for each row in the scores. Rows that need more get up to 15 times as many.
    warm_start : bool, default=False
        Let ``fit`` go on from the previous fit's weights and scaling.
    precision : {"auto", "float32", "float64"}, default="auto"
        Precision of training. ``"auto"`` is float32, with bfloat16 factors in the products of
        large layers where the processor multiplies those. Scores are evaluated in float64, and so
        are codes, but for many rows of float32.
    device : str, default="auto"
        A torch device; ``"auto"`` is a GPU where there is one. ``transform`` of complete rows of
        numbers stays on the processor.
    random_state : int, RandomState instance or None, default=None
        Seed of the hidden layers, held-out rows and noise. None is fresh each time; NumPy's and
        torch's global generators are neither used nor moved.
    verbose : int, default=0
        Print a line for each epoch if not 0.

    Attributes
    ----------
    n_components_ : int
        Number of components.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, where they all are strings.
    n_iter_ : int
        Epochs that were run.
    best_iter_ : int
        Epoch whose weights were kept; 0 is the linear start.
    loss_curve_ : list of float
        Minus the training objective after each epoch, in nats a row and original units.
    validation_scores_ : list of float
        Held-out bound of the start and after each epoch, in nats a row and original units.
    kl_per_component_ : ndarray of shape (n_components_,)
        Mean KL divergence of each component, in nats, falling: the information that it carries.
    n_active_components_ : int
        Components that carry at least 0.01 nats. ``transform`` returns 0 for the others.
    component_scale_ : ndarray of shape (n_components_,)
        How far the (scaled) reconstruction moves with a step along a component, root mean square.
    noise_variance_ : ndarray of shape (n_features_in_,)
        Variance of the Gaussian noise of each column, in original units squared; nan for others.
    likelihood_ : ndarray of shape (n_features_in_,)
        Name of each column's likelihood.
    scaling_ : {"columns", "common", "none"}
        How the columns were scaled.
    weights_ : dict of str to ndarray
        The whole fitted network.

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
    .. [5] Kingma et al. (2016), Improved Variational Inference with Inverse Autoregressive Flow,
           eq. 15.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import Pipeline
    >>> from skvae import VAETransformer
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = Pipeline(
    ...     [("vae", VAETransformer(2, random_state=0)), ("clf", LogisticRegression())]
    ... )
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
        n_components: int | Literal["auto"] = "auto",
        *,
        hidden_layer_sizes: Any = "auto",
        activation: str = "gelu",
        likelihood: Any = "auto",
        categorical_features: Any = "from_dtype",
        max_categories: int | None = 255,
        handle_unknown: str = "ignore",
        noise: str = "auto",
        scaling: str | None = "auto",
        prior: Any = "normal",
        whiten: bool = False,
        objective: str = "elbo",
        n_train_samples: int = 1,
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
        n_importance_samples: int = 64,
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
    ) -> "VAETransformer":
        """Fit the model to X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, in any units.
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
            If a parameter or X is not admissible, or if the bound becomes infinite. The estimator
            is then left as it was.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(
        self, X: ArrayLike, y: None = None, sample_weight: ArrayLike | None = None
    ) -> "VAETransformer":
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
        from . import _fitting as fitting
        from ._training import NonFiniteBoundError, Outcome, Run, worst_column

        with unchanged_on_error(self), own_gradients():
            self._check_parameters()
            going_on = self.__sklearn_is_fitted__()
            X = validated(self, X, reset=not going_on)
            X, weight = counted(X, training_weight(sample_weight, X))
            parameters, seed = self.get_params(deep=False), seed_of(self.random_state)
            schema, columns, vae, rows = self._prepare(X, weight, seed, going_on)
            number = self.n_iter_ + 1 if going_on else 1
            whole = fitting.plan_for({**parameters, "max_iter": "auto"}, len(rows))
            plan = replace(whole, max_epochs=1, decay=False)
            generator = fitting.generator_for(parameters, seed + number)  # fresh in each call
            run = Run(fitting.trainable(parameters, vae), plan, generator, len(rows))
            if going_on and self._memory is not None:
                run.resume(fitting.to_tensors(self._memory))
            work = fitting.work_per_step(vae, plan, len(rows))
            with enough_threads(work):
                with training_resources(work, self.precision):
                    bound = run.epoch(rows)
                if not (np.isfinite(bound) and run.is_finite()):
                    raise self._not_finite(NonFiniteBoundError(number, worst_column(vae, rows)))
                fitted = fitting.describe(columns, vae, rows, run.snapshot(), run.memory())
            losses = self.loss_curve_ if going_on else []
            outcome = Outcome(None, [bound], [], number, number, False)
            progress = fitting.describe_outcome(outcome, columns, rows)
            progress["loss_curve_"] = [*losses, *progress["loss_curve_"]]
            fitted |= {"_schema": schema, "_fitted_architecture": self._architecture()}
            self.__dict__.update(fitted | progress)
        return self

    def _fit(
        self, X: Any, y: None = None, sample_weight: Any = None, advise: bool = True
    ) -> "VAETransformer":
        """Fit; ``advise`` on parameters only those who have set them."""
        task = FitTask(self, X, y)
        with unchanged_on_error(self), own_gradients():
            self._check_parameters()
            going_on = self.warm_start and self.__sklearn_is_fitted__()
            X = validated(self, X, reset=not going_on)
            X, weight = counted(X, training_weight(sample_weight, X))
            seed = seed_of(self.random_state)
            schema, columns, vae, rows = self._prepare(X, weight, seed, going_on)
            fitted, cut_short = self._train(schema, columns, vae, rows, seed, task)
            if advise:
                name = partial(column_name, self)
                warn_about_fit(self.n_components, fitted, columns, cut_short, name)
            self.__dict__.update(fitted)
        task.end()
        return self

    def _check_parameters(self) -> None:
        name, parameters = type(self).__name__, self.get_params(deep=False)
        check_parameters(name, parameters)
        from ._fitting import device_of
        from .likelihoods import LIKELIHOODS, Likelihood
        from .priors import PRIORS, Prior

        asked = self.likelihood
        for one in asked.values() if isinstance(asked, Mapping) else [asked]:
            check_choice(name, "likelihood", one, LIKELIHOODS, Likelihood, ("auto",))
        check_choice(name, "prior", self.prior, PRIORS, Prior)
        device_of(parameters)

    def _prepare(
        self, X: Any, weight: Array, seed: int, going_on: bool
    ) -> tuple["Schema", "Columns", "VAE", "Rows"]:
        """Merge equal rows, encode them, and build the module at its start, in float64."""
        from . import _fitting as fitting
        from ._modules import fresh_module

        parameters = self.get_params(deep=False)
        if going_on:
            check_same_architecture(self)
            table, weight = fitting.merged(read_table(self, X), weight)
            rows = fitting.rows_for(parameters, self._columns, table, weight, overwrite=True)
            return self._schema, self._columns, fresh_module(self), rows
        schema, asked, table = fit_table(self, X, weight)
        table, weight = fitting.merged(table, weight)
        name = partial(column_name, self)
        columns = fitting.columns_for(parameters, schema, asked, table, weight, name)
        vae = fitting.start(parameters, columns, table, weight, seed)
        rows = fitting.rows_for(parameters, columns, table, weight, overwrite=True)
        return schema, columns, vae, rows

    def _train(
        self,
        schema: "Schema",
        columns: "Columns",
        vae: "VAE",
        rows: "Rows",
        seed: int,
        task: FitTask,
    ) -> tuple[dict[str, Any], bool]:
        """Climb the bound from the start: every fitted attribute, and whether it was cut short."""
        from . import _fitting as fitting
        from ._training import NonFiniteBoundError, climb

        parameters = self.get_params(deep=False)
        n_rows, n_columns = len(rows), len(columns.shift)
        plan = fitting.plan_for(parameters, n_rows)
        task.begin(plan.max_epochs)

        def fitted(state: Any) -> dict[str, Any]:
            described = fitting.describe(columns, vae, rows, state)
            return described | {
                "_schema": schema,
                "_fitted_architecture": self._architecture(),
            }

        def watch(epoch: "Epoch") -> bool:
            self._print_progress(epoch, plan)
            if epoch.number == 0:
                return False
            return task.report_epoch(lambda: fitted(epoch.snapshot()))

        work = fitting.work_per_step(vae, plan, n_rows)
        with enough_threads(work):
            try:
                with training_resources(work, self.precision):
                    outcome = climb(
                        fitting.trainable(parameters, vae),
                        rows,
                        plan,
                        fitting.selection_for(parameters, n_columns),
                        fitting.generator_for(parameters, seed),
                        watch,
                    )
            except NonFiniteBoundError as error:
                raise self._not_finite(error) from None
            result = fitted(outcome.state) | fitting.describe_outcome(outcome, columns, rows)
        return result, outcome.cut_short

    def _architecture(self) -> dict[str, Any]:
        """The parameters that give the network its shape, as they are now."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    def _fitted_module(self) -> "VAE":
        from ._modules import module_of

        with own_gradients():
            return module_of(self)

    # -- callbacks and messages -------------------------------------------------------------------

    def _print_progress(self, epoch: "Epoch", plan: "Plan") -> None:
        if self.verbose:
            print(
                f"[{type(self).__name__}] epoch {epoch.number} of at most {plan.max_epochs}: "
                f"bound {epoch.bound:.3f}, held out {epoch.held_out:.3f} nats a row"
            )

    def _not_finite(self, error: "NonFiniteBoundError") -> ValueError:
        return ValueError(
            f"The bound became infinite or nan in epoch {error.epoch}; the wildest values stand in "
            f"column {column_name(self, error.column)}. Use a smaller learning_rate_init (now "
            f"{self.learning_rate_init}), or look for errors in that column."
        )

    # -- codes and rows ---------------------------------------------------------------------------

    def transform(self, X: ArrayLike) -> Array:
        """Posterior means of the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components_)
            Most informative component first; inactive ones are exactly 0. In the metric of the
            (scaled) columns, or with unit prior variance if ``whiten=True``. float32 for float32
            rows, otherwise float64.
        """
        check_is_fitted(self)
        X = validated(self, X, reset=False)
        return self._posterior_means(read_table(self, X), float_dtype(X))

    def _posterior_means(self, table: Any, dtype: type[np.floating]) -> Array:
        activation = self._fitted_architecture["activation"]
        z = complete_codes(table, self.weights_, self._columns, activation, for_each)
        if z is None:
            return self._encoded(table, dtype)
        z *= self._code_scale()
        missing = np.isnan(z).any(axis=1)
        if missing.any():
            z[missing] = self._encoded(table[missing], dtype)
        return z.astype(dtype, copy=False)

    def _encoded(self, table: Any, dtype: type[np.floating]) -> Array:
        vae = self._fitted_module()
        scale = self._on_device(self._code_scale(), vae)
        function = partial(_scoring().posterior_means, vae, scale=scale)
        return self._by_chunks(function, table, vae, dtype=dtype)[0]

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Decode components to the mean of the rows that they stand for.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components_)
            Codes, as ``transform`` returns them.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
            The decoder's mean, in original units. float32 for float32 codes, otherwise float64.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=[np.float64, np.float32])
        if codes.shape[1] != self.n_components_:
            raise ValueError(
                f"X has {codes.shape[1]} columns, but inverse_transform expects one for each of "
                f"the {self.n_components_} components, as transform returns them."
            )
        scale = self._code_scale()
        z = np.divide(codes, scale, out=np.zeros(codes.shape), where=scale > 0.0)
        vae = self._fitted_module()
        return self._schema.write(self._decoded(vae, z, vae.likelihood.mean, codes.dtype))

    def sample(self, n_samples: int = 1, random_state: Any = None, *, mode: bool = False) -> Array:
        """Draw rows from the model: prior, decoder, likelihood.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Seed of the draw. None is fresh every time; NumPy's global generator is not touched.
        mode : bool, default=False
            Take the most probable x given z instead of a draw: no noise, and 0 or 1 for Bernoulli.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows in original units.
        """
        import torch

        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer >= 1. Got {n_samples!r} instead.")
        vae = self._fitted_module().cpu()
        seed = seed_of(random_state)
        generator = torch.Generator().manual_seed(seed)
        with own_gradients():
            z = vae.prior.sample(int(n_samples), vae.n_components, generator).numpy()
        draw = vae.likelihood.mode if mode else partial(vae.likelihood.sample, generator=generator)
        table = self._decoded(vae, z, draw)
        return self._schema.write(table, None if mode else np.random.default_rng(seed))

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
            model, and nan below 21 samples. Not to be relied on are rows with k above
            min(1 - 1 / log10(n_samples), 0.7) and less than a tenth of the samples effective.

        References
        ----------
        .. [1] Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, eq. 8.
        .. [2] An & Cho (2015), Variational autoencoder based anomaly detection using
               reconstruction probability.
        .. [3] Vehtari et al. (2024), Pareto Smoothed Importance Sampling.
        """
        X = self._check_new_rows(X)
        _scoring().check_score(method, METHODS, return_diagnostics)
        vae, n_samples = self._fitted_module(), self.n_importance_samples
        with own_gradients():
            function = _scoring().score_function(vae, method, n_samples, refine)
        sampled = method in ("log_likelihood", "elbo")
        per_row = 2 * max(n_samples, 3 * self.n_components_) if sampled else 1
        scores, *of_estimate = self._by_chunks(function, X, vae, per_row)
        if method == "kl":
            return scores
        diagnostics = dict(zip(DIAGNOSTICS, of_estimate, strict=False))
        warn_about_estimates(diagnostics, refine)
        scores = scores + self._columns.log_jacobian_of(X)
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
        X = self._check_new_rows(X)
        vae = self._fitted_module()
        log_jacobian = self._on_device(self._columns.log_jacobian, vae)
        function = _scoring().shares_of_columns
        function = partial(function, vae, bank=self._noise_bank(vae), log_jacobian=log_jacobian)
        return self._by_chunks(function, X, vae)[0]

    def score(self, X: ArrayLike, y: None = None) -> float:
        """Mean of ``score_samples(X)``: log p(x) in nats a row, in original units.

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

    def _check_new_rows(self, X: Any) -> Any:
        check_is_fitted(self)
        return read_table(self, validated(self, X, reset=False))

    def _noise_bank(self, vae: "VAE") -> "torch.Tensor":
        with own_gradients():
            bank = _scoring().noise_bank(self.n_importance_samples, self.n_components_)
            return bank.to(vae.device)

    def _by_chunks(
        self,
        function: Callable[..., tuple["torch.Tensor", ...]],
        X: Any,
        vae: "VAE",
        per_row: int = 1,
        dtype: Any = None,
    ) -> tuple[Array, ...]:
        """Apply ``function``, whose largest array has ``per_row`` network evaluations a row."""
        widest = max(parameter.shape[0] for parameter in vae.parameters())
        numbers = per_row * widest
        # Many samples mean many small steps: on a busy machine two threads were 15 times slower.
        cells = min(numbers * X.shape[0], _scoring().CHUNK_NUMBERS) if per_row == 1 else 0
        with enough_threads(float(cells) * widest), own_gradients():
            return _scoring().by_chunks(function, X, self._columns, numbers, vae.device, dtype)

    def _decoded(self, vae: "VAE", z: Array, of_raw: Any, dtype: Any = np.float64) -> Array:
        with own_gradients():
            return _scoring().decode(vae, z, of_raw, self._columns, dtype)

    def _on_device(self, array: Array, vae: "VAE") -> "torch.Tensor":
        import torch

        return torch.from_numpy(array).to(vae.device)

    def _code_scale(self) -> Array:
        """What a posterior mean is multiplied by: 0 for an inactive component."""
        scale = np.ones(self.n_components_) if self.whiten else self.component_scale_
        return np.where(self.kl_per_component_ >= INACTIVE_KL, scale, 0.0)

    # -- scikit-learn's conventions ---------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags


def _scoring() -> Any:
    from . import _scoring as module  # imports torch

    return module
