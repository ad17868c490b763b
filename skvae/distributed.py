"""One model fitted by several processes, which torchrun or another launcher has started.

Each process reads some of the rows, and all take the same steps by sums of gradients, which travel
by torch's Gloo. The rows are dealt to logical shards when a fit starts; the model depends on these,
and not on how many processes there are, but for the rounding of sums.
"""

from __future__ import annotations  # help() shows the types by their names

import os
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from ._transformer import VAETransformer

__all__ = ["fit"]

E = TypeVar("E", bound=VAETransformer)


def fit(
    estimator: E,
    X: Any,
    *,
    sample_weight: ArrayLike | None = None,
    n_shards: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
) -> E:
    """Fit an estimator to rows of which each process reads its own.

    Every process that the launcher has started calls it with the same arguments; each gets the
    fitted estimator. A process alone does without a launcher.

    Parameters
    ----------
    estimator : VAETransformer
        What to fit. ``random_state=None`` is one fresh seed for all processes. With
        ``early_stopping`` rows of each shard are held out, also of few rows. It begins anew,
        whatever ``warm_start`` is.
    X : path, pyarrow.dataset.Dataset, polars.LazyFrame, iterable of frames, frame or array
        The same rows for all processes. Of Parquet files each process reads its row groups alone;
        of iterables each reads all parts.
    sample_weight : array-like of shape (n_samples,), default=None
        How often each row counts.
    n_shards : int or None, default=None
        Number of logical shards, at least as many as processes that are to have work, and at most
        as many as there are row groups or parts. None is one for each 512 rows of ``batch_size``,
        2 to 16: with smaller parts of a step, steps take longer.
    checkpoint_dir : path or None, default=None
        A folder that all processes reach. How far the fit has come is written there, and a fit that
        finds that goes on from it: so torchrun's ``--max-restarts`` costs at most
        ``checkpoint_every`` seconds and reading the rows again.
    checkpoint_every : float, default=60.0
        Seconds between two checkpoints.

    Returns
    -------
    estimator : VAETransformer
        The fitted estimator itself.

    Raises
    ------
    ValueError
        As ``fit`` of the estimator, in all processes. A note says in which process, and of which
        shards. The estimator is left as it was.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.distributed import fit
    >>> X, _ = load_iris(return_X_y=True)
    >>> fit(VAETransformer(2, max_iter=5, random_state=0), X).transform(X).shape
    (150, 2)
    """
    from ._parameters import check_parameters
    from ._together import RULES, Checkpoint, fit_together, processes

    if not isinstance(estimator, VAETransformer):
        raise TypeError(
            f"estimator must be a VAETransformer. Got {type(estimator).__name__} instead: fit its "
            "vae here, or the whole to rows that one process can read."
        )
    own = {"n_shards": n_shards, "checkpoint_every": checkpoint_every}
    check_parameters("fit", own, RULES)
    n_shards = None if n_shards is None else int(n_shards)  # as a checkpoint can hold it
    with processes() as collective:
        checkpoint = Checkpoint(checkpoint_dir, checkpoint_every, collective)
        fit_together(estimator, X, sample_weight, n_shards, checkpoint)
    return estimator
