"""
Search for parameters
=====================

A VAETransformer is searched as any estimator of scikit-learn. Three ways are shown: a grid over the
number of components by the density of held-out rows, successive halving with the number of epochs
as the resource, and Optuna, which prunes a trial while it trains. A detector and an imputer are
searched by the parameters of the model inside them.

Optuna is not installed with skvae. Without it, and before scikit-learn 1.9, which brought
callbacks, that part is left out.
"""

import time
import warnings

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingRandomSearchCV, train_test_split
from sklearn.pipeline import Pipeline

from skvae import VAEOutlierDetector, VAETransformer

warnings.simplefilter("ignore")  # short runs say that they are short

# %%
# A grid over the number of components
# ------------------------------------
# ``score`` is the mean log p(x) of held-out rows. The evidence lower bound ranks models as well and
# takes a fraction of the time. Noise of its own for each column makes better densities.


def bound(vae, X, y=None):
    """Return the mean evidence lower bound of the rows, in nats."""
    return vae.score_samples(X, method="elbo").mean()


X, y = load_breast_cancer(return_X_y=True)
grid = GridSearchCV(
    VAETransformer(noise="per_column", max_iter=10, random_state=0),
    {"n_components": [2, 6, 12]},
    scoring=bound,
    cv=3,
)
begun = time.perf_counter()
grid.fit(X)
for n_components, score in zip([2, 6, 12], grid.cv_results_["mean_test_score"], strict=True):
    print(f"{n_components:2} components: {score:8.2f} nats a row")
print(f"chosen: {grid.best_params_['n_components']}, in {time.perf_counter() - begun:.0f} s")

# %%
# A detector by the parameters of its model
# -----------------------------------------
# ``vae`` is None by default, which stands for a model that suits the table. ``vae__n_components``
# changes this parameter of it and no other. The labels here only judge: the fit does not see them.
# Without labels, and without ``scoring``, the mean log p(x) of held-out rows by ``vae_`` judges.


def found(detector, X, y):
    """Return the share of malignant tumours among the rows that look oddest."""
    scores = detector.score_samples(X)
    return np.mean(y[np.argsort(scores)[: (y == 0).sum()]] == 0)


search = GridSearchCV(
    VAEOutlierDetector(random_state=0), {"vae__n_components": [5, 20]}, scoring=found, cv=3
)
search.fit(X, y)
print(f"detector: {search.best_params_}, {search.best_score_:.0%} of the malignant rows found")

# %%
# Successive halving over epochs
# ------------------------------
# All candidates train for a few epochs, and the best third of them for three times as many.

digits, labels = load_digits(return_X_y=True)
digits, labels = digits[:600], labels[:600]
pipeline = Pipeline(
    [("vae", VAETransformer(random_state=0)), ("clf", LogisticRegression(max_iter=500))]
)
halving = HalvingRandomSearchCV(
    pipeline,
    {"vae__n_components": [2, 5, 10, 15], "vae__whiten": [False, True], "clf__C": [0.1, 1.0, 10.0]},
    resource="vae__max_iter",
    n_candidates=9,
    min_resources=2,
    max_resources=18,
    cv=2,
    random_state=0,
)
begun = time.perf_counter()
halving.fit(digits, labels)
print(f"candidates a round: {halving.n_candidates_}, epochs: {halving.n_resources_}")
print(f"best: {halving.best_params_}")
print(f"accuracy {halving.best_score_:.1%}, in {time.perf_counter() - begun:.0f} s")

# %%
# Optuna, with pruning
# --------------------
# A callback is told of each epoch and sees the model as it is then. It reports the bound of rows
# that training has not seen, and raises ``TrialPruned`` where others were better at that epoch.

try:
    import optuna
    from sklearn.callback import ScoringMonitor  # noqa: F401  # there are callbacks
except ImportError as error:
    print(f"left out: {error}")
else:

    class Pruning:
        """Report the bound of held-out rows after each epoch, and prune."""

        def __init__(self, trial, X):
            self.trial, self.X, self.epoch = trial, X, 0

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name != "epoch":
                return
            self.epoch += 1
            self.trial.report(bound(fitted_estimator, self.X), self.epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    train, held_out = train_test_split(X, random_state=0)

    def objective(trial):
        vae = VAETransformer(
            trial.suggest_int("n_components", 1, 15),
            noise="per_column",
            alpha=trial.suggest_float("alpha", 0.01, 3.0, log=True),
            learning_rate_init=trial.suggest_float("learning_rate_init", 5e-4, 2e-2, log=True),
            max_iter=15,
            early_stopping=False,
            random_state=0,
        )
        return bound(vae.set_callbacks(Pruning(trial, held_out)).fit(train), held_out)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
    )
    study.optimize(objective, n_trials=10)
    n_pruned = sum(t.state == optuna.trial.TrialState.PRUNED for t in study.trials)
    assert n_pruned > 0, "no trial was pruned"
    print(f"Optuna: {len(study.trials)} trials, {n_pruned} of them pruned")
    print(f"best: {study.best_value:.2f} nats a row with {study.best_params}")
