"""Fitted: the fitted model as one frozen object of plain values, without an estimator.

Estimators hold one and set their attributes from it. None of its fields is a torch object, and none
is pickled or copied with it; torch is imported when a method needs it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._inference.codes import FEW_ROWS, TOO_WILD, Weights, complete_codes
from ._inference.few_rows import few_codes
from ._parameters import INACTIVE_KL, Parameters
from ._resources import for_each, own_gradients
from ._table.checks import Said, check_support
from ._table.column import Array, Unknown
from ._table.columns import Columns
from ._table.frames import library_of
from ._table.gathered import Gathered
from ._table.holes import folded, with_holes
from ._table.schema import Schema
from ._table.unseen import Unseen, warn_of_numbers

if TYPE_CHECKING:
    import torch

    from ._inference.codebook import Codebook
    from ._model.vae import VAE, State

DIAGNOSTICS = ("effective_sample_size", "pareto_k", "n_samples", "standard_error", "mode_gap")
FEWEST_SAMPLES, MOST_SAMPLES = 16, 64  # of z for each row, unless the user asks otherwise
MODULE, CODEBOOK = "_module", "_codebook"  # what is built at first use, and kept


@dataclass(frozen=True, eq=False, repr=False)
class Fitted:
    """A fitted model.

    Attributes
    ----------
    schema : Schema
        What the table was: kinds of columns, levels, frame.
    columns : Columns
        How its columns become the model's, and their likelihoods.
    architecture : dict
        The estimator's parameters that gave the network its shape, as they were in the fit.
    weights : dict of str to ndarray
        The whole network.
    kl_per_component : ndarray of shape (n_components,)
        Mean KL divergence of each component, in nats, falling.
    component_scale : ndarray of shape (n_components,)
        How far the (scaled) reconstruction moves with a step along a component.
    noise_variance : ndarray of shape (n_columns,)
        Variance of each column's Gaussian noise, in original units squared; nan for others.
    memory : dict of str to ndarray or None
        The optimiser's, after ``partial_fit``.
    codes : ndarray of shape (n_codes, n_components) or None
        Posterior means of some training rows: where searches for a row's modes may begin.
    evidence : ndarray of shape (n_candidates, 3) or None
        Numbers of components, the linear model's log-density of held-out rows with each, and its
        standard error, if they were compared.
    """

    schema: Schema
    columns: Columns
    architecture: Parameters
    weights: Weights
    kl_per_component: Array
    component_scale: Array
    noise_variance: Array
    memory: Weights | None = None
    codes: Array | None = None
    evidence: Array | None = None

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(self.columns.kinds.names))
        return f"Fitted({self.n_components} components of {len(self.columns)} columns: {kinds})"

    def __getstate__(self) -> dict[str, Any]:
        built = (MODULE, CODEBOOK)
        return {name: value for name, value in self.__dict__.items() if name not in built}

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = {one.name for one in fields(self) if one.default is MISSING}
        if missing := sorted(known - set(state)):
            raise ValueError(
                "This model was stored by another version of skvae, without the field "
                f"{missing[0]!r}. Read it with that version, or fit it anew."
            )
        self.__dict__.update(state)

    @property
    def n_components(self) -> int:
        return len(self.kl_per_component)

    @property
    def n_active_components(self) -> int:
        return int((self.kl_per_component >= INACTIVE_KL).sum())

    # -- the network ------------------------------------------------------------------------------

    def module(self, device: str = "cpu") -> "VAE":
        """Return the torch module without layers that add nothing, to be looked at, not trained.

        On the processor it is built once, on the memory of ``weights``.
        """
        place = device_of(device)
        known: VAE | None = self.__dict__.get(MODULE)
        if known is not None and place.type == "cpu":
            return known
        with own_gradients():
            state = {name: shared(array) for name, array in self.weights.items()}
            vae = self._built(state).without_idle_layers().to(place).requires_grad_(False)
        if place.type == "cpu":  # elsewhere the weights are copies
            object.__setattr__(self, MODULE, vae)
        return vae

    def codebook(self, vae: "VAE") -> "Codebook":
        """Return the points from which a row's modes are searched, built once on the processor."""
        from ._inference.codebook import codebook_of

        known: Codebook | None = self.__dict__.get(CODEBOOK)
        if known is not None and vae.device.type == "cpu":
            return known
        codes = np.empty((0, self.n_components)) if self.codes is None else self.codes
        with own_gradients():
            codebook = codebook_of(vae, shared(codes))
        if vae.device.type == "cpu":
            object.__setattr__(self, CODEBOOK, codebook)
        return codebook

    def fresh_module(self, device: "torch.device") -> "VAE":
        """Return the torch module to be trained further: nobody else holds it."""
        return self._built(to_tensors(self.weights)).to(device)

    def _built(self, state: "State") -> "VAE":
        vae = module_for(self.architecture, self.columns, self.n_components)
        vae.load_state_dict(state, assign=True)
        return vae

    # -- tables -----------------------------------------------------------------------------------

    def read(self, X: Any, unknown: Unknown = "ignore") -> Any:
        """Read validated rows that came after the fit as a table."""
        if isinstance(X, Gathered):
            return X.table(lambda part: self.read(part, unknown))
        return self.read_all(X, unknown)[0]

    def read_all(self, X: Any, unknown: Unknown = "ignore") -> tuple[Any, Unseen]:
        """Read them as a table, and say where fit has not seen what they hold: it is missing there.

        Where "auto" took a column of 0 and 1 for a switch, another number is like an unknown level,
        and so is one that the shape of a column has no place for.
        """
        schema = self.schema
        if schema.library == "pandas" and library_of(X) == "pandas":
            names, now = schema.template.columns, X.columns
            if not names.equals(now):  # lists of names would not be equal if one is nan
                raise ValueError(
                    f"The columns of X are {list(now)}, but fit had {list(names)}. Pass the "
                    "columns of fit, in their order."
                )
        table, unseen = schema.read(X, unknown)
        known, others = self.admitted(table, unknown)
        return known, unseen.with_more(*others.T)

    def admitted(self, table: Any, unknown: Unknown) -> tuple[Any, NDArray[np.intp]]:
        """Return a table without what has no density, and where (M, 2) that stood; or raise."""
        schema, limits, kinds = self.schema, self.columns.limits, self.columns.kinds
        if limits.none:
            return table, np.zeros((0, 2), dtype=np.intp)
        lenient = kinds.automatic & (unknown == "ignore")
        names = schema.names
        said = Said(names, kinds.names, [support.description for support in kinds.supports])
        known, others = check_support(table, limits, lenient, said)
        held = {column: shape.examples for column, shape in self.columns.shapes.items()}
        warn_of_numbers(names, table, others, held)
        return known, others

    def write(self, table: Array, generator: np.random.Generator | None = None) -> Any:
        """Turn a table into what was fitted: kind of frame, names, order and dtypes."""
        return self.schema.write(table, generator)

    def with_strays(self, schema: Schema) -> "Fitted":
        """Return the model with what ``schema``, of more rows, says of texts among numbers."""
        if not any(column.remark for column in schema.columns):
            return self
        pairs = zip(self.schema.columns, schema.columns, strict=True)
        columns = [replace(own, strays=all_.strays, remark=all_.remark) for own, all_ in pairs]
        return replace(self, schema=replace(self.schema, columns=tuple(columns)))

    # -- codes ------------------------------------------------------------------------------------

    def code_scale(self, whiten: bool) -> Array:  # (K,)
        """Return what a posterior mean is multiplied by: 0 for an inactive component."""
        scale = np.ones(self.n_components) if whiten else self.component_scale
        return np.where(self.kl_per_component >= INACTIVE_KL, scale, 0.0)

    def encode(
        self, table: Any, whiten: bool = False, dtype: Any = np.float64, device: str = "cpu"
    ) -> Array:  # (N, K)
        """Return the posterior means of a table's rows, scaled to the data's metric."""
        activation = self.architecture["activation"]
        z = complete_codes(table, self.weights, self.columns, activation, for_each)
        if z is None:
            return self._encode(table, whiten, dtype, device)
        others = ~(np.abs(z) < TOO_WILD).all(axis=1)  # nan, too
        z *= self.code_scale(whiten)
        if others.any():
            z[others] = self._encode(table[others], whiten, dtype, device)
        return z.astype(dtype, copy=False)

    def _encode(self, table: Any, whiten: bool, dtype: Any, device: str) -> Array:
        if table.shape[0] <= FEW_ROWS:
            activation = self.architecture["activation"]
            z = few_codes(table, self.weights, self.columns, activation)
            if z is not None and (np.abs(z) < TOO_WILD).all():
                return (z * self.code_scale(whiten)).astype(dtype, copy=False)
        import torch

        from ._inference.scores import posterior_means

        vae = self.module(device)
        scale = torch.from_numpy(self.code_scale(whiten)).to(vae.device)
        function = partial(posterior_means, vae, scale=scale)
        return self.by_chunks(function, table, vae, dtype=dtype)[0]

    def decode(
        self, codes: Array, whiten: bool = False, dtype: Any = np.float64, device: str = "cpu"
    ) -> Array:  # (N, D)
        """Return the decoder's mean as a table, for codes as ``encode`` returns them."""
        scale = self.code_scale(whiten)
        z = np.divide(codes, scale, out=np.zeros(codes.shape), where=scale > 0.0)
        vae = self.module(device)
        return self._decoded(vae, z, vae.likelihood.mean, dtype)

    def sample(
        self, n_samples: int, seed: int, mode: bool = False, holes: bool = False
    ) -> Array:  # (N, D)
        """Draw a table from the model: prior, decoder, likelihood (or its mode)."""
        import torch

        vae = self.module()
        generator = torch.Generator().manual_seed(seed)
        with own_gradients():
            z = vae.prior.now.sample(n_samples, vae.n_components, generator).double().numpy()
        draw = vae.likelihood.mode if mode else partial(vae.likelihood.sample, generator=generator)
        table = self._decoded(vae, z, draw, np.float64)
        return with_holes(table, self.schema.holes) if holes else table

    def _decoded(self, vae: "VAE", z: Array, of_raw: Any, dtype: Any) -> Array:
        from ._inference.scores import decoded

        with own_gradients():
            return decoded(vae, z, of_raw, self.columns, dtype)

    # -- scores -----------------------------------------------------------------------------------

    def score(
        self,
        table: Any,
        method: str = "log_likelihood",
        n_samples: int | str = "auto",
        refine: bool = True,
        device: str = "cpu",
    ) -> tuple[Array, dict[str, Array]]:
        """Score a table's rows, in nats and original units; higher is more normal.

        Returns the scores (N,) and, for a log-likelihood, diagnostics of the estimates.
        """
        from ._inference.scores import in_original_units, score_function

        vae, n_samples = self.module(device), self.samples_for(method, n_samples)
        searched = method == "log_likelihood" and refine
        codebook = self.codebook(vae) if searched else None
        with own_gradients():
            function = score_function(vae, method, n_samples, codebook)
        if method != "kl":
            function = in_original_units(function, self.columns)
        per_row = 1 if method == "kl" else n_samples
        scores, *of_estimate = self.by_chunks(function, table, vae, per_row)
        return scores, dict(zip(DIAGNOSTICS, of_estimate, strict=False))

    def samples_for(self, method: str, asked: int | str) -> int:
        """Return how many samples of z a score takes for each row."""
        if not isinstance(asked, str):
            return asked
        if method in ("log_likelihood", "conditional"):
            return MOST_SAMPLES
        return min(max(2 * self.n_components, FEWEST_SAMPLES), MOST_SAMPLES)

    def score_features(
        self, table: Any, n_samples: int | str = "auto", device: str = "cpu"
    ) -> Array:
        """Return each column's share of the reconstruction term, (N, D), in original units."""
        from ._inference.scores import shares_of_columns

        vae, n_samples = self.module(device), self.samples_for("reconstruction", n_samples)
        bank = _noise_bank(n_samples, vae)
        function = partial(shares_of_columns, vae, bank=bank, columns=self.columns)
        return folded(self.by_chunks(function, table, vae, n_samples)[0], self.schema.holes)

    def centrality(self, table: Any, device: str = "cpu") -> Array:  # (N,)
        """Return minus the mean square of each row's cells, in robust units."""
        from ._inference.scores import negative_distance

        vae = self.module(device)
        return self.by_chunks(partial(negative_distance, vae), table, vae)[0]

    # -- missing cells ----------------------------------------------------------------------------

    def conditional(
        self,
        table: Any,
        n_samples: int | str = "auto",
        seed: int | None = None,
        device: str = "cpu",
    ) -> Array:  # (N, D)
        """Return every cell given the observed ones of its row: its expectation, or a draw."""
        if seed is None:
            return self.expected(table, n_samples, device=device)[0]
        import torch

        from ._inference.conditional import conditional_draws

        vae, n_samples = self.module(device), self.samples_for("conditional", n_samples)
        generator = torch.Generator(vae.device).manual_seed(seed)
        known: dict[str, Any] = {"generator": generator, "codebook": self.codebook(vae)}
        draw = partial(conditional_draws, vae, n_samples=n_samples, **known)
        return self.columns.decode(self.by_chunks(draw, table, vae, n_samples, in_order=True)[0])

    def expected(
        self,
        table: Any,
        n_samples: int | str = "auto",
        levels: Sequence[int] = (),
        device: str = "cpu",
    ) -> tuple[Array, ...]:  # (N, D), (N, L)
        """Return what to expect of every cell, and of some features: indicators of levels."""
        from ._inference.conditional import conditional_means

        vae, n_samples = self.module(device), self.samples_for("conditional", n_samples)
        bank, codebook = _noise_bank(n_samples, vae), self.codebook(vae)
        known: dict[str, Any] = {"bank": bank, "codebook": codebook, "columns": self.columns}
        function = partial(conditional_means, vae, **known, levels=list(levels))
        return self.by_chunks(function, table, vae, n_samples)

    def by_chunks(
        self,
        function: Callable[..., tuple["torch.Tensor", ...]],
        table: Any,
        vae: "VAE",
        per_row: int = 1,
        *,
        dtype: Any = None,
        in_order: bool = False,
    ) -> tuple[Array, ...]:
        """Apply ``function`` to encoded rows and what is observed of them, some rows at a time.

        It evaluates a network ``per_row`` times for a row.
        """
        from ._inference.scores import by_chunks

        with own_gradients():
            return by_chunks(
                function, self.columns, table, vae, per_row, dtype=dtype, in_order=in_order
            )


def _noise_bank(n_samples: int, vae: "VAE") -> "torch.Tensor":
    from ._inference.scores import noise_bank

    with own_gradients():
        return noise_bank(n_samples, vae.n_components).to(vae.device)


# -- modules --------------------------------------------------------------------------------------


def module_for(architecture: Parameters, columns: Columns, n_components: int) -> "VAE":
    """Build a module of the shape that the parameters say, in float64, on the processor."""
    import torch

    from ._model.vae import VAE
    from .likelihoods._mixed import ColumnLikelihoods
    from .likelihoods._names import likelihood_of
    from .priors import PRIORS

    known = {n: likelihood_of(n, architecture["noise"]) for n in set(columns.kinds.likelihoods)}
    each = [known[name] for name in columns.kinds.likelihoods]
    edges = {column: shape.edges for column, shape in columns.shapes.items()}
    likelihood = ColumnLikelihoods(each, columns.kinds.n_levels, columns.rms, edges)
    prior, n_features = architecture["prior"], len(likelihood.column)
    vae = VAE(
        likelihood,
        PRIORS[prior]() if isinstance(prior, str) else prior,
        n_components=n_components,
        hidden_layer_sizes=hidden_layer_sizes(architecture["hidden_layer_sizes"], n_features),
        activation=architecture["activation"],
        may_miss=columns.may_miss.tolist(),
    )
    return vae.to(torch.float64)


def hidden_layer_sizes(value: Any, n_features: int) -> tuple[int, ...]:
    """Return the encoder's widths that the parameter stands for."""
    if isinstance(value, str):  # "auto"
        return (128, 128) if n_features < 100 else (256, 256)
    return (int(value),) if isinstance(value, Integral) else tuple(int(size) for size in value)


def device_of(name: str) -> "torch.device":
    """Return the torch device that a name stands for, or raise a ValueError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).to("cpu")  # which "meta", without numbers, has no way to
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            "The 'device' parameter of VAETransformer must be 'auto' or a torch device that is "
            f"available here, such as 'cpu' or 'cuda'. Got {name!r} instead: {error}"
        ) from None
    return device


def to_arrays(state: Mapping[str, "torch.Tensor"]) -> dict[str, NDArray]:
    """Copy a module's state to plain arrays."""
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def to_tensors(arrays: Weights) -> "State":
    """Copy plain arrays to tensors."""
    import torch

    return {name: torch.tensor(value) for name, value in arrays.items()}


def shared(array: NDArray) -> "torch.Tensor":
    """Return a tensor on the memory of an array, or on a copy's: a file's may be read-only."""
    import torch

    return torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)
