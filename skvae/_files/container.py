"""Bytes of a file: a manifest and arrays, checked before anything of them is used.

The file is one of safetensors: the length of a header, the header in JSON, and the arrays. The
header holds our manifest, JSON as well, as a text. The manifest begins with the SHA-256 digest of
the whole file, in which the digest itself counts as zeros. Arrays are numbers and nothing else.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1  # the newest one that is known
KEY = "skvae"  # of the manifest in the header
LENGTH = 8  # bytes that say how long the header is
LONGEST_HEADER = 10**8  # bytes: what safetensors allows
NO_DIGEST = b"0" * 64
# Quotation marks within a text that is JSON itself are escaped.
DIGEST = re.compile(rb'sha256\\?"\s*:\s*\\?"([0-9a-f]{64})\\?"')
VERSION = re.compile(rb'skvae_format\\?"\s*:\s*(\d{1,9})\D')
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1", "I8": "|i1", "U8": "|u1"},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (16, 32, 64)},
}


class FileError(ValueError):
    """A file cannot be loaded: it is not one of skvae's, is damaged, or needs a newer skvae."""


def pack(manifest: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> bytes:
    """Write a manifest and arrays of plain numbers as the bytes of a file."""
    from safetensors.numpy import save

    whole = {"sha256": NO_DIGEST.decode(), "skvae_format": FORMAT, **manifest}
    kept = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(whole, allow_nan=False, separators=(",", ":"))
    data = save(kept, metadata={KEY: text})
    if int.from_bytes(data[:LENGTH], "little") > LONGEST_HEADER:
        raise ValueError(
            "The levels and names of this model take more than 100 MB, which a file of safetensors "
            "does not hold beside its arrays. Use a smaller max_categories, or drop ids."
        )
    place = _digest_in(data)
    return data[: place.start(1)] + _digest_of(data, place) + data[place.end(1) :]


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Read the manifest and the arrays of a file, or raise a FileError."""
    header = _header_of(data)
    newest = VERSION.search(header)
    if newest and int(newest[1]) > FORMAT:
        raise FileError(
            f"it has the format {int(newest[1])}, and this skvae knows formats up to {FORMAT}. "
            "Upgrade skvae"
        )
    place = _digest_in(data)
    if place[1] != _digest_of(data, place):
        raise FileError(
            "its contents are not those that its checksum stands for: it was cut short, damaged "
            "or changed"
        )
    with as_file_errors():
        ((key, text),) = read_json(header)["__metadata__"].items()
        if key != KEY:
            raise ValueError(f"its header has {key!r}")
        return read_json(text), _arrays_of(data)


def _header_of(data: bytes) -> bytes:
    length = int.from_bytes(data[:LENGTH], "little")
    if len(data) < LENGTH or length > min(LONGEST_HEADER, len(data) - LENGTH):
        raise FileError("it is not a file of skvae.save, or it was cut short")
    return data[LENGTH : LENGTH + length]


def _digest_in(data: bytes) -> re.Match[bytes]:
    """Find where the digest stands, or raise a FileError."""
    end = LENGTH + len(_header_of(data))
    found = DIGEST.search(data, LENGTH, end)
    if found is None:
        raise FileError("it is not a file of skvae.save, or it was damaged: it has no checksum")
    return found


def _digest_of(data: bytes, place: re.Match[bytes]) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(view[: place.start(1)])
    digest.update(NO_DIGEST)
    digest.update(view[place.end(1) :])
    return digest.hexdigest().encode()


def _arrays_of(data: bytes) -> dict[str, NDArray]:
    """Return the arrays, each in its own memory; safetensors checks all sizes against the file."""
    from safetensors import deserialize

    arrays = {}
    for name, parts in deserialize(data):
        flat = np.frombuffer(parts["data"], dtype=DTYPES[parts["dtype"]])
        arrays[name] = flat.reshape(parts["shape"]).copy()
    return arrays


def read_json(text: str | bytes) -> Any:
    """Read JSON without nan, infinities and names that stand twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice in its manifest")
        return dict(pairs)

    def number(text: str) -> float:
        raise ValueError(f"its manifest holds {text}")

    return json.loads(text, object_pairs_hook=once, parse_constant=number)


@contextmanager
def as_file_errors() -> Iterator[None]:
    """Turn whatever is wrong with what is read into one kind of error."""
    try:
        yield
    except FileError:
        raise
    except RecursionError:
        raise FileError("its parts are nested too deeply") from None
    except ImportError:  # of a library that is asked for by its name
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or "nothing"
        raise FileError(f"its contents make no sense ({type(error).__name__}: {said})") from error


def read_bytes(path: Path) -> bytes:
    """Read a file; what has no size of its own, such as a pipe, is refused."""
    if not path.is_file():  # to open a pipe would be to wait for who writes to it
        raise FileError("it is not a file")
    return path.read_bytes()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name first, which then becomes its own."""
    target = Path(os.path.realpath(path))  # a link stays one
    other = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with _naming(path):
            with other.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with suppress(OSError):  # there is none yet, or its mode cannot be had
                shutil.copymode(target, other)
            other.replace(target)
    except BaseException:
        with suppress(OSError):
            other.unlink()
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of the system name the user's path, and not the other one."""
    try:
        yield
    except PermissionError:
        raise PermissionError(
            f"skvae.save cannot write {path}: you may not write into its folder, "
            f"{os.path.realpath(path.parent)}. Choose another one."
        ) from None
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
            del error.filename2
        raise
