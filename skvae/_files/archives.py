"""Zip archives of skops: what is in them takes no more memory than the archive itself."""

import io
import math
import zipfile
from typing import Any

import numpy as np

from .container import read_json

ZIPS = (b"PK\x03\x04", b"PK\x05\x06")  # what NumPy takes for an archive of arrays
NPY = b"\x93NUMPY"
SCHEMA = "schema.json"  # of skops: what the parts are, and what makes them
# Estimators of scikit-learn's hold no such. Earlier versions of skops call whatever function of
# numpy.random the file names: the whole test suite is one of them.
REFUSED = ("RandomGeneratorNode",)


def stored(data: bytes) -> bytes:
    """Return an archive without compression, also of the archives within it."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as copy,
    ):
        for member in archive.infolist():
            held = archive.read(member)
            is_zip = held.startswith(ZIPS) and zipfile.is_zipfile(io.BytesIO(held))
            copy.writestr(zipfile.ZipInfo(member.filename), stored(held) if is_zip else held)
    return result.getvalue()


def check_skops(data: bytes) -> None:
    """Raise a ValueError if an archive of skops holds more than it may."""
    check_archive(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        left = [read_json(archive.read(SCHEMA))]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if part.get("__loader__") in REFUSED:
                raise ValueError("its archive holds a numpy.random.Generator")
            left += part.values()
        elif isinstance(part, list):
            left += part


def check_archive(data: bytes) -> None:
    """Raise a ValueError if what an archive says of its sizes is more than it holds."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("a name stands twice in its archive")
        for member in members:
            plain = member.compress_type == zipfile.ZIP_STORED
            if not plain or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} in its archive is compressed")
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("its archive says that it holds more than it is long")
        for member in members:
            held = archive.read(member)
            if held.startswith(ZIPS):
                check_archive(held)
            elif held.startswith(NPY):
                _check_array(held, member.filename)


def _check_array(data: bytes, name: str) -> None:
    """Raise a ValueError unless an array is as large as its header says, and holds numbers."""
    from numpy.lib import format as npy

    file = io.BytesIO(data)
    version = npy.read_magic(file)
    readers: dict[Any, Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} has the format {version} of NumPy's files")
    shape, _, dtype = readers[version](file)
    if np.dtype(dtype).hasobject:
        raise ValueError(f"{name} holds pickled objects")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name} says that it has the shape {shape}, and is not as long")
