"""Fitted estimators to files and back, without pickle: reading runs nothing that a file holds."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ._files.composites import FORMS, Composite, is_ours, parts_within
from ._files.container import FileError, as_file_errors, pack, read_bytes, unpack, write_bytes
from ._files.nodes import Reader, Writer
from ._parameters import VERSION

LIBRARIES = ("numpy", "scipy", "sklearn", "torch", "pandas", "polars", "safetensors", "skops")


def save(estimator: Any, path: "str | os.PathLike[str]", *, trusted: Sequence[str] = ()) -> None:
    """Write a fitted estimator to one file, without pickle.

    The file has a manifest in JSON and the model's arrays, in the format of safetensors. What
    :func:`load` makes of it computes the same numbers, bit by bit, and ``partial_fit`` goes on as
    it would have. A file that was there before is replaced when the new one is complete.

    Parameters
    ----------
    estimator : VAETransformer, VAEOutlierDetector, VAEImputer or estimator of scikit-learn's
        A fitted estimator. Of scikit-learn's own, such as a Pipeline or a ColumnTransformer, those
        that have one of the three within them; they need skops, too.
    path : str or path-like
        Where to store it.
    trusted : sequence of str, default=()
        Full names of further types, in estimators around ours, that skops is to trust, such as
        "sklearn.tree._tree.Tree" of a forest. ``load`` has to be told the same.

    Raises
    ------
    TypeError
        If something in the estimator is of a class that is not known, such as a likelihood of your
        own.
    NotFittedError
        If the estimator is not fitted.
    ImportError
        If safetensors or skops is missing: ``pip install "skvae[files]"``.

    See Also
    --------
    load : Read the file.

    Notes
    -----
    Callbacks are not stored. A random state that is a RandomState instance is stored as it is now.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> import skvae
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = skvae.VAETransformer(2, max_iter=0, random_state=0).fit(X)
    >>> path = Path(tempfile.mkdtemp()) / "iris.skvae"
    >>> skvae.save(vae, path)
    >>> bool((skvae.load(path).transform(X) == vae.transform(X)).all())
    True
    """
    target = Path(os.fsdecode(path))
    _check_installed()
    _check_estimator(estimator)
    writer = Writer(FORMS)
    whole = estimator if is_ours(estimator) else Composite(estimator, trusted)
    node = writer.node(whole, type(estimator).__name__)
    write_bytes(target, pack({"written_by": _versions(), "model": node}, writer.arrays))


def load(path: "str | os.PathLike[str]", *, trusted: Sequence[str] = ()) -> Any:
    """Read an estimator from a file of :func:`save`.

    Reading runs nothing that the file brings along: it holds numbers, and names of a closed set of
    classes. Its checksum tells damage, but not who has written it.

    Parameters
    ----------
    path : str or path-like
        The file.
    trusted : sequence of str, default=()
        Full names of further types that skops is to trust, as for ``save``.

    Returns
    -------
    estimator : VAETransformer, VAEOutlierDetector, VAEImputer or estimator of scikit-learn's
        The fitted estimator.

    Raises
    ------
    FileError
        If the file is not one of skvae's, was cut short, damaged or changed, or was written by a
        skvae that is newer than this one. It is a ValueError.
    OSError
        If there is no such file.
    ImportError
        If safetensors or skops is missing: ``pip install "skvae[files]"``.

    See Also
    --------
    save : Write the file.

    Notes
    -----
    A file of this version is read by all later ones. Neither reading one of our estimators nor
    ``transform`` of up to 32 rows needs torch, unless likelihoods or priors are instances. An
    estimator around ours takes longer: skops imports all of scikit-learn.
    """
    target = Path(os.fsdecode(path))
    _check_installed()
    try:
        manifest, arrays = unpack(read_bytes(target))
        with as_file_errors():
            estimator = Reader(FORMS, arrays, trusted).value(manifest["model"])
            if not isinstance(estimator, BaseEstimator):
                raise FileError("it holds no estimator")
            return estimator
    except FileError as error:
        raise FileError(f"{target} cannot be loaded: {error}.") from error.__cause__


def _check_installed() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise ImportError(
            'skvae.save and skvae.load need safetensors. Install it: pip install "skvae[files]"'
        ) from None


def _check_estimator(estimator: Any) -> None:
    """Raise an error unless it is a fitted estimator that is ours, or has ours within it."""
    name = type(estimator).__name__
    if not isinstance(estimator, BaseEstimator) or not any(parts_within(estimator, is_ours, set())):
        raise TypeError(
            "skvae.save stores VAETransformer, VAEOutlierDetector, VAEImputer, and estimators of "
            f"scikit-learn's that have one of these within them. Got {estimator!r}, a {name}: use "
            "skops.io or pickle."
        )
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise NotFittedError(
            f"This {name} is not fitted, and skvae.save stores fitted models. Call fit first."
        ) from None


def _versions() -> dict[str, str]:
    """Return the versions of skvae, Python, and the libraries in use."""
    loaded = {name: sys.modules[name] for name in LIBRARIES if name in sys.modules}
    versions = {name: str(getattr(module, "__version__", "")) for name, module in loaded.items()}
    return {"skvae": VERSION, "python": sys.version.partition(" ")[0], **versions}
