"""Frames whose holes say something: which cells are missing is tied to the target."""

from collections.abc import Callable

import numpy as np
import pandas as pd

N_ROWS = 2_000


def _base(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Eight numbers and four categories of three factors; the factors, too."""
    z = rng.normal(size=(N_ROWS, 3))
    numbers = z @ rng.normal(size=(3, 8)) + 0.5 * rng.normal(size=(N_ROWS, 8))
    X = pd.DataFrame(numbers, columns=[f"number {n}" for n in range(8)])
    for n in range(4):
        utility = z @ rng.normal(size=(3, 4)) + rng.gumbel(size=(N_ROWS, 4))
        X[f"level {n}"] = np.array(list("abcd"))[utility.argmax(axis=1)]
    return X, z


def _defaulted(rng: np.random.Generator, z: np.ndarray) -> np.ndarray:
    return rng.uniform(size=N_ROWS) < 1.0 / (1.0 + np.exp(1.0 - z[:, 0]))


def date(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Only those who defaulted have a day of that."""
    X, z = _base(rng)
    y = _defaulted(rng, z)
    return X.assign(day=np.where(y, rng.normal(500.0, 80.0, N_ROWS), np.nan)), y


def reason(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Only those who defaulted have a reason, one of three."""
    X, z = _base(rng)
    y = _defaulted(rng, z)
    reasons = np.array(["illness", "job", "other"], dtype=object)[rng.integers(3, size=N_ROWS)]
    return X.assign(reason=np.where(y, reasons, None)), y


def several(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Those who defaulted mostly have three measurements that the others mostly lack."""
    X, z = _base(rng)
    y = _defaulted(rng, z)
    for n in range(3):
        there = y ^ (rng.uniform(size=N_ROWS) < 0.05)
        X[f"measured {n}"] = np.where(there, rng.normal(size=N_ROWS), np.nan)
    return X, y


def high(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers that are high are not told; the target is a factor of all."""
    X, z = _base(rng)
    for n in (0, 3):
        X[f"number {n}"] = X[f"number {n}"].where(X[f"number {n}"] < 0.5)
    return X, z[:, 0] > 0.5


def at_random(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Cells are missing for no reason; the target is a factor of all."""
    X, z = _base(rng)
    for column in list(X):
        X[column] = X[column].where(rng.uniform(size=N_ROWS) > 0.15)
    return X, z[:, 0] > 0.5


FRAMES: dict[str, Callable[[np.random.Generator], tuple[pd.DataFrame, np.ndarray]]] = {
    f"holes_{make.__name__}": make for make in (date, reason, several, high, at_random)
}


def frame_with_holes(name: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The frame of this name, and its target as labels."""
    X, y = FRAMES[name](np.random.default_rng(0))
    return X, np.where(y, "yes", "no").astype(object)
