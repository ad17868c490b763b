"""From the estimator's parameters and rows to modules, training plans and fitted attributes.

``parameters`` are those of ``VAETransformer.get_params``; nothing here knows the estimator itself.
"""

import copy
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ._batches import Rows, encode_rows, merge_duplicates
from ._columns import CHUNK_ROWS, Array, Columns, fit_columns, robust_units, row_chunks
from ._linear_start import column_moments, factor_analysis, probabilistic_pca
from ._parameters import INACTIVE_KL, NOISE_FLOOR
from ._resources import enough_threads
from ._scoring import component_scales
from ._training import Outcome, Plan, Selection, State
from ._vae import VAE, reordered
from .likelihoods import LIKELIHOODS, Gaussian, Likelihood
from .priors import PRIORS

TRAINING_STEPS = 2500  # that max_iter="auto" aims at
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


def likelihood_of(parameters: Parameters) -> Likelihood:
    likelihood, noise = parameters["likelihood"], parameters["noise"]
    if not isinstance(likelihood, str):
        return likelihood
    if likelihood in ("auto", "gaussian"):
        return Gaussian("shared" if noise == "auto" else noise)
    return LIKELIHOODS[likelihood]()


def hidden_layer_sizes(value: Any, n_columns: int) -> tuple[int, ...]:
    if isinstance(value, str):  # "auto"
        return (128, 128) if n_columns < 100 else (256, 256)
    return (int(value),) if isinstance(value, Integral) else tuple(int(size) for size in value)


def module_for(parameters: Parameters, columns: Columns, n_components: int) -> VAE:
    """A module of the shape that the parameters say, in float64, on their device."""
    n_columns = len(columns.shift)
    prior = parameters["prior"]
    vae = VAE(
        n_columns,
        n_components,
        hidden_layer_sizes(parameters["hidden_layer_sizes"], n_columns),
        parameters["activation"],
        likelihood_of(parameters).for_columns(n_columns, NOISE_FLOOR * columns.rms),
        PRIORS[prior]() if isinstance(prior, str) else copy.deepcopy(prior),
    )
    return vae.to(device_of(parameters), torch.float64)


# -- before training --------------------------------------------------------------------------


def merged(X: NDArray, weight: Array) -> tuple[NDArray, Array]:
    index, weight = merge_duplicates(X, weight)
    return X[index], weight


def columns_for(
    parameters: Parameters,
    X: NDArray,
    weight: Array,
    column_name: Callable[[int], str] = str,
) -> Columns:
    standardised = likelihood_of(parameters).support.standardised
    return fit_columns(X, weight, parameters["scaling"], standardised, column_name)


def rows_for(parameters: Parameters, columns: Columns, X: NDArray, weight: Array) -> Rows:
    dtype = torch.float64 if parameters["precision"] == "float64" else torch.float32
    x = encode_rows(X, columns, dtype, device_of(parameters))
    return Rows(x, torch.as_tensor(weight / weight.mean(), dtype=x.dtype, device=x.device))


def start(
    parameters: Parameters, columns: Columns, X: NDArray, weight: Array, rows: Rows, seed: int
) -> VAE:
    """A module at its linear start, in float64."""
    n_rows, n_columns = X.shape
    n_components = parameters["n_components"]
    if n_components == "auto":
        n_components = min(10, -(-n_columns // 3), -(-n_rows // 3))
    vae = module_for(parameters, columns, int(n_components))
    floor = NOISE_FLOOR * columns.rms
    x, shares = rows.x.cpu().numpy(), rows.weight.cpu().numpy()
    with enough_threads(float(n_columns) ** 2 * CHUNK_ROWS):
        chunks = ((columns.encode(X[c]), weight[c]) for c in row_chunks(n_rows))
        moments = column_moments(chunks, n_columns)
        if vae.likelihood.noise == "shared":
            linear = probabilistic_pca(moments, x, shares, vae.n_components, floor)
        else:
            linear = factor_analysis(moments, vae.n_components, floor)
        vae.start_from(linear, *robust_units(x, columns.scaling))
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
    return Plan(
        max_epochs=_max_epochs(parameters, n_rows, batch_size),
        batch_size=batch_size,
        learning_rate=parameters["learning_rate_init"] * (batch_size / 128) ** 0.5,
        alpha=parameters["alpha"],
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
    return 128 if n_rows < 10_000 else 512 if n_rows < 100_000 else 2048


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
    step = max(len(rows.x) // SAMPLE_ROWS, 1)
    x, weight = rows.x[::step].double(), rows.weight[::step, None].double()
    with torch.no_grad():
        mean_kl = (vae.prior.kl(*vae.encoder(x)) * weight).sum(0) / weight.sum()
    order = torch.argsort(mean_kl, descending=True, stable=True)
    vae.load_state_dict(reordered(vae.state_dict(), order))
    kl = mean_kl[order].cpu().numpy()
    return {
        "n_components_": vae.n_components,
        "_n_features_out": vae.n_components,
        "_columns": columns,
        "scaling_": columns.scaling,
        "likelihood_": np.full(len(columns.shift), type(vae.likelihood).__name__.lower()),
        "kl_per_component_": kl,
        "n_active_components_": int((kl >= INACTIVE_KL).sum()),
        "component_scale_": component_scales(vae, x[:1000]),
        "noise_variance_": _noise_variance(vae.likelihood, columns),
        "weights_": to_arrays(vae.state_dict()),
        "_memory": None if memory is None else to_arrays(reordered(memory, order)),
    }


def describe_outcome(outcome: Outcome, columns: Columns) -> dict[str, Any]:
    """The attributes that tell how training went; bounds in original units."""
    log_jacobian = float(columns.log_jacobian.sum())
    return {
        "n_iter_": outcome.n_epochs,
        "best_iter_": outcome.best,
        "loss_curve_": [-(bound + log_jacobian) for bound in outcome.bounds],
        "validation_scores_": [bound + log_jacobian for bound in outcome.held_out],
    }


def _noise_variance(likelihood: Likelihood, columns: Columns) -> Array:
    """Of each column, in original units; nan where the likelihood has none."""
    if not isinstance(likelihood, Gaussian):
        return np.full(len(columns.scale), np.nan)
    log_scale = likelihood.log_scale.detach().cpu().numpy()
    return np.exp(2.0 * log_scale) * columns.scale**2


def to_arrays(state: State) -> dict[str, NDArray]:
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


def to_tensors(arrays: Mapping[str, NDArray]) -> State:
    return {name: torch.tensor(value) for name, value in arrays.items()}
