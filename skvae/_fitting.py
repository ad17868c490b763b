"""Rows and parameters to a fitted model: fit(parameters, rows, ...) -> Fitted and its history.

``parameters`` are those of ``VAETransformer.get_params``; nothing here knows the estimator itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ._advice import warn
from ._callbacks import Audience, Nobody
from ._fitted import Fitted, to_arrays, to_tensors
from ._history import History
from ._inference.codebook import AMONG, spread_codes
from ._inference.scores import component_scales
from ._model.vae import VAE, State
from ._parameters import Parameters, architecture_of
from ._preparing import Prepared, generator_for, prepare, trainable
from ._resources import LITTLE, enough_threads, training_resources
from ._specification import copied
from ._table.column import Array
from ._table.columns import Columns
from ._table.schema import LabelledRows
from ._table.statistics import CHUNK_CELLS
from ._training.loop import Run, worst_column
from ._training.plan import Epoch, NonFiniteBoundError, Plan, Start, plan_for
from ._training.rows import Rows, mean_log_jacobian
from ._training.selection import Outcome, Watch, climb, selection_for

FEW_TYPICAL = 10  # rows that scale all later ones
SAMPLE_ROWS = 10_000  # for the order and the scale of the components, and
SAMPLE_CELLS = 2**26  # so many cells of them


# -- fit --------------------------------------------------------------------------------------


def fit(
    parameters: Parameters,
    rows: LabelledRows,
    seed: int,
    before: tuple[Fitted, History] | None = None,
    audience: Audience | None = None,
) -> tuple[Fitted, History]:
    """Fit a model to rows, or train the one from ``before`` further.

    Parameters
    ----------
    parameters : dict
        Of VAETransformer.
    rows : LabelledRows
        What to fit to.
    seed : int
        Of the hidden layers, held-out rows and noise.
    before : (Fitted, History), default=None
        Whose weights and columns to go on with, and whose epochs to count on.
    audience : Audience, default=None
        Whom to tell of each epoch. With one, a KeyboardInterrupt while it trains ends the training
        and no more.

    Returns
    -------
    fitted : Fitted
        The model.
    history : History
        How it was trained.

    Raises
    ------
    ValueError
        If the rows are not admissible, or if the bound becomes infinite.
    """
    keeps, past = audience is not None, None if before is None else before[1]
    if before is not None and parameters["max_iter"] == 0:
        warn(
            "warm_start=True with max_iter=0 leaves the model as it is: it learns nothing from X. "
            "Use a larger max_iter, or warm_start=False."
        )
    prepared = prepare(parameters, rows, seed, None if before is None else before[0])
    plan = plan_for(parameters, len(prepared.rows))

    def climbs(watch: Watch) -> Outcome:
        return _climbed(prepared, plan, seed, watch, past=past, keeps=keeps)

    return trained(prepared, plan, climbs, past, audience or Nobody())


def trained(
    prepared: Prepared,
    plan: Plan,
    climbs: Callable[[Watch], Outcome],
    past: History | None,
    audience: Audience,
) -> tuple[Fitted, History]:
    """Train as ``climbs`` does, tell an audience of it, and return the model and its history."""
    parameters = prepared.parameters
    audience.begin(plan.max_epochs)

    log_jacobian = mean_log_jacobian(prepared.columns, prepared.rows)
    seen: list[Epoch] = []

    def watch(epoch: Epoch) -> bool:
        told = replace(
            epoch, bound=epoch.bound + log_jacobian, held_out=epoch.held_out + log_jacobian
        )
        seen.append(replace(epoch, snapshot=dict))  # without what holds the module
        return audience.hear(told, lambda: describe(prepared, epoch.snapshot()))

    work = plan.work_per_step(prepared.vae, len(prepared.rows))
    with training_resources(work, parameters["precision"]):
        outcome = climbs(watch)
    with enough_threads(LITTLE):
        fitted = _checked(describe(prepared, outcome.state), prepared, outcome.best)
        return fitted, _history(outcome, prepared, past, seen)


def fit_one_epoch(
    parameters: Parameters,
    rows: LabelledRows,
    seed: int,
    before: tuple[Fitted, History] | None,
) -> tuple[Fitted, History]:
    """Train for one epoch over the rows, at a constant learning rate, with nothing held out."""
    fitted, past = before or (None, History(0, 0, [], []))
    prepared = prepare(parameters, rows, seed, fitted)
    number, n_rows = past.n_epochs + 1, len(prepared.rows)
    if fitted is None and len(rows.weight) < FEW_TYPICAL:
        warn(
            f"The first call of partial_fit has {len(rows.weight)} rows, and all later ones are "
            f"scaled by these. Let it have {FEW_TYPICAL} typical rows or more, or call fit first."
        )
    whole = plan_for({**parameters, "max_iter": "auto"}, n_rows)
    plan = replace(whole, max_epochs=1, decay=False)
    generator = generator_for(parameters, seed + number)  # fresh in each call
    run = Run(trainable(parameters, prepared.launch), plan, generator, n_rows)
    if fitted is not None and fitted.memory is not None:
        run.resume(to_tensors(fitted.memory))
    work = plan.work_per_step(prepared.vae, n_rows)
    with training_resources(work, parameters["precision"]):
        bound = run.epoch(prepared.rows)
    with enough_threads(LITTLE):
        if not np.isfinite(bound):
            column = worst_column(prepared.vae, prepared.rows)
            raise not_finite(NonFiniteBoundError(number, column), prepared)
        fitted = _checked(describe(prepared, run.snapshot(), run.memory()), prepared, number)
    undone = [number] if run.n_undone else []
    outcome = Outcome(None, [bound], [], 1, 1, False, undone)
    seen = [Epoch(0, np.nan, np.nan, 0.0, dict), Epoch(1, bound, np.nan, 0.0, dict, kl=run.kl)]
    return fitted, _history(outcome, prepared, past, seen)


def _climbed(
    prepared: Prepared,
    plan: Plan,
    seed: int,
    watch: Watch,
    *,
    past: History | None,
    keeps: bool,
) -> Outcome:
    parameters, start, noise = prepared.parameters, None, None
    if past is not None:  # the same rows are held out, but the same epochs would say nothing new
        noise = generator_for(parameters, seed + past.n_epochs)
    if prepared.launch is not prepared.vae:
        start = Start(trainable(parameters, prepared.vae), prepared.optimism)
    vae = prepared.launch
    try:
        return climb(
            vae if plan.max_epochs == 0 else trainable(parameters, vae),
            prepared.rows,
            plan,
            selection_for(parameters, len(prepared.columns)),
            generator=generator_for(parameters, seed),
            watch=watch,
            noise=noise,
            start=start,
            keeps=keeps,
        )
    except NonFiniteBoundError as error:
        raise not_finite(error, prepared) from None


def not_finite(error: NonFiniteBoundError, prepared: Prepared) -> ValueError:
    column = prepared.names[error.column]
    if error.epoch == 0:
        return ValueError(
            "The linear model of the rows is not finite in the precision of training; the wildest "
            f"values stand in column {column}. Use another unit there, or scaling='columns'."
        )
    return ValueError(
        f"The bound became infinite or nan in epoch {error.epoch}; the wildest values stand in "
        f"column {column}. Use a smaller learning_rate_init (now "
        f"{prepared.parameters['learning_rate_init']}), or look for errors in that column."
    )


def _checked(fitted: Fitted, prepared: Prepared, epoch: int) -> Fitted:
    """Return a model that can be used: the last step comes after the last bound was seen."""
    numbers = [fitted.kl_per_component, fitted.component_scale, *fitted.weights.values()]
    if all(np.isfinite(each).all() for each in numbers):
        return fitted
    column = worst_column(prepared.vae, prepared.rows)
    raise not_finite(NonFiniteBoundError(epoch, column), prepared)


# -- after training ---------------------------------------------------------------------------


def describe(prepared: Prepared, state: State | None, memory: State | None = None) -> Fitted:
    """Make the fitted model of weights; ``state`` None stands for those of the start.

    Components are renumbered by the information that they carry, falling.
    """
    vae = copied(prepared.vae)  # a callback's look at an epoch must not move the fit
    if state is not None:
        vae.load_state_dict(state)
    information = _information(vae.copied_without_idle_layers(), prepared.rows)
    order = torch.argsort(information, descending=True, stable=True)
    vae.load_state_dict(vae.reordered(vae.state_dict(), order))
    weights = to_arrays(vae.state_dict())
    memory = None if memory is None else vae.reordered(memory, order)
    vae.without_idle_layers()  # which take long to say nothing
    return Fitted(
        schema=prepared.schema,
        columns=prepared.columns,
        architecture=architecture_of(prepared.parameters),
        weights=weights,
        kl_per_component=information[order].cpu().numpy(),
        component_scale=_component_scale(vae, prepared.rows),
        noise_variance=_noise_variance(vae, prepared.columns),
        memory=None if memory is None else to_arrays(memory),
        codes=_spread_codes(vae, prepared.rows),
        evidence=prepared.evidence,
    )


@torch.no_grad()
def _information(vae: VAE, rows: Rows) -> torch.Tensor:  # (K,)
    """Return what each component tells of a row on average, in nats.

    It is the KL divergence from the prior. Where that has no closed form, the divergence is from
    the Gaussian that has the moments of all codes together, whatever the prior.
    """
    n_rows = min(SAMPLE_ROWS, max(SAMPLE_CELLS // vae.n_features, 1000))
    some = rows.every(max(len(rows) // n_rows, 1)).chunks(vae.n_features)
    codes = [(*vae.encode(x.double(), observed), weight) for x, observed, weight in some]
    count = sum(float(weight.sum()) for *_, weight in codes)

    def mean(values: list[Any]) -> torch.Tensor:
        pairs = zip(values, codes, strict=True)
        return sum((v * code[2][:, None].double()).sum(0) for v, code in pairs) / count

    divergences = [vae.prior.now.closed_kl(loc, log_scale) for loc, log_scale, _ in codes]
    if divergences[0] is not None:
        return mean(divergences)
    second = mean([loc.square() + torch.exp(2.0 * log_scale) for loc, log_scale, _ in codes])
    variance = second - mean([loc for loc, *_ in codes]).square()
    return 0.5 * torch.log(variance) - mean([log_scale for _, log_scale, _ in codes])


@torch.no_grad()
def _spread_codes(vae: VAE, rows: Rows) -> Array:  # (M, K)
    some = rows.every(max(len(rows) // AMONG, 1)).chunks(vae.n_features)
    return spread_codes(torch.cat([vae.encode(x.double(), seen)[0] for x, seen, _ in some])).numpy(
        force=True
    )


def _component_scale(vae: VAE, rows: Rows) -> Array:
    few = rows[: max(50, min(1000, CHUNK_CELLS // vae.n_features))]
    return component_scales(vae, few.x.double(), few.observed)


def _noise_variance(vae: VAE, columns: Columns) -> Array:
    variance = vae.likelihood.noise_variance().detach().cpu().numpy() * columns.scale**2
    variance[list(columns.shapes)] = np.nan  # that is of normal scores: it has no unit
    return variance


def _history(
    outcome: Outcome, prepared: Prepared, past: History | None, seen: Sequence[Epoch]
) -> History:
    """Tell how training went, in original units, after what it went on from."""
    log_jacobian = mean_log_jacobian(prepared.columns, prepared.rows)
    history = History(
        n_epochs=outcome.n_epochs,
        best_epoch=outcome.best,
        losses=[-(bound + log_jacobian) for bound in outcome.bounds],
        held_out=[bound + log_jacobian for bound in outcome.held_out],
        cut_short=outcome.cut_short and prepared.parameters["max_iter"] != "auto",
        undone=_undone(outcome, prepared),
        interrupted=outcome.interrupted,
        bounds=[epoch.bound + log_jacobian for epoch in seen],
        kl=[epoch.kl for epoch in seen],
        held_out_kl=[epoch.held_out_kl for epoch in seen],
    )
    return history if past is None else history.after(past)


def _undone(outcome: Outcome, prepared: Prepared) -> str:
    if not outcome.undone:
        return ""
    epochs = ", ".join(map(str, outcome.undone))
    column = prepared.names[worst_column(prepared.vae, prepared.rows)]
    return (
        f"The bound became infinite or nan in epoch {epochs}, which was taken again at a smaller "
        f"learning rate. The wildest values stand in column {column}: look for errors there, or "
        "use a smaller learning_rate_init."
    )
