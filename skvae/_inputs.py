"""What comes into an estimator: validated by scikit-learn; and what a fit leaves in it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)

from ._parameters import (
    TRANSFORMER_RULES,
    check_choice,
    check_hidden_layer_sizes,
    check_parameters,
)
from ._table.column import Array
from ._table.frames import library_of, take_rows
from ._table.gathered import Gathered
from ._table.sources import Source, source_of
from ._table.spool import check_no_infinity, is_on_disk

if TYPE_CHECKING:
    from ._fitted import Fitted
    from ._history import History
    from ._table.schema import LabelledRows

E = TypeVar("E")
NEGLIGIBLE = 1e-30  # share of the heaviest weight that changes no sum, and is a float32
# Collections of rows that are not in memory, and how they or some of them get there.
FETCHED = {
    # Those that most methods take, but not all.
    ("polars", "LazyFrame"): "X.collect(), or X.head(100_000).collect()",
    ("pyarrow", "Table"): "X.to_pandas(), or X.slice(0, 100_000).to_pandas()",
    ("pyarrow", "FileSystemDataset"): "X.head(100_000).to_pandas(), or X.to_table().to_pandas()",
    ("dask_expr", "DataFrame"): "X.compute(), or X.sample(frac=0.1).compute()",
    ("dask", "DataFrame"): "X.compute(), or X.sample(frac=0.1).compute()",
    ("dask", "Series"): "X.compute()",
    ("dask", "Array"): "X.compute(), or X[:100_000].compute()",
    ("pyspark", "DataFrame"): "X.toPandas(), or X.sample(0.1).toPandas()",
    ("ibis", "Table"): "X.to_pandas(), or X.head(100_000).to_pandas()",
    ("duckdb", "DuckDBPyRelation"): "X.df(), or X.limit(100_000).df()",
}
PLAIN = (np.dtype(np.float64), np.dtype(np.float32))


class Given(NamedTuple):
    """What a fit was given, validated."""

    rows: "LabelledRows"
    attributes: dict[str, Any]  # scikit-learn's: n_features_in_, feature_names_in_
    counts: NDArray[np.bool_]  # (N,)  rows of what was given that are among these: of some weight


def given(estimator: Any, X: Any, sample_weight: Any = None, reset: bool = True) -> Given:
    """Validate what a fit was given; the estimator is not touched."""
    from ._table.schema import LabelledRows  # what only fits need is loaded by the first one

    own = snapshot(estimator)  # scikit-learn writes names and number of columns to it
    if (source := source_of(X)) is not None:
        head, X, weight, counts = _gathered(own, source, sample_weight, reset)
    else:
        head = X = validated(own, X, reset)
        weight = training_weight(sample_weight, X)
        counts = weight > 0.0
        X, weight = counted(X, weight)
    known = ("n_features_in_", "feature_names_in_")
    attributes = {name: vars(own)[name] for name in known if name in vars(own)}
    labels = attributes.get("feature_names_in_")
    if labels is None and library_of(head) == "pandas":
        labels = head.columns
    labels = None if labels is None else list(labels)
    shown = range(X.shape[1]) if labels is None else labels
    names = [repr(str(one)) if isinstance(one, str) else str(one) for one in shown]
    return Given(LabelledRows(X, weight, labels, names), attributes, counts)


def _gathered(
    own: Any, source: Source, sample_weight: Any, reset: bool
) -> tuple[Any, Gathered, Array, NDArray[np.bool_]]:
    """Return the first part of a source, its rows that count, how often, and which these are."""
    first = next(source.parts(), None)
    if first is None:
        raise ValueError(f"X must have rows, and {source.what} has none.")
    head = validated(own, first, reset)
    weight = training_weight(sample_weight, np.empty((source.n_rows(), 0)))
    counts = weight > 0.0

    def check(part: Any) -> Any:
        return validated(own, part, reset=False)

    shape = (int(counts.sum()), head.shape[1])
    rows = Gathered(source, check, None if sample_weight is None else weight, shape)
    return head, rows, weight if rows.row_weight is None else weight[counts], counts


def snapshot(estimator: E) -> E:
    """Copy an estimator's state: what another thread fits does not change the copy."""
    copy: Any = object.__new__(type(estimator))
    copy.__dict__.update(estimator.__dict__)
    return copy


def fitted_now(estimator: E) -> E:
    """Return the state of a fitted estimator, which other threads may replace meanwhile."""
    check_is_fitted(estimator)
    return snapshot(estimator)


def become(estimator: Any, fitted: dict[str, Any]) -> None:
    """Give an estimator its fitted attributes, all in one statement.

    A method that began in another thread sees the old model or the new one, never a mixture.
    """
    kept = {name: value for name, value in vars(estimator).items() if name != "feature_names_in_"}
    estimator.__dict__ = kept | fitted


def validated(estimator: Any, X: Any, reset: bool) -> Any:
    """Return a frame as it is, CSR rows, or an array; check names and number of columns."""
    _check_in_memory(X)
    if isinstance(X, np.ma.MaskedArray):
        X = _unmasked(X)
    if library_of(X) is not None:
        _check_names(X)
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        for what, size in zip(["sample", "feature"], X.shape, strict=True):
            if size == 0:
                raise ValueError(
                    f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is "
                    f"required by {type(estimator).__name__}."
                )
        return X
    if not reset and _is_plain(estimator, X):
        return X
    found = validate_data(
        estimator, X, dtype=None, accept_sparse="csr", ensure_all_finite=False, reset=reset
    )
    if issparse(found):
        return _checked_sparse(found)
    if found.dtype.kind in "US" and not isinstance(X, np.ndarray):
        found = check_array(X, dtype=object, ensure_all_finite=False)  # numbers stay numbers
    if found.dtype.kind in "OUS":
        return found.astype(object)
    if found.dtype.kind not in "buif":
        raise ValueError(
            f"X must hold numbers or levels of categories; its dtype is {found.dtype}. Turn such "
            "columns into numbers first, for example dates into days since the first."
        )
    if is_on_disk(found):
        check_no_infinity(found)
        return found
    with np.errstate(invalid="ignore"):  # its sum of the largest floats of both signs
        return check_array(found, dtype=None, ensure_all_finite="allow-nan", input_name="X")


def _check_in_memory(X: Any) -> None:
    """Raise a TypeError if the rows of X are elsewhere: NumPy would fetch them all, in silence."""
    if isinstance(X, str | os.PathLike):
        raise TypeError(
            f"X is the path {os.fspath(X)!r}, and this method takes rows that are in memory. Pass "
            "such rows: pd.read_parquet(path), or some of them."
        )
    kind = type(X)
    how = FETCHED.get((kind.__module__.split(".")[0], kind.__name__))
    if hasattr(X, "__dask_graph__"):
        how = how or FETCHED["dask_expr", "DataFrame"]
        how += (
            "; or an estimator of skvae.dask, such as DaskVAETransformer: of its methods, fit and "
            "the lazy ones take X as it is"
        )
    if how is not None:
        raise TypeError(
            f"X is a {kind.__name__} of {kind.__module__.split('.')[0]}, whose rows are not in "
            f"memory. Pass rows that are: {how}."
        )


def _check_names(X: Any) -> None:
    """Raise a ValueError if two columns of a frame have one name, which cannot tell them apart."""
    if len(set(X.columns)) == len(X.columns):
        return
    twice = next(name for name in X.columns if list(X.columns).count(name) > 1)
    raise ValueError(f"X has two columns of the name {twice!r}. Give each column its own name.")


def _unmasked(X: Any) -> Any:
    """Return a masked array's cells: what is masked is missing."""
    hidden = np.ma.getmaskarray(X)
    if X.dtype.kind in "buif":
        return np.where(hidden, np.nan, X.data) if hidden.any() else np.asarray(X.data)
    cells = np.array(X.data, dtype=object)
    cells[hidden] = None
    return cells


def _is_plain(estimator: Any, X: Any) -> bool:
    """Whether ``validate_data`` would find nothing to do or to say: it takes half of a row's time.

    So for finite floats in an array of the right shape, where no names are to be compared.
    """
    if type(X) is not np.ndarray or X.dtype not in PLAIN or X.ndim != 2 or not len(X):
        return False
    if X.shape[1] != estimator.n_features_in_ or hasattr(estimator, "feature_names_in_"):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(X.sum()))


def _checked_sparse(X: Any) -> Any:
    with np.errstate(invalid="ignore"):
        check_array(
            X, accept_sparse="csr", dtype=None, ensure_all_finite="allow-nan", input_name="X"
        )
    assert X.dtype.kind in "buif"  # SciPy has no others, and complex numbers were refused
    if not X.has_canonical_format or (X.data == 0).any():
        X = X.copy()
        X.sum_duplicates()
        X.eliminate_zeros()
    return X


def training_weight(sample_weight: Any, X: Any) -> Array:
    """Return how often each row counts: at least one does."""
    if sample_weight is None:
        return np.broadcast_to(1.0, X.shape[:1])  # of many rows it takes no memory
    sample_weight = _of_common_size(sample_weight)
    sized = np.empty((X.shape[0], 0))  # all that is needed of X is its number of rows
    weight = _check_sample_weight(sample_weight, sized, dtype=np.float64, ensure_non_negative=True)
    if not (weight > 0.0).any():
        raise ValueError(
            "Sample weights must contain at least one non-zero number: all of "
            f"{len(weight)} are zero, which leaves no row to fit."
        )
    return weight


def _of_common_size(sample_weight: Any) -> Any:
    """Return weights whose sums and ratios are floats: over the largest; tiny ones become 0."""
    try:
        weight = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError):
        return sample_weight  # for scikit-learn to refuse
    largest = weight.max(initial=0.0)
    if not 0.0 < largest < np.inf or (weight.min() < 0.0):
        return sample_weight
    lightest = weight[weight > 0.0].min()
    if largest < 1.0 / NEGLIGIBLE and lightest > NEGLIGIBLE:
        return sample_weight
    with np.errstate(over="ignore"):
        shares = weight / largest
    return np.where(shares > NEGLIGIBLE, shares, 0.0)


def counted(X: Any, weight: Array) -> tuple[Any, Array]:
    """Keep the rows that count: a row of weight 0 is as if it were not there."""
    if is_on_disk(X):  # no copy of it fits
        return X, weight
    rows = np.flatnonzero(weight > 0.0)
    return (X, weight) if len(rows) == len(weight) else (take_rows(X, rows), weight[rows])


@contextmanager
def columns_shown(estimator: Any, attributes: dict[str, Any], to_somebody: bool) -> Iterator[None]:
    """Let callbacks see an estimator with the columns of the fit that they watch.

    A fit that fails leaves the estimator as it was.
    """
    before = estimator.__dict__
    if to_somebody:
        become(estimator, attributes)
    try:
        yield
    except BaseException:
        if to_somebody:
            estimator.__dict__ = before
        raise


def model_attributes(fitted: "Fitted") -> dict[str, Any]:
    """Return the fitted attributes that follow from the model alone."""
    own = slice(len(fitted.schema.columns))  # the rest are of their holes
    return {
        "n_components_": fitted.n_components,
        "_n_features_out": fitted.n_components,
        "scaling_": fitted.columns.scaling,
        "likelihood_": np.array(fitted.columns.kinds.names[own]),
        "kl_per_component_": fitted.kl_per_component,
        "n_active_components_": fitted.n_active_components,
        "component_scale_": fitted.component_scale,
        "noise_variance_": fitted.noise_variance[own],
        "weights_": fitted.weights,
        "evidence_": fitted.evidence,
        "model_": fitted,
    }


def attributes_of(fitted: "Fitted", history: "History") -> dict[str, Any]:
    """Return all fitted attributes, but for scikit-learn's own."""
    return model_attributes(fitted) | {
        "n_iter_": history.n_epochs,
        "best_iter_": history.best_epoch,
        "loss_curve_": history.losses,
        "validation_scores_": history.held_out,
        "_history": history,
    }


def labels_of(estimator: Any) -> Any:
    """Return what the user calls the columns: names, or numbers; of pandas frames their index."""
    schema = estimator.model_.schema
    if schema.library == "pandas":
        return schema.template.columns
    labels: Sequence[Any] = getattr(estimator, "feature_names_in_", range(estimator.n_features_in_))
    return list(labels)


def history_of(vae: Any) -> "History | None":
    """Return how the last fit of a transformer went."""
    return vars(vae).get("_history")


def check_transformer(vae: Any) -> None:
    """Raise a ValueError that names the first parameter that is not admissible."""
    from ._fitted import device_of
    from .likelihoods import LIKELIHOODS, Likelihood
    from .likelihoods._likelihood import check_kind, check_shapes
    from .priors import PRIORS, Prior, check_prior

    name, parameters = type(vae).__name__, vae.get_params(deep=False)
    check_parameters(name, parameters, TRANSFORMER_RULES)
    check_hidden_layer_sizes(name, vae.hidden_layer_sizes)
    asked = vae.likelihood
    for one in asked.values() if isinstance(asked, Mapping) else [asked]:
        check_choice(name, "likelihood", one, LIKELIHOODS, Likelihood, extra_names=("auto",))
        if isinstance(one, Likelihood):
            check_kind(one)
            check_shapes(one)
    check_choice(name, "prior", vae.prior, PRIORS, Prior)
    if isinstance(vae.prior, Prior):
        check_prior(vae.prior)
    if vae.free_bits > 0.0 and isinstance(vae.prior, Prior) and not vae.prior.has_kl:
        raise ValueError(
            "free_bits is an allowance for the KL divergence of each component, and "
            f"{vae.prior!r} has none in closed form. Use free_bits=0 (now {vae.free_bits})."
        )
    device_of(vae.device)
