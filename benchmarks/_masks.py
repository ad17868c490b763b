"""Which cells are hidden: completely at random, at random, and not at random."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

SEEN_COLUMNS = 0.3  # of the columns are never hidden where cells are missing at random
STEEPNESS = 2.0  # of the self-masking logits, in standard deviations of the column


def _intercept(logits, share):
    """What makes the mean probability this share."""
    return brentq(lambda b: expit(logits + b).mean() - share, -50.0, 50.0)


def _standardised(X):
    return (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-12)


def mcar(X, share, rng):
    """Each cell by chance alone."""
    return rng.random(X.shape) < share


def mar(X, share, rng):
    """By a logistic model of columns that are never hidden, as in Muzellec et al. 2020."""
    n_columns = X.shape[1]
    n_seen = max(int(SEEN_COLUMNS * n_columns), 1)
    seen, others = np.split(rng.permutation(n_columns), [n_seen])
    Z, mask = _standardised(X[:, seen]), np.zeros(X.shape, dtype=bool)
    for column in others:
        logits = Z @ rng.normal(size=n_seen)
        logits /= logits.std() + 1e-12
        odds = expit(logits + _intercept(logits, share))
        mask[:, column] = rng.random(len(X)) < odds
    return mask


def mnar(X, share, rng):
    """Self-masking: by a logistic model of the value that is hidden, to either side."""
    mask = np.zeros(X.shape, dtype=bool)
    for column, z in enumerate(_standardised(X).T):
        logits = rng.choice([-STEEPNESS, STEEPNESS]) * z
        mask[:, column] = rng.random(len(X)) < expit(logits + _intercept(logits, share))
    return mask


MECHANISMS = {"MCAR": mcar, "MAR": mar, "MNAR": mnar}
