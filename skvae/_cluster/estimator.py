"""What the estimators for Dask collections share: their own parameters, and the local estimator."""

import copy
import inspect
from functools import partial, wraps
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from .._advice import heard
from .._inputs import become, fitted_now, snapshot, validated
from .._table.frames import float_dtype
from .collections import (
    check_collection,
    frames,
    head_of,
    is_collection,
    parts_of,
    per_cell,
    weights_of,
)

OUTPUT = "_sklearn_output_config"  # of set_output: what lazy methods return is theirs to say


class OnCluster:
    """An estimator whose rows are those of Dask collections.

    It is a local estimator, which comes after this class among its bases, with parameters more.
    What is not a collection is for the local methods.
    """

    client: Any
    own: ClassVar[dict[str, Any]] = {"client": None}  # parameters, and their defaults
    local: ClassVar[type]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, BaseEstimator):
            return  # what some of them share
        cls.local = cls.__bases__[-1]
        of_local: Any = cls.local.__init__  # type: ignore[misc]

        @wraps(of_local)
        def initialise(self: Any, *arguments: Any, **parameters: Any) -> None:
            for name, default in cls.own.items():
                setattr(self, name, parameters.pop(name, default))
            of_local(self, *arguments, **parameters)

        signature = inspect.signature(of_local)
        own = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in cls.own.items()
        ]
        parameters = [*signature.parameters.values(), *own]
        vars(initialise)["__signature__"] = signature.replace(parameters=parameters)
        cls.__init__ = initialise  # type: ignore[method-assign]

    def to_local(self) -> Any:
        """Return the estimator that needs no Dask, fitted if this one is.

        Returns
        -------
        estimator : VAETransformer, VAEOutlierDetector or VAEImputer
            With the same parameters and fitted attributes.
        """
        state = {
            name: copy.copy(value) if isinstance(value, list | dict) else value
            for name, value in vars(self).items()
            if name not in self.own
        }
        found = self.local()
        become(found, state)
        return found

    def for_tasks(self) -> Any:
        """Return the fitted local estimator, whose methods return arrays, or frames like X."""
        found = fitted_now(self).to_local()
        become(found, {name: v for name, v in vars(found).items() if name != OUTPUT})
        return found

    def _on_cluster(self) -> tuple[Any, dict[str, Any]]:
        """Return the client, and the estimator's own other parameters."""
        own = {name: getattr(self, name) for name in self.own}
        client = own.pop("client")
        from distributed import Client, get_client

        if client is None:
            try:
                client = get_client()  # in a task, that of its worker
            except ValueError:
                raise ValueError(
                    f"{type(self).__name__} needs a Dask cluster, and there is no client. Make one "
                    "with distributed.Client(), or pass client=."
                ) from None
        if not isinstance(client, Client) or client.asynchronous:
            raise TypeError(
                f"client must be a distributed.Client that is not asynchronous. Got {client!r} "
                "instead."
            )
        return client, own

    def __sklearn_clone__(self) -> Any:
        bare: Any = snapshot(self)
        bare.client = None  # of which there is one
        again = super(OnCluster, bare).__sklearn_clone__()  # type: ignore[misc]
        again.client = self.client
        return again

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {**state, "client": None}  # a connection is not for files


class FittedToSome(OnCluster):
    """An estimator that a worker fits: it keeps rows in memory."""

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """Fit the estimator to a collection, on one of the workers.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows. Of more than 2^25 cells some at even distances are taken, and a warning says so.
        y : None
            Ignored.
        sample_weight : dask.array.Array or Series of shape (n_samples,), default=None
            How often each row counts, in the partitions of X.

        Returns
        -------
        self : estimator instance
            The fitted estimator.
        """
        from .fit import fit_to_some

        X, local = check_collection(X, type(self).__name__), self.to_local()
        if isinstance(getattr(local, "vae", None), OnCluster):
            raise TypeError(
                f"The 'vae' parameter of {type(self).__name__} must be a VAETransformer, which one "
                "worker fits. Pass vae.to_local()."
            )
        client, _ = self._on_cluster()
        parts = parts_of(X)
        found = fit_to_some(client, local, parts, weights_of(sample_weight, len(parts)))
        own = {name: getattr(self, name) for name in self.own}
        names = local.get_params(deep=False)
        before = self.local(**{name: getattr(self, name) for name in names})
        become(self, vars(found) | vars(before) | own)  # parameters as the user has them
        return self


class EncodesLazily(OnCluster):
    """``transform`` of collections, of which scikit-learn's ``set_output`` makes no frames."""

    def transform(self, X: Any) -> Any:
        """Return the posterior means of the rows, lazily.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows, in the units of the training rows.

        Returns
        -------
        Z : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, `n_components_`)
            As X is. The columns of a DataFrame have the names of ``get_feature_names_out``, and its
            index is that of X.
        """
        if not is_collection(X):
            return super().transform(X)  # type: ignore[misc]
        local: Any = self.for_tasks()
        X, head = checked_rows(X, local, "transform")
        names = list(self.get_feature_names_out())  # type: ignore[attr-defined]
        return per_cell(partial(called, "transform"), X, local, names, float_dtype(head))


class FillsLazily(FittedToSome):
    """The same of an imputer."""

    def transform(self, X: Any) -> Any:
        """Fill what is missing, lazily.

        Parameters
        ----------
        X : dask.dataframe.DataFrame or dask.array.Array of shape (n_samples, n_features)
            Rows with missing values.

        Returns
        -------
        X_imputed : dask.dataframe.DataFrame or dask.array.Array
            X with its missing values replaced, of shape (n_samples, n_features_out).
        """
        if not is_collection(X):
            return super().transform(X)  # type: ignore[misc]
        local: Any = self.for_tasks()
        X, head = checked_rows(X, local, "transform")
        with heard():  # these rows are made up
            some = local.transform(head)
        head = some[:0] if isinstance(some, np.ndarray) else some.head(0)
        return frames(partial(called, "transform"), X, local, head)


def checked_rows(X: Any, local: Any, method: str) -> tuple[Any, Any]:
    """Return rows in partitions that a fitted estimator can read, and some that are like them."""
    X = check_collection(X, method)
    head = head_of(X)
    validated(snapshot(local), head, reset=False)
    return X, head


def called(method: str, local: Any, part: Any) -> Any:
    """Return what a method says of a part."""
    return getattr(local, method)(part)
