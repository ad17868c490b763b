"""The fit of a detector: a model of the rows that are typical, kernels at these, and what is usual.

Scores of rows of fit are by models that were fitted without them, as those of new rows are:
cross-conformal prediction (Vovk 2015; Barber et al. 2021). All rows serve to fit, and all say what
is usual.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._calibration import Calibration
from ._composed import own_model, quietly_fitted
from ._detection import RowScore
from ._explanation import usual_deviations, usual_ends
from ._health import warn_about_columns
from ._inputs import become, given
from ._parameters import automatic_batch_size, density_noise
from ._table.column import Array
from ._table.duplicates import row_keys
from ._table.frames import take_rows
from ._table.schema import LabelledRows, without_strays
from ._transformer import VAETransformer, check_transformer
from ._typical import rows_at, tame_rows, typical_rows

SHORT_RUN_RATE = 0.003  # a short run is wanted, not a hasty one
SHORT_RUN_STEPS = 150  # more gave better densities, but no better ranking: outliers are learnt too
SHORT_RUN_EPOCHS = 100  # at most
LINEAR_BELOW = 500  # rows, where training hardly ever left the linear model
ROWS_PER_COMPONENT = 10  # at least
MOST_COMPONENTS = 50
EXPECTED_ROWS = 200  # that say what a missing cell would have added to the score
USUAL_ROWS = 2000  # that say how far cells are from what is expected of them
CROSS_FITTED_BELOW = 20  # rows by feature: above, a model hardly knows its own rows from others
N_FOLDS = 5


class Detector(NamedTuple):
    """What a fit learns."""

    vae: VAETransformer
    score: RowScore
    calibration: Calibration
    support: NDArray[np.bool_]  # (N,)  rows that the model was fitted to
    usual: tuple[Array, Array]  # (D,)  between what cells are from what is expected of them


class Recipe(NamedTuple):
    """What is to be fitted."""

    vae: VAETransformer | None
    method: str
    support_fraction: float | None  # None: all rows but the wildest
    seed: int

    def fit(self, rows: LabelledRows) -> Detector:
        """Fit a detector to rows."""
        from ._fitting import fit_table

        generator = np.random.default_rng(self.seed)
        model = self._model(rows.weight.sum(), len(rows.names))
        check_transformer(model)
        # Of all rows, so that errors name them as X has them, and columns are what all rows say.
        schema, _, table = fit_table(model.get_params(deep=False), rows)
        rows = rows._replace(X=without_strays(rows.X, schema))
        if self.support_fraction is None:
            is_number = np.array([column.kind != "category" for column in schema.columns])
            typical = tame_rows(table, rows.weight, is_number)
        else:
            typical = typical_rows(model, rows, self.support_fraction, generator)
        vae = self._fitted(model, rows_at(rows, typical))
        become(vae, vars(vae) | {"model_": vae.model_.with_strays(schema)})
        scoring = partial(self.scoring, rows_at(rows, typical), int(generator.integers(2**32)))
        score = scoring(vae)
        warn_about_columns(vae.model_.schema)
        table = vae.model_.read(rows.X)
        if rows.weight.sum() < CROSS_FITTED_BELOW * vae.model_.module(vae.device).n_features:
            scores, deviations = cross_fitted(model, rows, folds(table), typical, scoring)
            score = score.knowing(table, scores)
        else:
            scores = score.of(vae, rows.X)
            few = typical[:: -(-len(typical) // USUAL_ROWS)]
            deviations = usual_deviations(vae, table[few])
        support = np.isin(np.arange(len(scores)), typical)
        calibration = Calibration.of(scores, rows.weight)
        return Detector(vae, score, calibration, support, usual_ends(deviations))

    def _model(self, n_rows: float, n_columns: int) -> VAETransformer:
        noise = density_noise(n_columns)
        if self.method == "aggregate":  # its metric is that of the linear model
            n_components = min(-(-2 * n_columns // 3), max(int(n_rows) // ROWS_PER_COMPONENT, 1))
            return own_model(
                self.vae,
                self.seed,
                n_components=min(n_components, MOST_COMPONENTS),
                hidden_layer_sizes=(),
                noise=noise,
                max_iter=0,
            )
        batch_size = automatic_batch_size(int(n_rows))
        max_iter = int(np.clip(-(-SHORT_RUN_STEPS * batch_size // n_rows), 4, SHORT_RUN_EPOCHS))
        return own_model(
            self.vae,
            self.seed,
            noise=noise,
            batch_size=batch_size,
            learning_rate_init=SHORT_RUN_RATE,
            max_iter=0 if n_rows < LINEAR_BELOW else max_iter,
        )

    def _fitted(self, model: VAETransformer, rows: LabelledRows) -> VAETransformer:
        part = own_model(model, model.random_state)
        if self.vae is not None:
            return part.fit(rows.X, sample_weight=rows.weight)
        return quietly_fitted(part, given(part, rows.X, rows.weight))

    def scoring(self, rows: LabelledRows, seed: int, vae: VAETransformer) -> RowScore:
        """Return what scores new rows, by a model and rows of fit that are typical."""
        score = RowScore(self.method)
        if score.method == "aggregate":
            generator = np.random.default_rng(seed)
            score = score.with_kernels(vae, rows.X, rows.weight, generator)
        some = np.arange(0, len(rows.weight), -(-len(rows.weight) // EXPECTED_ROWS))
        return score.with_expectations(vae, take_rows(rows.X, some))


def cross_fitted(
    model: VAETransformer,
    rows: LabelledRows,
    fold: NDArray[np.intp],
    typical: NDArray[np.intp],
    scoring: Any,
) -> tuple[Array, Array]:  # (N,), (N, D)
    """Score each fold by a model of the typical rows of the others.

    ``scoring`` places kernels at all typical rows: a row is scored by the others' in any case.
    Returns how far cells are from what such a model expects, too.
    """
    scores, deviations = np.zeros(len(fold)), []
    for number in np.unique(fold):
        own = np.flatnonzero(fold == number)
        others = np.setdiff1d(typical, own)
        part = own_model(model, model.random_state)
        kept = rows_at(rows, others if len(others) else typical)  # there is but one kind of row
        vae = quietly_fitted(part, given(part, kept.X, kept.weight))
        held_out = rows_at(rows, own).X
        scores[own] = scoring(vae).of(vae, held_out)
        deviations.append(usual_deviations(vae, vae.model_.read(held_out)))
    return scores, np.concatenate(deviations)


def folds(table: Any) -> NDArray[np.intp]:  # (N,)
    """Put rows into folds, equal ones into one: repeating a row and weighting it are the same."""
    _, kind = np.unique(row_keys(table), return_inverse=True)
    return kind % N_FOLDS
