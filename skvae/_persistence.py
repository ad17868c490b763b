"""Fitted estimators to files and back, without pickle: reading runs nothing that a file holds."""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
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
    path : str, bytes or path-like
        Where to store it, in a folder that is there.
    trusted : sequence of str, default=()
        Full names of further types, in estimators around ours, that skops is to trust, such as
        "sklearn.tree._tree.Tree" of a forest. ``load`` has to be told the same. Functions are
        stored by their names: they need one in their module, which a lambda has not.

    Raises
    ------
    TypeError
        If something in the estimator is of a class that is not known, such as a likelihood of your
        own, or could not be read back. No file is written then.
    NotFittedError
        If the estimator is not fitted.
    OSError
        If there is no such folder, the path is one of a folder, or it cannot be written to.
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
    target, names = _path_of(path), _names_of(trusted)
    _check_target(target)
    _check_installed()
    _check_estimator(estimator)
    writer, name = Writer(FORMS), type(estimator).__name__
    whole = estimator if is_ours(estimator) else Composite(estimator, names)
    node = writer.node(whole, name)
    _check_readable(Reader(FORMS, writer.arrays, names), node, name)
    write_bytes(target, pack({"written_by": _versions(), "model": node}, writer.arrays))


def load(path: "str | os.PathLike[str]", *, trusted: Sequence[str] = ()) -> Any:
    """Read an estimator from a file of :func:`save`.

    Reading runs nothing that the file brings along: it holds numbers, and names of a closed set of
    classes. Its checksum tells damage, but not who has written it.

    Parameters
    ----------
    path : str, bytes or path-like
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
    target, names = _path_of(path), _names_of(trusted)
    _check_installed()
    _check_source(target)
    try:
        manifest, arrays = unpack(read_bytes(target))
        with as_file_errors():
            estimator = Reader(FORMS, arrays, names).value(manifest["model"])
            if not isinstance(estimator, BaseEstimator):
                raise FileError("it holds no estimator")
            return estimator
    except FileError as error:
        raise FileError(f"{target} cannot be loaded: {error}.") from error.__cause__


def _path_of(path: Any) -> Path:
    """Return the path of a file, or raise an error that says what is accepted."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            "skvae.save and skvae.load take the path of a file: a str, bytes or os.PathLike, such "
            f"as pathlib.Path. Got {path!r}. Of an open file, pass its name."
        ) from None
    if not text or "\0" in text or text.endswith(("/", os.sep)):
        raise ValueError(
            f"{path!r} is not the path of a file. Pass one that ends in the name of a file, such "
            'as "model.skvae".'
        )
    return Path(text)


def _names_of(trusted: Any) -> tuple[str, ...]:
    """Return the names of further types to trust, or raise a TypeError."""
    is_list = isinstance(trusted, Iterable) and not isinstance(trusted, str | bytes)
    names = tuple(trusted) if is_list else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            "trusted must be a list of full names of types, such as ['sklearn.tree._tree.Tree']. "
            f"Got {trusted!r}."
        )
    return names


def _check_target(target: Path) -> None:
    """Raise an error unless a file can be there; that is known before anything is written."""
    real = Path(os.path.realpath(target))
    if real.is_dir():
        raise IsADirectoryError(
            f"{target} is a folder, and skvae.save writes one file. Add the name of the file, such "
            f"as {target / 'model.skvae'}."
        )
    if real.exists() and not real.is_file():
        raise FileExistsError(
            f"{target} is there, and is no file: it is a pipe or a device. Choose another path."
        )
    folder = real.parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"skvae.save cannot write {target}: there is no folder {folder}. Make it first, or "
            "correct the path."
        )


def _check_source(path: Path) -> None:
    """Raise an error unless something is there that may be a file."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"skvae.load finds no file {path.absolute()}. Correct the path."
        ) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(
            f"{path} is a folder, and skvae.load reads one file of skvae.save. Pass its path."
        )


def _check_readable(reader: Reader, node: Any, name: str) -> None:
    """Raise a TypeError unless what is to be written can be read."""
    try:
        reader.value(node)
    except Exception as error:
        raise TypeError(
            f"This {name} could not be read back from a file ({type(error).__name__}: {error}), "
            "so skvae.save has written none. Use pickle for files that you trust."
        ) from error


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
    if hasattr(estimator, "to_local"):
        raise TypeError(
            f"skvae.save stores estimators without a cluster. Got a {name}: save what its "
            "to_local() returns."
        )
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
