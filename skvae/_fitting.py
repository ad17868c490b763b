"""From the estimator's parameters and rows to modules, training plans and fitted attributes.

``parameters`` are those of ``VAETransformer.get_params``; nothing here knows the estimator itself.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse

from ._batches import DenseCells, Rows, encode_rows, merge_duplicates
from ._column_likelihoods import ColumnLikelihoods
from ._columns import (
    CHUNK_CELLS,
    CHUNK_ROWS,
    Array,
    Columns,
    Limits,
    fit_columns,
    heavy_tailed,
    measure,
    share_one_unit,
    two_valued,
)
from ._frames import Column, Schema
from ._parameters import INACTIVE_KL, NOISE_FLOOR, automatic_batch_size
from ._resources import enough_threads
from ._scoring import component_scales
from ._start import start_linear
from ._training import Outcome, Plan, Selection, State
from ._vae import VAE, reordered
from .likelihoods import (
    LIKELIHOODS,
    Categorical,
    Gaussian,
    Likelihood,
    Ordinal,
    Support,
)
from .priors import PRIORS

TRAINING_STEPS = 1800  # that max_iter="auto" aims at: 40% more, at 0.003, gained nothing
LEARNING_RATE = 0.005  # by batches of 128 rows
FASTEST_RATE = 0.012  # 10 epochs gained 0.22 nats a column over the start for 0.15 of 0.003
SAMPLE_ROWS = 10_000  # for the order and the scale of the components

Parameters = Mapping[str, Any]


def device_of(parameters: Parameters) -> torch.device:
    name = parameters["device"]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            "The 'device' parameter of VAETransformer must be 'auto' or a torch device that is "
            f"available here, such as 'cpu' or 'cuda'. Got {name!r} instead: {error}"
        ) from None
    return device


def likelihood_of(name: Any, noise: str) -> Likelihood:
    """The likelihood that a name stands for; an instance stands for itself."""
    if isinstance(name, Likelihood):
        return name
    if name == "gaussian":
        return Gaussian("per_column" if noise == "per_column" else "shared")
    return LIKELIHOODS[name]()


def column_likelihoods(parameters: Parameters, columns: Columns) -> ColumnLikelihoods:
    """One block for each kind of likelihood among the columns."""
    blocks: dict[Any, list[int]] = {}
    for number, name in enumerate(columns.likelihoods):
        blocks.setdefault(name, []).append(number)
    floor = NOISE_FLOOR * columns.rms
    kinds = ColumnLikelihoods(
        [(likelihood_of(name, parameters["noise"]), numbers) for name, numbers in blocks.items()]
    )
    return kinds.for_columns(columns.n_levels, floor)


def support_of(likelihood: Any) -> Support:
    """What a likelihood asks of a column; "auto" has not been decided, and so asks nothing."""
    if isinstance(likelihood, str) and likelihood == "auto":
        return Gaussian.support
    return likelihood_of(likelihood, "auto").support


def supports_of(columns: Columns) -> list[Support]:
    """Of each column."""
    known = {likelihood: support_of(likelihood) for likelihood in set(columns.likelihoods)}
    return [known[likelihood] for likelihood in columns.likelihoods]


def limits_of(likelihoods: Sequence[Any]) -> Limits:
    known = {likelihood: support_of(likelihood) for likelihood in set(likelihoods)}
    supports = [known[likelihood] for likelihood in likelihoods]
    return Limits(
        np.array([support.lower for support in supports]),
        np.array([support.upper for support in supports]),
        np.array([support.whole for support in supports]),
    )


def takes_levels(likelihood: Any) -> bool:
    """Whether a likelihood is of the levels of a category."""
    return isinstance(likelihood_of(likelihood, "auto"), Categorical | Ordinal)


def hidden_layer_sizes(value: Any, n_columns: int) -> tuple[int, ...]:
    if isinstance(value, str):  # "auto"
        return (128, 128) if n_columns < 100 else (256, 256)
    return (int(value),) if isinstance(value, Integral) else tuple(int(size) for size in value)


def module_for(parameters: Parameters, columns: Columns, n_components: int) -> VAE:
    """A module of the shape that the parameters say, in float64, on their device."""
    prior = parameters["prior"]
    likelihood = column_likelihoods(parameters, columns)
    n_features = len(likelihood.columns_of_features(len(columns.shift)))
    vae = VAE(
        columns.may_miss.tolist(),
        n_components,
        hidden_layer_sizes(parameters["hidden_layer_sizes"], n_features),
        parameters["activation"],
        likelihood,
        PRIORS[prior]() if isinstance(prior, str) else copy.deepcopy(prior),
    )
    return vae.to(device_of(parameters), torch.float64)


# -- before training --------------------------------------------------------------------------


def merged(X: Any, weight: Array) -> tuple[Any, Array]:
    """One row of each kind, in a copy, and how often it counts."""
    index, weight = merge_duplicates(X, weight)
    return X[index], weight


def columns_for(
    parameters: Parameters,
    schema: Schema,
    asked: Sequence[Any],
    X: Any,
    weight: Array,
    column_name: Callable[[int], str] = str,
) -> Columns:
    """Choose each column's likelihood where "auto" was asked for, then shift and scale."""
    moments = measure(X, weight, column_name)
    binary = two_valued(X)
    numbers = np.array([column.kind != "category" for column in schema.columns])
    # Pixels that are only ever 0 or 1 among grey ones are no switches.
    one_unit = bool(numbers.all()) and not issparse(X) and share_one_unit(X)
    if one_unit and not binary.all():
        binary = np.zeros_like(binary)
    heavy = np.zeros(len(asked), dtype=bool)
    if not one_unit and not issparse(X):
        heavy = heavy_tailed(X)
    likelihoods = [
        _automatic(schema.columns[n], bool(binary[n]), bool(heavy[n])) if name == "auto" else name
        for n, name in enumerate(asked)
    ]
    known = {name: support_of(name).units for name in set(likelihoods)}
    units = [known[name] for name in likelihoods]
    limits = limits_of(likelihoods)
    return fit_columns(
        X, moments, likelihoods, units, schema.n_levels, parameters["scaling"], one_unit, limits
    )


def _automatic(column: Column, binary: bool, heavy: bool) -> str:
    if column.kind == "category":
        return "categorical"
    if column.kind == "boolean" or binary:
        return "bernoulli"
    return "student_t" if heavy else "gaussian"


def rows_for(
    parameters: Parameters, columns: Columns, X: Any, weight: Array, overwrite: bool = False
) -> Rows:
    dtype = torch.float64 if parameters["precision"] == "float64" else torch.float32
    cells = encode_rows(X, columns, dtype, device_of(parameters), overwrite)
    share = torch.as_tensor(weight / weight.mean(), dtype=dtype, device=device_of(parameters))
    return Rows(cells, share)


def start(parameters: Parameters, columns: Columns, X: Any, weight: Array, seed: int) -> VAE:
    """A module at its linear start, in float64."""
    n_rows, n_columns = X.shape
    n_components = parameters["n_components"]
    if n_components == "auto":
        n_components = min(10, -(-n_columns // 3), -(-n_rows // 3))
    vae = module_for(parameters, columns, int(n_components))
    with enough_threads(float(vae.n_features) ** 2 * CHUNK_ROWS):
        start_linear(vae, columns, supports_of(columns), X, weight)
    vae.initialise(torch.Generator().manual_seed(seed))
    return vae


# -- training ---------------------------------------------------------------------------------


def trainable(parameters: Parameters, vae: VAE) -> VAE:
    """A copy in the precision that training uses."""
    dtype = torch.float64 if parameters["precision"] == "float64" else torch.float32
    return copy.deepcopy(vae).requires_grad_(True).to(dtype)


def generator_for(parameters: Parameters, seed: int) -> torch.Generator:
    return torch.Generator(device_of(parameters)).manual_seed(seed)


def plan_for(parameters: Parameters, n_rows: int) -> Plan:
    batch_size = _batch_size(parameters, n_rows)
    max_epochs = _max_epochs(parameters, n_rows, batch_size)
    n_steps = max_epochs * -(-n_rows // batch_size)
    learning_rate = _learning_rate(parameters, n_steps) * (batch_size / 128) ** 0.5
    # The way that decay can take a weight is no longer in a run that is.
    longer = learning_rate * n_steps / (LEARNING_RATE * TRAINING_STEPS)
    return Plan(
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        alpha=parameters["alpha"] / max(longer, 1.0),
        beta=parameters["beta"],
        kl_warmup=parameters["kl_warmup"],
        free_bits=parameters["free_bits"],
        objective=parameters["objective"],
        n_samples=parameters["n_train_samples"],
    )


def selection_for(parameters: Parameters, n_columns: int) -> Selection:
    return Selection(
        early_stopping=bool(parameters["early_stopping"]),
        validation_fraction=parameters["validation_fraction"],
        patience=parameters["n_iter_no_change"],
        tol=parameters["tol"] * n_columns,
    )


def work_per_step(vae: VAE, plan: Plan, n_rows: int) -> float:
    """Multiplications, about."""
    n_parameters = sum(p.numel() for p in vae.parameters())
    return 3.0 * n_parameters * min(plan.batch_size, n_rows) * plan.n_samples


def _batch_size(parameters: Parameters, n_rows: int) -> int:
    if parameters["batch_size"] != "auto":
        return int(parameters["batch_size"])
    return automatic_batch_size(n_rows)


def _learning_rate(parameters: Parameters, n_steps: int) -> float:
    """Larger in a run that the user has cut short: on its way down it is small soon enough."""
    if parameters["learning_rate_init"] != "auto":
        return float(parameters["learning_rate_init"])
    if parameters["max_iter"] == "auto":
        return LEARNING_RATE
    rate = LEARNING_RATE * TRAINING_STEPS / max(n_steps, 1)
    return float(np.clip(rate, LEARNING_RATE, FASTEST_RATE))


def _max_epochs(parameters: Parameters, n_rows: int, batch_size: int) -> int:
    """As many epochs as make about the same number of steps on any table, at most 400."""
    if parameters["max_iter"] != "auto":
        return int(parameters["max_iter"])
    steps_per_epoch = -(-n_rows // batch_size)
    return int(np.clip(-(-TRAINING_STEPS // steps_per_epoch), 8, 400))


# -- after training ---------------------------------------------------------------------------


def describe(
    columns: Columns, vae: VAE, rows: Rows, state: State | None, memory: State | None = None
) -> dict[str, Any]:
    """The attributes that follow from the weights; ``state`` None stands for those of ``vae``.

    Components are renumbered by the information that they carry, falling.
    """
    vae = copy.deepcopy(vae)  # a callback's look at an epoch must not move the fit
    if state is not None:
        vae.load_state_dict(state)
    step = max(len(rows) // SAMPLE_ROWS, 1)
    total, count = torch.zeros(vae.n_components, dtype=torch.float64, device=vae.device), 0.0
    with torch.no_grad():
        for x, observed, weight in rows.every(step).chunks(vae.n_features):
            kl = vae.prior.kl(*vae.encode(x.double(), observed))
            total += (kl * weight[:, None].double()).sum(0)
            count += float(weight.sum())
    mean_kl = total / count
    order = torch.argsort(mean_kl, descending=True, stable=True)
    vae.load_state_dict(reordered(vae.state_dict(), order))
    carried = mean_kl[order].cpu().numpy()
    few = rows[: max(50, min(1000, CHUNK_CELLS // vae.n_features))]
    return {
        "n_components_": vae.n_components,
        "_n_features_out": vae.n_components,
        "_columns": columns,
        "scaling_": columns.scaling,
        "likelihood_": np.array([name_of(likelihood) for likelihood in columns.likelihoods]),
        "kl_per_component_": carried,
        "n_active_components_": int((carried >= INACTIVE_KL).sum()),
        "component_scale_": component_scales(vae, few.x.double(), few.observed),
        "noise_variance_": _noise_variance(vae.likelihood, columns),
        "weights_": to_arrays(vae.state_dict()),
        "_memory": None if memory is None else to_arrays(reordered(memory, order)),
    }


def describe_outcome(outcome: Outcome, columns: Columns, rows: Rows) -> dict[str, Any]:
    """The attributes that tell how training went; bounds in original units."""
    log_jacobian = _mean_log_jacobian(columns, rows)
    return {
        "n_iter_": outcome.n_epochs,
        "best_iter_": outcome.best,
        "loss_curve_": [-(bound + log_jacobian) for bound in outcome.bounds],
        "validation_scores_": [bound + log_jacobian for bound in outcome.held_out],
    }


def _mean_log_jacobian(columns: Columns, rows: Rows) -> float:
    """Of the change to original units, over what is observed; mean of the rows, nats."""
    by_column = torch.from_numpy(columns.log_jacobian)
    cells = rows.cells
    complete = (
        cells.observed is None if isinstance(cells, DenseCells) else not columns.may_miss.any()
    )
    if complete or not by_column.any():
        return float(by_column.sum())
    total = 0.0
    for _, observed, weight in rows.chunks(len(by_column)):
        seen = torch.ones(len(weight), len(by_column)) if observed is None else observed.cpu()
        total += float(weight.cpu().double() @ seen.double() @ by_column)
    return total / float(rows.weight.double().sum())


def _noise_variance(likelihood: Likelihood, columns: Columns) -> Array:
    """Of each column, in original units; nan where the likelihood has none."""
    variance = likelihood.noise_variance(len(columns.scale)).detach().cpu().numpy()
    return variance * columns.scale**2


def name_of(likelihood: Any) -> str:
    if isinstance(likelihood, str):
        return likelihood
    names: dict[Any, str] = {kind: name for name, kind in LIKELIHOODS.items()}
    return names.get(type(likelihood), type(likelihood).__name__.lower())


def to_arrays(state: State) -> dict[str, NDArray]:
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def to_tensors(arrays: Mapping[str, NDArray]) -> State:
    return {name: torch.tensor(value) for name, value in arrays.items()}
