"""What an estimator finds of rows that are not in memory, written to a Parquet file."""

from __future__ import annotations  # help() shows the types by their names

import hashlib
import json
import os
import pickle
import shutil
import time
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from ._advice import warn
from ._by_parts import METHODS
from ._inputs import fitted_now
from ._table.frames import library_of
from ._table.of_arrow import arrow_columns, arrow_of, join_parquet, write_parquet
from ._table.sources import Source, located, source_of

# A run that was killed goes on after the last part that it has written.
ROWS_A_FILE = 500_000
SECONDS_A_FILE = 60.0
ROWS_A_SLICE = 4096  # after which the time is looked at
ONE_COLUMN = {
    "score_samples": "score",
    "decision_function": "decision",
    "predict": "label",
    "p_values": "p_value",
}
SCORES = ("elbo", "reconstruction", "kl")  # of score_samples, whose default takes much longer


def to_parquet(
    estimator: Any,
    X: Any,
    path: str | os.PathLike[str],
    *,
    method: str | Sequence[str] = "transform",
) -> None:
    """Write what an estimator finds of rows, in their order, to a Parquet file.

    Rows are read, and results written, part by part. The file is there when it is whole. What a run
    that was killed has left, in a folder of the file's name and ``.parts``, the next run goes on
    from.

    Parameters
    ----------
    estimator : VAETransformer, VAEOutlierDetector, VAEImputer or Pipeline
        A fitted estimator.
    X : path, pyarrow.dataset.Dataset, polars.LazyFrame, iterable of frames, frame or array
        The rows.
    path : str or path-like
        The file to write. One that is there is replaced, in one step, at the end.
    method : str or sequence of str, default="transform"
        What to write: "transform", with the names of ``get_feature_names_out``;
        "score_samples", "decision_function", "predict" and "p_values", in columns score, decision,
        label and p_value; "score_features", with the names of the columns; of a VAETransformer also
        "elbo", "reconstruction" and "kl", which are ``score_samples(X, method=...)``.

    Raises
    ------
    ValueError
        If the estimator has no such method, or if a row is not admissible.

    Examples
    --------
    >>> import os, tempfile
    >>> import pandas as pd
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer, to_parquet
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> vae = VAETransformer(2, max_iter=0).fit(X)
    >>> folder = tempfile.mkdtemp()
    >>> X.to_parquet(os.path.join(folder, "rows.parquet"))
    >>> to_parquet(vae, os.path.join(folder, "rows.parquet"), os.path.join(folder, "codes.parquet"))
    >>> pd.read_parquet(os.path.join(folder, "codes.parquet")).columns.tolist()
    ['vaetransformer0', 'vaetransformer1']
    """
    estimator = fitted_now(estimator)
    methods: list[Any] = list(method) if isinstance(method, list | tuple) else [method]
    _check_methods(estimator, methods)
    target = Path(path)
    _check_target(target, X)
    source = source_of(X)
    of = [source.what if source else _digest(X), *methods]
    source = Source("X", lambda: iter([X]), lambda: len(X)) if source is None else source
    of += [_digest(estimator), source.n_rows()]
    run = _Run(target.with_name(f"{target.name}.parts"), json.dumps(of))
    tables: list[Any] = []
    n_rows = 0
    kept = time.monotonic()
    for first, rows in _slices(source, run.done):
        with located(source.what, first):
            tables.append(_found(estimator, rows, methods))
        n_rows += len(rows)
        if n_rows >= ROWS_A_FILE or time.monotonic() - kept > SECONDS_A_FILE:
            run.keep(tables, n_rows)
            tables, n_rows, kept = [], 0, time.monotonic()
    if tables:
        run.keep(tables, n_rows)
    join_parquet(run.files, target)
    shutil.rmtree(run.folder)


def _slices(source: Source, done: int) -> Iterator[tuple[int, Any]]:
    """Yield the rows that are not done, so few at a time that a run that is killed loses little."""
    for first, rows in source.numbered():
        for begin in range(max(done - first, 0), len(rows), ROWS_A_SLICE):
            yield first + begin, rows[begin : begin + ROWS_A_SLICE]


class _Run:
    """The folder of a run, and what it, or the run before it, has written there."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.files: list[Path] = []
        self.done = 0  # rows
        note = folder / "of.txt"
        if folder.exists() and (not note.exists() or note.read_text() != fingerprint):
            warn(
                f"The folder {folder} holds parts of another run: of another estimator, other "
                "methods or other rows. They are removed, and all rows are read."
            )
            shutil.rmtree(folder)
        for file in sorted(folder.glob("*.parquet")):
            begin, end = map(int, file.stem.split("-"))
            if begin == self.done:
                self.files.append(file)
                self.done = end

    def keep(self, tables: list[Any], n_rows: int) -> None:
        """Write some tables to a file of the next rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "of.txt").write_text(self.fingerprint)
        end = self.done + n_rows
        self.files.append(self.folder / f"{self.done:015d}-{end:015d}.parquet")
        write_parquet(tables, self.files[-1])
        self.done = end


def _check_methods(estimator: Any, methods: list[Any]) -> None:
    known = [name for name in (*METHODS, "predict") if hasattr(estimator, name)]
    if "method" in signature(getattr(estimator, "score_samples", len)).parameters:
        known += SCORES
    for method in methods or [methods]:
        if method not in known:
            raise ValueError(
                f"What {type(estimator).__name__} can write is found by its methods {known}. "
                f"Got method={method!r} instead."
            )
    if "predict" in methods and getattr(estimator, "fdr", None) is not None:
        raise ValueError(
            "With fdr, the label of a row depends on all rows, which are not read at once here. "
            "Write method='p_values', and apply scipy.stats.false_discovery_control to them."
        )


def _check_target(target: Path, X: Any) -> None:
    if target.is_dir():
        raise IsADirectoryError(
            f"What is found is written to one file, but {target} is a folder. Name a file in it."
        )
    own = target.resolve()
    if isinstance(X, str | os.PathLike) and Path(X).resolve() in (own, *own.parents):
        raise ValueError(
            f"{target} is one of the files of rows, or would be read as one the next time. Write "
            "to another folder."
        )


def _digest(it: Any) -> str:
    """Return what tells an estimator, or rows in memory, from others, without a copy of arrays."""
    found = hashlib.sha256()
    found.update(pickle.dumps(it, 5, buffer_callback=lambda array: found.update(array.raw())))
    return found.hexdigest()


def _found(estimator: Any, rows: Any, methods: Sequence[str]) -> Any:
    """Return what methods find of some rows, as a table of Arrow's."""
    columns: dict[str, Any] = {}
    for method in methods:
        if method in SCORES:
            columns[method] = estimator.score_samples(rows, method=method)
            continue
        found = getattr(estimator, method)(rows)
        if library_of(found) is not None:
            columns |= arrow_columns(found)
        elif found.ndim == 1:
            columns[ONE_COLUMN[method]] = found
        else:
            columns |= dict(zip(_names(estimator, method, rows), found.T, strict=True))
    return arrow_of(columns)


def _names(estimator: Any, method: str, rows: Any) -> list[str]:
    if method == "transform":
        return list(map(str, estimator.get_feature_names_out()))
    names = getattr(estimator, "feature_names_in_", range(rows.shape[1]))
    return list(map(str, names))
