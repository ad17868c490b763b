"""What a user with types writes: checked by ``mypy --strict`` against the installed package."""

from typing import TYPE_CHECKING

import numpy as np

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae.likelihoods import Gaussian, Likelihood
from skvae.priors import Prior, StandardNormal

if TYPE_CHECKING:
    from numpy.typing import NDArray

X: "NDArray[np.floating]" = np.random.default_rng(0).normal(size=(40, 3))


def codes(rows: "NDArray[np.floating]", n_components: int = 2) -> "NDArray[np.floating]":
    """Return codes of the rows, and check what is returned on the way."""
    kind: Likelihood = Gaussian(floor=0.1)
    prior: Prior = StandardNormal()
    vae = VAETransformer(n_components, likelihood=kind, prior=prior, max_iter=0, random_state=0)
    fitted: VAETransformer = vae.fit(rows)
    mean: float = fitted.score(rows)
    found: NDArray[np.floating] = fitted.transform(rows)
    assert mean < 0.0
    return found


def odd(rows: "NDArray[np.floating]") -> "NDArray[np.intp]":
    """Return the numbers of the rows that look odd."""
    detector: VAEOutlierDetector = VAEOutlierDetector({"n_components": 1}).fit(rows)
    scores: NDArray[np.floating] = detector.score_samples(rows)
    assert len(scores) == len(rows)
    return np.flatnonzero(detector.predict(rows) == -1)


print(codes(X).shape, odd(X).shape, VAEImputer(sample_posterior=True).fit_transform(X).shape)
