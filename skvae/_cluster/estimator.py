"""What the estimators for Dask collections share: their own parameters, and the local estimator."""

import inspect
from functools import wraps
from typing import Any, ClassVar

from sklearn.base import BaseEstimator, clone

from .._inputs import become
from .collections import check_collection, parts_of, weights_of


class OnCluster:
    """An estimator whose rows are those of Dask collections.

    It is a local estimator, which comes after this class among its bases, with parameters more.
    What is not a collection is for the local methods.
    """

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
        state = {name: value for name, value in vars(self).items() if name not in self.own}
        found = self.local()
        become(found, state)
        return found

    def _on_cluster(self) -> tuple[Any, dict[str, Any]]:
        """Return the client, and the estimator's own other parameters."""
        own = {name: getattr(self, name) for name in self.own}
        client = own.pop("client")
        if client is None:
            from distributed import default_client

            try:
                client = default_client()
            except ValueError:
                raise ValueError(
                    f"{type(self).__name__} needs a Dask cluster, and there is no client. Make one "
                    "with distributed.Client(), or pass client=."
                ) from None
        return client, own

    def __sklearn_clone__(self) -> Any:
        parameters: dict[str, Any] = self.get_params(deep=False)  # type: ignore[attr-defined]
        client = parameters.pop("client")  # of which there is one
        parameters = {name: clone(value, safe=False) for name, value in parameters.items()}
        again: Any = type(self)
        return again(**parameters, client=client)

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
        client, _ = self._on_cluster()
        parts = parts_of(X)
        found = fit_to_some(client, local, parts, weights_of(sample_weight, len(parts)))
        own = {name: getattr(self, name) for name in self.own}
        names = local.get_params(deep=False)
        before = self.local(**{name: getattr(self, name) for name in names})
        become(self, vars(found) | vars(before) | own)  # parameters as the user has them
        return self
