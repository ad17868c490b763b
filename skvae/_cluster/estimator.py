"""What the estimators for Dask collections share: their own parameters, and the local estimator."""

import inspect
from functools import wraps
from typing import Any, ClassVar

from sklearn.base import BaseEstimator, clone

from .._inputs import become


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
