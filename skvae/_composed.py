"""What estimators share that have a VAETransformer."""

from typing import Any

from sklearn.base import clone

from ._inputs import Given, attributes_of, become
from ._parameters import seed_of
from ._transformer import VAETransformer


def own_model(vae: VAETransformer | None, random_state: Any, **defaults: Any) -> VAETransformer:
    """Clone the model that a user gave an estimator, or make one with these parameters.

    Without a random state of its own it gets the estimator's. Whether holes say something is asked
    for codes: "auto" ignores them here.
    """
    model: VAETransformer = VAETransformer(**defaults) if vae is None else clone(vae)
    if model.missing == "auto":
        model.set_params(missing="ignore")
    return model if model.random_state is not None else model.set_params(random_state=random_state)


def quietly_fitted(vae: VAETransformer, data: Given) -> VAETransformer:
    """Fit a model whose parameters the user did not choose: no advice, no callbacks."""
    from ._fitting import fit

    parameters, seed = vae.get_params(deep=False), seed_of(vae.random_state)
    fitted, history = fit(parameters, data.rows, seed)
    become(vae, data.attributes | attributes_of(fitted, history))
    return vae
