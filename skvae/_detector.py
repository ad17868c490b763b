"""The fit of a detector: a model of the rows that are typical, kernels at these, and what is usual.

Scores of rows of fit are by models that were fitted without them, as those of new rows are:
cross-conformal prediction (Vovk 2015; Barber et al. 2021). All rows serve to fit, and all say what
is usual.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ._advice import NewLevelsWarning, Warned, heard, warn
from ._calibration import Calibration
from ._composed import own_model, quietly_fitted
from ._detection import RowScore
from ._explanation import usual_deviations, usual_ends
from ._health import warn_about_columns
from ._inputs import become, check_transformer, given
from ._parameters import automatic_batch_size, density_noise
from ._table.column import Array
from ._table.duplicates import kinds_of_rows
from ._table.frames import take_rows
from ._table.schema import LabelledRows, without_strays
from ._transformer import VAETransformer
from ._typical import rows_at, tame_rows, typical_rows

SHORT_RUN_RATE = 0.003  # a short run is wanted, not a hasty one
SHORT_RUN_STEPS = 150  # more gave better densities, but no better ranking: outliers are learnt too
SHORT_RUN_EPOCHS = 100  # at most
LINEAR_BELOW = 500  # rows, where training hardly ever left the linear model
ROWS_PER_COMPONENT = 10  # at least
MOST_COMPONENTS = 50
SEEN_BEFORE = 0.05  # share of new rows that would equal one of fit
FEWEST_VALUES = 10  # of a column that could tell rows apart
MOST_CROSS_FITTED = 10_000  # rows that other models are trained for
EXPECTED_ROWS = 200  # that say what a missing cell would have added to the score
USUAL_ROWS = 2000  # that say how far cells are from what is expected of them
CROSS_FITTED_BELOW = 20  # rows by feature: above, a model hardly knows its own rows from others
N_FOLDS = 5
LEVEL_ROWS = 500  # that say how far two models' scores differ


class Detector(NamedTuple):
    """What a fit learns."""

    vae: VAETransformer
    score: RowScore
    calibration: Calibration
    scores: Array  # (N,)   of the rows of fit, by the others
    support: NDArray[np.bool_]  # (N,)  rows that the model was fitted to
    usual: tuple[Array, Array]  # (D,)  between what cells are from what is expected of them


class Recipe(NamedTuple):
    """What is to be fitted."""

    vae: VAETransformer | Mapping[str, Any] | None
    method: str
    support_fraction: float | None  # None: all rows but the wildest
    seed: int

    def fit(self, rows: LabelledRows) -> Detector:
        """Fit a detector to rows: to one of each kind, which counts as often as its copies."""
        from ._preparing import fit_table

        asked = own_model(self.vae, self.seed)
        check_transformer(asked)
        # Of all rows, so that errors name them as X has them, and columns are what all rows say.
        schema, _, table = fit_table(asked.get_params(deep=False), rows)
        rows = rows._replace(X=without_strays(rows.X, schema))
        first, kind = kinds_of_rows(table)
        weight = np.bincount(kind, rows.weight).astype(np.float64)
        kinds = rows_at(rows, first)._replace(weight=without_factor(weight, len(kind)))
        ambiguous = seen_before(kinds.weight)
        repeats = ambiguous and by_chance(table, len(first))
        model = self._model(kinds.weight.sum() if repeats else len(first), len(rows.names))
        is_number = np.array([column.kind != "category" for column in schema.columns])
        if self.support_fraction is None:
            typical = tame_rows(table[first], kinds.weight, is_number)
        else:
            typical = typical_rows(model, kinds, self.support_fraction)
        del table
        kept = kinds if len(typical) == len(first) else rows_at(kinds, typical)  # no second copy
        vae = self._fitted(model, kept)
        become(vae, vars(vae) | {"model_": vae.model_.with_strays(schema)})
        warn_about_columns(vae.model_.schema)
        blank = RowScore(self.method, repeats=repeats, ambiguous=ambiguous)
        scoring = partial(self._scoring, kept, blank)
        score, scores, usual = self._out_of_sample(vae, kinds, typical, scoring)
        counts = kinds.weight
        if not repeats:  # as many rows as unequal weights are worth (Kish 1965)
            counts = counts * (counts.sum() / (counts @ counts))
        support = np.isin(np.arange(len(first)), typical)
        calibration = Calibration.of(scores, counts)
        return Detector(vae, score, calibration, scores[kind], support[kind], usual)

    def _out_of_sample(
        self,
        vae: VAETransformer,
        rows: LabelledRows,
        typical: NDArray[np.intp],
        scoring: Callable[[VAETransformer], RowScore],
    ) -> tuple[RowScore, Array, tuple[Array, Array]]:
        """Return what scores new rows, scores of rows of fit, and how far cells usually are."""
        score = scoring(vae)
        few = len(rows.weight) < CROSS_FITTED_BELOW * vae.model_.module(vae.device).n_features
        trained = self.method != "aggregate" and len(rows.weight) <= MOST_CROSS_FITTED
        if trained or (few and not score.repeats):
            scores, deviations = self._cross_fitted(vae, rows, typical, scoring)
            score = score.knowing(vae.model_.read(rows.X), scores)
        else:
            scores = score.of(vae, rows.X, of_fit=True)
            some = rows_at(rows, typical[:USUAL_ROWS])
            deviations = usual_deviations(vae, vae.model_.read(some.X))
        return score, scores, usual_ends(deviations)

    def _cross_fitted(
        self,
        vae: VAETransformer,
        rows: LabelledRows,
        typical: NDArray[np.intp],
        scoring: Callable[[VAETransformer], RowScore],
    ) -> tuple[Array, Array]:  # (N,), (M, D)
        """Score each fold by a model of the typical rows of the others.

        ``scoring`` places kernels at all typical rows: a row is scored by the others' in any case.
        Scores by a trained model are brought to the level of the model of all rows, on rows that
        both have seen: what is left is how much less likely rows are that a model has not seen.
        Returns how far cells of typical rows are from what such a model expects, too.
        """
        numbers, whole = np.arange(len(rows.weight)), scoring(vae)
        told: list[Warned] = []
        scores, deviations = np.zeros(len(numbers)), []
        for fold in range(min(N_FOLDS, len(numbers))):
            own = numbers[fold::N_FOLDS]
            others = np.setdiff1d(typical, own)
            part = own_model(vae, vae.random_state)
            kept = rows_at(rows, others if len(others) else typical)  # it may be the only row
            part = quietly_fitted(part, given(part, kept.X, kept.weight))
            score = scoring(part)
            with heard() as said:
                scores[own] = score.of(part, rows_at(rows, own).X, of_fit=True)
                if self.method != "aggregate":  # models that were trained differ in level by chance
                    both = take_rows(kept.X, np.arange(min(len(kept.weight), LEVEL_ROWS)))
                    scores[own] += np.median(whole.of(vae, both) - score.of(part, both))
                tame = rows_at(rows, np.intersect1d(typical, own)).X
                if tame.shape[0]:
                    deviations.append(usual_deviations(part, part.model_.read(tame)))
            told += said
        for text, category in dict.fromkeys(told):
            if category is not NewLevelsWarning:  # what a fold has not seen, the model of all has
                warn(text, category)
        return scores, np.concatenate(deviations)

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
        if isinstance(self.vae, VAETransformer):
            return part.fit(rows.X, sample_weight=rows.weight)
        return quietly_fitted(part, given(part, rows.X, rows.weight))

    def _scoring(self, rows: LabelledRows, score: RowScore, vae: VAETransformer) -> RowScore:
        """Return what scores new rows, by a model and rows of fit that are typical."""
        if score.method == "aggregate":
            score = score.with_kernels(vae, rows.X, rows.weight)
        some = rows_at(rows, np.arange(min(len(rows.weight), EXPECTED_ROWS)))
        return score.with_expectations(vae, some.X, some.weight)


def without_factor(weight: Array, n_rows: int) -> Array:
    """Return how often kinds of rows count, without a factor that they have in common.

    That is no evidence: neither of rows, nor of their being equal by chance. Weights that are less
    than a row each are no counts.
    """
    weight = weight * max(1.0, n_rows / weight.sum())
    lightest = weight.min()
    share = weight / lightest
    common = len(weight) >= FEWEST_VALUES and np.allclose(share, np.rint(share))
    return share if common and lightest > 1.0 else weight


def seen_before(copies: Array) -> bool:
    """Whether more than a twentieth of new rows would equal one of fit (Good 1953)."""
    return bool(copies[copies <= 1.0].sum() < (1.0 - SEEN_BEFORE) * copies.sum())


def by_chance(table: Any, n_kinds: int) -> bool:
    """Whether rows are equal because there are few values, so that copies are rows of their own.

    So where no column tells half of the kinds apart: else it is one row, entered more often.
    """
    if issparse(table):
        return True
    n_values = max(len(np.unique(column)) for column in table.T)
    return n_values < 0.5 * n_kinds or n_values < FEWEST_VALUES
