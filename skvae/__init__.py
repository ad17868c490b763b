"""A variational autoencoder that is a scikit-learn estimator.

Importing the package loads neither torch nor scikit-learn: a name loads what it needs when it is
first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import dask as dask
    from . import displays as displays
    from . import distributed as distributed
    from . import likelihoods as likelihoods
    from . import priors as priors
    from ._files.container import FileError as FileError
    from ._files.trusted import SKOPS_TRUSTED_TYPES as SKOPS_TRUSTED_TYPES
    from ._imputer import VAEImputer as VAEImputer
    from ._onnx.export import register_onnx_converters as register_onnx_converters
    from ._onnx.export import to_onnx as to_onnx
    from ._outlier import VAEOutlierDetector as VAEOutlierDetector
    from ._parquet import to_parquet as to_parquet
    from ._persistence import load as load
    from ._persistence import save as save
    from ._transformer import VAETransformer as VAETransformer

__all__ = [
    "SKOPS_TRUSTED_TYPES",
    "FileError",
    "VAEImputer",
    "VAEOutlierDetector",
    "VAETransformer",
    "dask",
    "displays",
    "distributed",
    "likelihoods",
    "load",
    "priors",
    "register_onnx_converters",
    "save",
    "to_onnx",
    "to_parquet",
]

_HOME = {
    "FileError": "._files.container",
    "SKOPS_TRUSTED_TYPES": "._files.trusted",
    "VAEImputer": "._imputer",
    "VAEOutlierDetector": "._outlier",
    "VAETransformer": "._transformer",
    "load": "._persistence",
    "register_onnx_converters": "._onnx.export",
    "save": "._persistence",
    "to_onnx": "._onnx.export",
    "to_parquet": "._parquet",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ._parameters import VERSION

        return VERSION
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
