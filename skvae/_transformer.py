"""VAETransformer: the estimator. scikit-learn's conventions live here; torch is imported inside."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)

from ._columns import CHUNK_ROWS, Array, Columns, fit_columns, robust_units, row_chunks
from ._linear_start import Moments, column_moments, factor_analysis, probabilistic_pca
from ._parameters import check_choice, check_hidden_layer_sizes, check_parameters
from ._resources import enough_threads, training_resources

if TYPE_CHECKING:
    import torch

    from ._batches import Rows
    from ._training import Epoch, NonFiniteBoundError, Plan, State
    from ._vae import VAE
    from .likelihoods import Likelihood

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing to support."""

    def with_callbacks(method):  # type: ignore[no-untyped-def,no-redef]
        """Return the method as it is."""
        return method


NOISE_FLOOR = 1e-3  # of a column's noise scale, relative to the columns' standard deviation
INACTIVE_KL = 0.01  # nats: a component that carries less on average is noise
TRAINING_STEPS = 2500  # that max_iter="auto" aims at
SAMPLE_ROWS = 10_000  # for the order and the scale of the components
MORE_SAMPLES = 8  # times n_importance_samples, for rows whose log-likelihood is not yet sharp
METHODS = ("log_likelihood", "elbo", "reconstruction", "kl")


class VAETransformer(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """PLACEHOLDER_DOC"""

    def __init__(
        self,
        n_components: int | Literal["auto"] = "auto",
        *,
        hidden_layer_sizes: Any = "auto",
        activation: str = "gelu",
        likelihood: Any = "auto",
        noise: str = "auto",
        scaling: str | None = "auto",
        prior: Any = "normal",
        whiten: bool = False,
        objective: str = "elbo",
        n_train_samples: int = 1,
        beta: float = 1.0,
        kl_warmup: float = 0.0,
        free_bits: float = 0.0,
        alpha: float = 0.01,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate_init: float = 0.003,
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
        task = self._start_callbacks()
        with self._unchanged_on_error():
            self._check_parameters()
            going_on = self.warm_start and self.__sklearn_is_fitted__()
            X, weight = self._check_training_rows(X, sample_weight, reset=not going_on)
            seed = _seed(self.random_state)
            columns, vae, rows = self._prepare(X, weight, seed, going_on)
            vars(self).update(self._train(columns, vae, rows, seed, task))
        if task is not None:
            task.call_on_fit_task_end(estimator=self)
        return self

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
        from ._training import NonFiniteBoundError, Run, worst_column

        with self._unchanged_on_error():
            self._check_parameters()
            going_on = self.__sklearn_is_fitted__()
            X, weight = self._check_training_rows(X, sample_weight, reset=not going_on)
            seed = _seed(self.random_state)
            columns, vae, rows = self._prepare(X, weight, seed, going_on)
            number = self.n_iter_ + 1 if going_on else 1
            module = self._in_training_precision(vae)
            plan = self._plan(len(rows.x), max_epochs=1, decay=False)
            run = Run(module, plan, self._generator(seed), len(rows.x))
            if going_on and self._memory is not None:
                run.resume(_to_tensors(self._memory))
            bound = run.epoch(rows)
            if not np.isfinite(bound):
                raise self._not_finite(NonFiniteBoundError(number, worst_column(vae, rows)))
            losses = self.loss_curve_ if going_on else []
            vars(self).update(self._describe(columns, vae, rows, run.snapshot()))
            self.n_iter_ = self.best_iter_ = number
            self.loss_curve_ = [*losses, -(bound + columns.log_jacobian.sum())]
            self.validation_scores_ = []
            self._memory = _to_arrays(run.memory())
        return self

    def _check_parameters(self) -> None:
        name = type(self).__name__
        check_parameters(name, self.get_params(deep=False))
        from .likelihoods import LIKELIHOODS, Likelihood
        from .priors import PRIORS, Prior

        check_choice(name, "likelihood", self.likelihood, LIKELIHOODS, Likelihood, ("auto",))
        check_choice(name, "prior", self.prior, PRIORS, Prior)
        self._device()

    def _check_training_rows(
        self, X: Any, sample_weight: Any, reset: bool
    ) -> tuple[NDArray, Array]:
        X = validate_data(self, X, dtype="numeric", reset=reset)
        weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
        if not (weight > 0.0).any():
            raise ValueError(
                "Sample weights must contain at least one non-zero number: all of "
                f"{len(weight)} are zero, which leaves no row to fit."
            )
        self._check_support(X)
        return X, weight

    def _check_support(self, X: NDArray) -> None:
        """Name the first cell that the likelihood gives no density to."""
        support = self._new_likelihood().support
        for rows in row_chunks(len(X)):
            outside = ~((X[rows] >= support.lower) & (X[rows] <= support.upper))
            if outside.any():
                row, column = np.argwhere(outside)[0]
                raise ValueError(
                    f"Column {self._column_name(column)} (likelihood={self.likelihood!r}) needs "
                    f"{support.description}; row {rows.start + row} holds "
                    f"{X[rows][row, column]!r}. Use likelihood='gaussian' or scale the column."
                )

    def _column_name(self, column: int) -> str:
        names = getattr(self, "feature_names_in_", None)
        return repr(str(names[column])) if names is not None else str(column)

    def _prepare(
        self, X: NDArray, weight: Array, seed: int, going_on: bool
    ) -> tuple[Columns, "VAE", "Rows"]:
        """Merge equal rows, encode them, and build the module at its start, in float64."""
        import torch

        from ._batches import Rows, encode_rows, merge_duplicates

        index, weight = merge_duplicates(X, weight)
        X = X[index]
        likelihood = self._new_likelihood()
        if going_on:
            columns = self._columns
        else:
            columns = fit_columns(X, weight, self.scaling, likelihood.support.standardised)
        x = encode_rows(X, columns, self._training_dtype(), self._device())
        shares = torch.as_tensor(weight / weight.mean(), dtype=x.dtype, device=x.device)
        rows = Rows(x, shares)
        if going_on:
            return columns, self._fitted_module().requires_grad_(True), rows
        vae = self._new_module(columns)
        with enough_threads(float(X.shape[1]) ** 2 * CHUNK_ROWS):
            moments = column_moments(
                ((columns.encode(X[c]), weight[c]) for c in row_chunks(len(X))), X.shape[1]
            )
            self._start(vae, moments, rows, columns)
        vae.initialise(torch.Generator().manual_seed(seed))
        return columns, vae, rows

    def _start(self, vae: "VAE", moments: Moments, rows: "Rows", columns: Columns) -> None:
        x, weight = rows.x.cpu().numpy(), rows.weight.cpu().numpy()
        floor = NOISE_FLOOR * columns.rms
        if vae.likelihood.noise == "shared":
            linear = probabilistic_pca(moments, x, weight, vae.n_components, floor)
        else:
            linear = factor_analysis(moments, vae.n_components, floor)
        vae.start_from(linear, *robust_units(x, columns.scaling))

    def _train(
        self, columns: Columns, vae: "VAE", rows: "Rows", seed: int, task: Any
    ) -> dict[str, Any]:
        """Climb the bound from the start; return every fitted attribute."""
        from ._training import NonFiniteBoundError, Selection, climb

        n_rows, n_columns = rows.x.shape
        plan = self._plan(n_rows, self._max_epochs(n_rows))
        selection = Selection(
            bool(self.early_stopping),
            self.validation_fraction,
            self.n_iter_no_change,
            self.tol * n_columns,
        )
        module = self._in_training_precision(vae)
        if task is not None:
            task.max_subtasks = plan.max_epochs  # known only now: it depends on the rows
            task.call_on_fit_task_begin(estimator=self)

        def watch(epoch: "Epoch") -> bool:
            self._print_progress(epoch, plan)
            return self._tell_callbacks(
                task, epoch, lambda: self._describe(columns, vae, rows, epoch.snapshot())
            )

        with training_resources(self._work_per_step(vae, plan, n_rows), self.precision):
            try:
                outcome = climb(module, rows, plan, selection, self._generator(seed), watch)
            except NonFiniteBoundError as error:
                raise self._not_finite(error) from None
        fitted = self._describe(columns, vae, rows, outcome.state)
        log_jacobian = columns.log_jacobian.sum()
        fitted["n_iter_"] = outcome.n_epochs
        fitted["best_iter_"] = outcome.best
        fitted["loss_curve_"] = [-(bound + log_jacobian) for bound in outcome.bounds]
        fitted["validation_scores_"] = [bound + log_jacobian for bound in outcome.held_out]
        self._warn_about_health(fitted, columns, outcome.cut_short)
        return fitted

    def _plan(self, n_rows: int, max_epochs: int, decay: bool = True) -> "Plan":
        from ._training import Plan

        batch_size = self._batch_size(n_rows)
        return Plan(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate_init * (batch_size / 128) ** 0.5,
            alpha=self.alpha,
            beta=self.beta,
            kl_warmup=self.kl_warmup,
            free_bits=self.free_bits,
            objective=self.objective,
            n_samples=self.n_train_samples,
            decay=decay,
        )

    def _batch_size(self, n_rows: int) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        return 128 if n_rows < 10_000 else 512 if n_rows < 100_000 else 2048

    def _max_epochs(self, n_rows: int) -> int:
        """As many epochs as make about the same number of steps on any table, at most 400."""
        if self.max_iter != "auto":
            return int(self.max_iter)
        steps_per_epoch = -(-n_rows // self._batch_size(n_rows))
        return int(np.clip(-(-TRAINING_STEPS // steps_per_epoch), 8, 400))

    def _work_per_step(self, vae: "VAE", plan: "Plan", n_rows: int) -> float:
        n_parameters = sum(p.numel() for p in vae.parameters())
        return 3.0 * n_parameters * min(plan.batch_size, n_rows) * plan.n_samples

    def _describe(
        self, columns: Columns, vae: "VAE", rows: "Rows", state: "State | None"
    ) -> dict[str, Any]:
        """The fitted attributes that weights have; None stands for the weights of ``vae``."""
        import torch

        from ._scoring import component_scales

        vae = copy.deepcopy(vae)  # a callback's look at an epoch must not move the fit
        if state is not None:
            vae.load_state_dict(state)
        step = max(len(rows.x) // SAMPLE_ROWS, 1)
        x, weight = rows.x[::step].double(), rows.weight[::step, None].double()
        with torch.no_grad():
            kl = (vae.prior.kl(*vae.encoder(x)) * weight).sum(0) / weight.sum()
            order = torch.argsort(kl, descending=True, stable=True)
            vae.reorder(order)
            kl = kl[order].cpu().numpy()
        return {
            "n_components_": vae.n_components,
            "_n_features_out": vae.n_components,
            "_columns": columns,
            "scaling_": columns.scaling,
            "likelihood_": self._likelihood_name(vae.likelihood),
            "kl_per_component_": kl,
            "n_active_components_": int((kl >= INACTIVE_KL).sum()),
            "component_scale_": component_scales(vae, x[:1000]),
            "noise_variance_": _noise_variance(vae.likelihood, columns),
            "weights_": _to_arrays(vae.state_dict()),
            "_memory": None,
        }

    # -- modules and devices ----------------------------------------------------------------------

    def _device(self) -> "torch.device":
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ValueError(
                f"The 'device' parameter of {type(self).__name__} must be 'auto' or a torch device "
                f"that is available here, such as 'cpu' or 'cuda'. Got {self.device!r}: {error}"
            ) from None
        return device

    def _generator(self, seed: int) -> "torch.Generator":
        import torch

        return torch.Generator(self._device()).manual_seed(seed)

    def _training_dtype(self) -> "torch.dtype":
        import torch

        return torch.float64 if self.precision == "float64" else torch.float32

    def _in_training_precision(self, vae: "VAE") -> "VAE":
        return copy.deepcopy(vae).to(self._device(), self._training_dtype())

    def _new_likelihood(self) -> "Likelihood":
        from .likelihoods import LIKELIHOODS, Gaussian

        if not isinstance(self.likelihood, str):
            return self.likelihood
        if self.likelihood in ("auto", "gaussian"):
            return Gaussian("shared" if self.noise == "auto" else self.noise)
        return LIKELIHOODS[self.likelihood]()

    def _likelihood_name(self, likelihood: "Likelihood") -> NDArray[np.str_]:
        return np.full(self.n_features_in_, type(likelihood).__name__.lower())

    def _new_module(self, columns: Columns, n_components: int | None = None) -> "VAE":
        """A module of the estimator's shape, in float64, on the device."""
        import torch

        from ._vae import VAE
        from .priors import PRIORS

        n_columns = len(columns.shift)
        if n_components is None:
            auto = min(10, -(-n_columns // 3))
            n_components = auto if self.n_components == "auto" else int(self.n_components)
        vae = VAE(
            n_columns,
            n_components,
            self._hidden_layer_sizes(n_columns),
            self.activation,
            self._new_likelihood().for_columns(n_columns, NOISE_FLOOR * columns.rms),
            PRIORS[self.prior]() if isinstance(self.prior, str) else copy.deepcopy(self.prior),
        )
        return vae.to(self._device(), torch.float64)

    def _hidden_layer_sizes(self, n_columns: int) -> tuple[int, ...]:
        if isinstance(self.hidden_layer_sizes, str):  # "auto"
            return (128, 128) if n_columns < 100 else (256, 256)
        return check_hidden_layer_sizes(type(self).__name__, self.hidden_layer_sizes)

    def _fitted_module(self) -> "VAE":
        vae = self._new_module(self._columns, self.n_components_)
        try:
            vae.load_state_dict(_to_tensors(self.weights_))
        except RuntimeError as error:
            raise ValueError(
                f"The parameters of this {type(self).__name__} no longer describe the network "
                "that was fitted. Set them back, or fit again (with warm_start=False). "
                f"{error}"
            ) from None
        return vae.requires_grad_(False)

    # -- callbacks and messages -------------------------------------------------------------------

    def _start_callbacks(self) -> Any:
        if not hasattr(self, "_init_callback_context"):
            return None
        return self._init_callback_context(max_subtasks=None)

    def _tell_callbacks(
        self, task: Any, epoch: "Epoch", fitted: Callable[[], dict[str, Any]]
    ) -> bool:
        """Report one epoch; True if a callback asks to stop."""
        if task is None or epoch.number == 0:
            return False
        leaf = task.subcontext(task_name="epoch")
        leaf.call_on_fit_task_begin(estimator=self)
        return bool(leaf.call_on_fit_task_end(estimator=self, reconstruction_attributes=fitted))

    def _print_progress(self, epoch: "Epoch", plan: "Plan") -> None:
        if self.verbose:
            print(
                f"[{type(self).__name__}] epoch {epoch.number} of at most {plan.max_epochs}: "
                f"bound {epoch.bound:.3f}, held out {epoch.held_out:.3f} nats a row"
            )

    def _not_finite(self, error: "NonFiniteBoundError") -> ValueError:
        return ValueError(
            f"The bound became infinite or nan in epoch {error.epoch}; the wildest values stand in "
            f"column {self._column_name(error.column)}. Use a smaller learning_rate_init (now "
            f"{self.learning_rate_init}), or look for errors in that column."
        )

    def _warn_about_health(
        self, fitted: dict[str, Any], columns: Columns, cut_short: bool
    ) -> None:
        if cut_short:
            warnings.warn(
                f"max_iter={self.max_iter} epochs ended while the held-out bound was still "
                "rising. Increase max_iter, or leave it at 'auto'.",
                ConvergenceWarning,
                stacklevel=5,  # fit's caller
            )
        n_active, n_components = fitted["n_active_components_"], fitted["n_components_"]
        if self.n_components != "auto" and n_active < n_components:
            warnings.warn(
                f"{n_components - n_active} of {n_components} components are inactive: they carry "
                f"less than {INACTIVE_KL} nats, and transform returns 0 for them. "
                f"Use n_components={max(n_active, 1)}.",
                stacklevel=5,  # fit's caller
            )
        floor = 1.001 * (NOISE_FLOOR * columns.rms * columns.scale) ** 2
        at_floor = np.flatnonzero((fitted["noise_variance_"] <= floor) & columns.varies)
        if len(at_floor):
            named = ", ".join(self._column_name(c) for c in at_floor[:5])
            more = " and others" if len(at_floor) > 5 else ""
            warnings.warn(
                f"The noise scale of column {named}{more} fell to its floor, {NOISE_FLOOR} of the "
                "column's standard deviation: the other columns determine it exactly, so its "
                "density has no natural limit. Drop such columns, or use fewer n_components.",
                stacklevel=5,  # fit's caller
            )

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

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
        from ._scoring import posterior_means

        X = self._check_new_rows(X)
        vae = self._fitted_module()
        (z,) = self._by_chunks(partial(posterior_means, vae), X, vae)
        z = z * self._code_scale()
        return z.astype(np.float32) if X.dtype == np.float32 else z

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
        from ._scoring import decode

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
        decoded = self._columns.decode(decode(vae, z, vae.likelihood.mean))
        return decoded.astype(codes.dtype, copy=False)

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

        from ._scoring import decode

        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer >= 1. Got {n_samples!r} instead.")
        vae = self._fitted_module().cpu()
        generator = torch.Generator().manual_seed(_seed(random_state))
        z = vae.prior.sample(int(n_samples), vae.n_components, generator).numpy()
        draw = vae.likelihood.mode if mode else partial(vae.likelihood.sample, generator=generator)
        return self._columns.decode(decode(vae, z, draw))

    # -- scores -----------------------------------------------------------------------------------

    def score_samples(
        self, X: ArrayLike, *, method: str = "log_likelihood", refine: bool = True
    ) -> Array:
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

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            The same for a row whatever the other rows are, and in every call.

        References
        ----------
        .. [1] Burda, Grosse & Salakhutdinov (2016), Importance Weighted Autoencoders, eq. 8.
        .. [2] An & Cho (2015), Variational autoencoder based anomaly detection using
               reconstruction probability.
        """
        X = self._check_new_rows(X)
        vae = self._fitted_module()
        log_jacobian = self._columns.log_jacobian.sum()
        if method == "kl":
            return self._by_chunks(partial(_scoring().negative_kl, vae), X, vae)[0]
        if method == "reconstruction":
            return self.score_features(X).sum(axis=1)
        bank = self._noise_bank(self.n_importance_samples)
        per_row = 2 * max(self.n_importance_samples, 3 * self.n_components_)
        if method == "elbo":
            function = partial(_scoring().sampled_elbo, vae, bank=bank)
            return self._by_chunks(function, X, vae, per_row)[0] + log_jacobian
        if method != "log_likelihood":
            known = ", ".join(map(repr, METHODS))
            raise ValueError(f"method must be one of {known}. Got {method!r} instead.")
        if refine:
            from ._importance import refined_log_likelihood

            large_bank = self._noise_bank(MORE_SAMPLES * self.n_importance_samples)
            function = partial(refined_log_likelihood, vae, bank=bank, large_bank=large_bank)
        else:
            function = partial(_scoring().encoder_log_likelihood, vae, bank=bank)
        scores, largest = self._by_chunks(function, X, vae, per_row)
        self._warn_about_weights(largest, refine)
        return scores + log_jacobian

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
        function = partial(
            _scoring().reconstruction_by_column, vae, bank=self._noise_bank(self.n_importance_samples)
        )
        return self._by_chunks(function, X, vae)[0] + self._columns.log_jacobian

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

    def _check_new_rows(self, X: Any) -> NDArray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype="numeric", reset=False)
        self._check_support(X)
        return X

    def _noise_bank(self, n_samples: int) -> "torch.Tensor":
        return _scoring().noise_bank(n_samples, self.n_components_).to(self._device())

    def _by_chunks(
        self,
        function: Callable[..., tuple["torch.Tensor", ...]],
        X: NDArray,
        vae: "VAE",
        per_row: int = 1,
    ) -> tuple[Array, ...]:
        """Apply ``function``, whose largest array has ``per_row`` network evaluations a row."""
        widest = max(parameter.shape[0] for parameter in vae.parameters())
        numbers = per_row * widest
        work = float(min(numbers * len(X), _scoring().CHUNK_NUMBERS)) * widest
        with enough_threads(work):
            return _scoring().by_chunks(function, X, self._columns, numbers, self._device())

    def _code_scale(self) -> Array:
        """What a posterior mean is multiplied by: 0 for an inactive component."""
        scale = np.ones(self.n_components_) if self.whiten else self.component_scale_
        return np.where(self.kl_per_component_ >= INACTIVE_KL, scale, 0.0)

    def _warn_about_weights(self, largest: Array, refine: bool) -> None:
        share = float((largest > 0.5).mean())
        if self.n_importance_samples >= 8 and share > 0.1:
            fix = "Increase n_importance_samples." if refine else "Use refine=True."
            warnings.warn(
                f"For {share:.0%} of the rows more than half of the importance weight sits on one "
                f"of {self.n_importance_samples} samples: their log p(x) is too low. {fix}",
                stacklevel=3,
            )

    # -- scikit-learn's conventions ---------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _scoring() -> Any:
    from . import _scoring as module  # imports torch

    return module


def _seed(random_state: Any) -> int:
    """A seed for torch's generators; None is fresh, not drawn from NumPy's global generator."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    return int(check_random_state(random_state).randint(2**31 - 1))


def _noise_variance(likelihood: "Likelihood", columns: Columns) -> Array:
    """Of each column, in original units; nan where the likelihood has none."""
    from .likelihoods import Gaussian

    if not isinstance(likelihood, Gaussian):
        return np.full(len(columns.scale), np.nan)
    log_scale = likelihood.log_scale.detach().cpu().numpy()
    return np.exp(2.0 * log_scale) * columns.scale**2


def _to_arrays(state: "State") -> dict[str, NDArray]:
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def _to_tensors(arrays: dict[str, NDArray]) -> "State":
    import torch

    return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
