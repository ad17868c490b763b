"""Files that are cut short, damaged, forged or from the future: one clear error, and nothing runs.

The 10,000 random changes of a byte are in ``benchmarks/files.py``; here are some of them.
"""

import hashlib
import io
import json
import os
import pickle
import re
import tracemalloc
import zipfile
from functools import cache

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline
from zoo import fitted, numbers, small

import skvae
from skvae import FileError
from skvae._files.archives import stored
from skvae._files.container import FORMAT, pack, unpack

pytest.importorskip("safetensors")
N_FLIPS = 150
LEAST_MEMORY = 2**25  # bytes, below which nothing was believed that a file merely says


@cache
def _bytes_of(name, folder):
    model = make_pipeline(small()).fit(numbers()) if name == "Pipeline" else fitted(name)
    skvae.save(model, folder / name)
    return (folder / name).read_bytes()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("valid")


def _refused(data, path, said=None):
    """Check that a file is refused by the one error, which names it; return what that says."""
    path.write_bytes(data)
    with pytest.raises(FileError, match=said) as caught:
        skvae.load(path)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(f"{path} cannot be loaded: ")
    return str(caught.value)


def _changed(data, change):
    """What a forger makes of a file: another manifest or other arrays, and a right checksum."""
    manifest, arrays = unpack(data)
    for name in ("sha256", "skvae_format"):
        del manifest[name]
    change(manifest, arrays)
    return pack(manifest, arrays)


def _sealed(data):
    """A file with the right checksum, however its contents were changed."""
    place = re.search(rb'sha256\\":\\"(.{64})', data, re.DOTALL)
    if place is None:
        return data
    blank = data[: place.start(1)] + b"0" * 64 + data[place.end(1) :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return data[: place.start(1)] + digest + data[place.end(1) :]


def _with_text(text, arrays=b""):
    """A file of this manifest, whatever text it is."""
    start = f'{{"sha256":"{"0" * 64}","skvae_format":{FORMAT},'
    header = json.dumps({"__metadata__": {"skvae": start + text}}).encode()
    return _sealed(len(header).to_bytes(8, "little") + header + arrays)


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "Pipeline"])
def test_a_file_that_was_cut_short_is_refused(name, folder, tmp_path):
    data = _bytes_of(name, folder)
    ends = {0, 1, 7, 8, 9, 100, len(data) - 1, *range(0, len(data), len(data) // 40)}
    for end in ends:
        _refused(data[:end], tmp_path / "cut")
    assert "cut short" in _refused(data[:-1], tmp_path / "cut")


@pytest.mark.parametrize("name", ["default", "pandas", "Pipeline"])
def test_a_byte_that_was_changed_is_told(name, folder, tmp_path):
    data, rng = _bytes_of(name, folder), np.random.default_rng(0)
    for place in rng.integers(0, len(data), N_FLIPS).tolist():
        other = bytearray(data)
        other[place] ^= int(rng.integers(1, 256))
        _refused(bytes(other), tmp_path / "changed")


@pytest.mark.parametrize("name", ["default", "pandas", "Pipeline"])
def test_a_byte_that_was_changed_on_purpose_crashes_nothing(name, folder, tmp_path):
    # With a checksum that is right again: it is refused, or it is an estimator of other numbers.
    data, rng, path = _bytes_of(name, folder), np.random.default_rng(0), tmp_path / "forged"
    n_header = int.from_bytes(data[:8], "little")
    for place in rng.integers(0, 8 + n_header, N_FLIPS).tolist():
        other = bytearray(data)
        other[place] ^= int(rng.integers(1, 256))
        path.write_bytes(_sealed(bytes(other)))
        try:
            assert isinstance(skvae.load(path), BaseEstimator)
        except FileError:
            continue


def test_bytes_that_were_appended_are_told(folder, tmp_path):
    data = _bytes_of("default", folder)
    _refused(data + b"\0", tmp_path / "longer", "checksum")
    _refused(_sealed(data + b"\0"), tmp_path / "longer")


class Boom:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch boom",)


OTHERS = {
    "nothing": lambda: b"",
    "a text": lambda: b"skvae\n" * 99,
    "a pickle": lambda: pickle.dumps(Boom()),
    "an old pickle": lambda: pickle.dumps(Boom(), protocol=0),
    "a zip": lambda: _zip({"schema.json": b"{}"}),
    "safetensors of others": lambda: b'\x10\0\0\0\0\0\0\0{"__metadata__":{"sha256":"' + b"0" * 80,
    "a header longer than all": lambda: b"\xff" * 8 + b"{}",
    "a header of 2 GB": lambda: (2**31).to_bytes(8, "little") + b"{" * 99,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds_are_refused_and_not_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(OTHERS[kind](), tmp_path / "other", "not a file of skvae.save")
    assert not (tmp_path / "boom").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes.")
def test_what_has_no_size_is_refused():
    with pytest.raises(FileError, match="/dev/zero cannot be loaded: it is not a file"):
        skvae.load("/dev/zero")


# -- the future -----------------------------------------------------------------------------------


def test_a_file_of_a_later_format_says_what_to_do(folder, tmp_path):
    data = _bytes_of("default", folder)
    later = data.replace(rb"skvae_format\":1,", rb"skvae_format\":2,")
    assert later != data
    for each in (later, _sealed(later)):
        _refused(each, tmp_path / "later", r"has the format 2, .* formats up to 1. Upgrade skvae")


def _of(manifest, *places):
    """The parts of a model, on the way to what a test changes."""
    parts = manifest["model"]["VAETransformer"]
    for place in places:
        parts = parts[place]
    return parts


def _model(manifest):
    return _of(manifest, "fitted", "model_", "Fitted")


def _columns(manifest):
    return _model(manifest)["columns"]["Columns"]


def _architecture(manifest, name, node):
    pairs = _model(manifest)["architecture"]["dict"]
    next(pair for pair in pairs if pair[0] == name)[1] = node


NEWER = {
    "a parameter": lambda m, a: _of(m, "parameters").update(new=1),
    "an attribute": lambda m, a: _of(m, "fitted").update(new_=1),
    "a field": lambda m, a: _model(m).update(new=1),
    "a field of columns": lambda m, a: _columns(m).update(new=1),
}


@pytest.mark.parametrize("what", NEWER)
def test_what_only_a_later_version_knows_says_what_to_do(what, folder, tmp_path):
    data = _changed(_bytes_of("default", folder), NEWER[what])
    _refused(
        data,
        tmp_path / "newer",
        "'new_?', which this skvae does not know. Upgrade skvae",
    )


def test_a_parameter_that_is_newer_than_the_file_has_its_default(folder, tmp_path):
    data = _changed(_bytes_of("default", folder), lambda m, a: _of(m, "parameters").pop("whiten"))
    (tmp_path / "older").write_bytes(data)
    assert skvae.load(tmp_path / "older").whiten is False


# -- what a forger would try ----------------------------------------------------------------------


def _put(node):
    return lambda m, a: _of(m, "parameters").update(scaling=node)


def _shrunk(name):
    def change(manifest, arrays):
        key = f"VAETransformer.model_.weights.{name}"
        arrays[key] = arrays[key][:-1]

    return change


FORGED = {
    "a function": _put({"os.system": "touch boom"}),
    "a module's function": _put({"posix.system": ["touch boom"]}),
    "pandas reads a pickle": _put({"pandas.read_pickle": ["boom"]}),
    "a class": _put({"type": "Popen"}),
    "a path of a zone": _put({"zone": "../../../../etc/passwd"}),
    "an absolute zone": _put({"zone": "/etc/passwd"}),
    "a dtype of objects": _put({"cells": ["V", [1], [1]]}),
    "a dtype of NumPy with fields": _put({"numpy": ["i8,i8", 1]}),
    "a dtype of NumPy with a shape": _put({"numpy": ["(9999999999,)f8", 1.0]}),
    "an array that is not there": _put({"array": ["../../etc/passwd", "C", "<f8"]}),
    "cells without end": _put({"cells": ["U", [10**18], []]}),
    "two kinds": _put({"tuple": [], "list": []}),
    "no kind": _put({}),
    "a random generator": _put({"RandomState": [1, {"dict": [["bit_generator", "seed"]]}]}),
    "an estimator of another class": lambda m, a: m.update(model={"Popen": {"args": ["touch"]}}),
    "no estimator": lambda m, a: m.update(model={"tuple": []}),
    "no model": lambda m, a: m.pop("model"),
    "half a model": lambda m, a: _model(m).pop("schema"),
    "no history": lambda m, a: _of(m, "fitted").pop("_history"),
    "another history": lambda m, a: _of(m, "fitted").update(_history=3),
    "a network without end": lambda m, a: _architecture(
        m, "hidden_layer_sizes", {"tuple": [10**12]}
    ),
    "a network of another depth": lambda m, a: _architecture(
        m, "hidden_layer_sizes", {"tuple": [4, 4]}
    ),
    "clusters without end": lambda m, a: _architecture(
        m, "prior", {"Mixture": {"n_clusters": 10**12}}
    ),
    "levels without end": lambda m, a: _columns(m)["kinds"]["Kinds"].update(
        n_levels={"tuple": [10**12] * 4}
    ),
    "no parameters": lambda m, a: _model(m).update(architecture={"dict": []}),
    "holes of no column": lambda m, a: _model(m)["schema"]["Schema"].update(holes=[[10**9]]),
    "a column too many": lambda m, a: _model(m)["schema"]["Schema"]["columns"].append(
        {"name": "a", "kind": "number"}
    ),
    "a column of another kind": lambda m, a: _model(m)["schema"]["Schema"]["columns"][0].update(
        kind="function"
    ),
    "a level that cannot be one": lambda m, a: _model(m)["schema"]["Schema"]["columns"][0].update(
        levels=[{"list": []}]
    ),
    "a frame of another library": lambda m, a: _model(m)["schema"]["Schema"].update(
        library="os", template=[]
    ),
    "weights that are short": _shrunk("encoder.linear.weight"),
    "a decoder that is short": _shrunk("decoder.mlp.first.bias"),
    "weights that are texts": lambda m, a: _model(m).update(kl_per_component="all"),
    "moments that are short": lambda m, a: a.update(
        {"VAETransformer.model_.columns.shift": np.zeros(1)}
    ),
    "an array of another dtype": lambda m, a: a.update(
        {"VAETransformer.model_.columns.shift": np.zeros(4, dtype=np.int64)}
    ),
}


def _peak_of(call):
    """The most memory that a call holds, in bytes; NumPy's arrays are among it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_refused_and_nothing_runs(what, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = _changed(_bytes_of("default", folder), FORGED[what])
    assert _peak_of(lambda: _refused(data, tmp_path / "forged")) < LEAST_MEMORY
    assert not (tmp_path / "boom").exists()


RANGE = {"range": [0, 10**12, 1], "names": [None]}
FRAMES = {
    "a function for a dtype": lambda t: t["dtypes"].__setitem__(0, ["os.system", "touch boom"]),
    "a dtype of another library": lambda t: t["dtypes"].__setitem__(0, ["named", "geometry"]),
    "a dtype with fields": lambda t: t["dtypes"].__setitem__(0, ["numpy", "i8,O"]),
    "Arrow's own bytes": lambda t: t["dtypes"].__setitem__(0, ["arrow", "AAAA"]),
    "columns without end": lambda t: t.update(columns=RANGE),
    "categories without end": lambda t: t["dtypes"].__setitem__(0, ["category", RANGE, False]),
    "too few names": lambda t: t["columns"]["values"].pop(),
    "codes beyond the levels": lambda t: t.update(
        columns={"levels": [RANGE | {"range": [0, 2, 1]}], "codes": [[7]], "names": ["a"]}
    ),
}


@pytest.mark.parametrize("what", FRAMES)
def test_a_forged_frame_is_refused_and_nothing_runs(what, folder, tmp_path, monkeypatch):
    def change(manifest, arrays):
        FRAMES[what](_model(manifest)["schema"]["Schema"]["template"])

    monkeypatch.chdir(tmp_path)
    data = _changed(_bytes_of("pandas", folder), change)
    assert _peak_of(lambda: _refused(data, tmp_path / "forged")) < LEAST_MEMORY
    assert not (tmp_path / "boom").exists()


TEXTS = {
    "nested lists": '"model":' + "[" * 10**5,
    "nested and closed": '"model":' + "[" * 10**5 + "]" * 10**5 + "}",
    "nested nodes": '"model":' + '{"list":[' * 5000 + "]}" * 5000 + "}",
    "a name twice": '"model":1,"model":2}',
    "nan": '"model":NaN}',
    "a number of many digits": '"model":' + "9" * 10**5 + "}",
    "no end": '"model":1',
    "no object": "",
}


@pytest.mark.parametrize("what", TEXTS)
def test_json_that_is_none_of_ours_is_refused(what, tmp_path):
    _refused(_with_text(TEXTS[what]), tmp_path / "text")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F64", "shape": [10**15], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [10**15], "data_offsets": [0, 8 * 10**15]},
        {"dtype": "F64", "shape": [2], "data_offsets": [-8, 8]},
        {"dtype": "O", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [0, 10**30], "data_offsets": [0, 0]},
    ],
    ids=str,
)
def test_sizes_are_checked_before_memory_is_taken(entry, tmp_path):
    text = f'{{"sha256":"{"0" * 64}","skvae_format":{FORMAT},"model":1}}'
    header = json.dumps({"__metadata__": {"skvae": text}, "a": entry}).encode()
    data = _sealed(len(header).to_bytes(8, "little") + header + bytes(8))
    assert _peak_of(lambda: _refused(data, tmp_path / "absurd")) < LEAST_MEMORY


# -- archives of skops ----------------------------------------------------------------------------


def _zip(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _npy(shape, data=b"", dtype="<f8"):
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def _pickled():
    file = io.BytesIO()
    np.save(file, np.array([Boom()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _schema(**parts):
    return json.dumps({"protocol": 1, "_skops_version": "0.13", **parts}).encode()


BOMB = bytes(2**26)
GENERATOR = {"__class__": "Generator", "__module__": "numpy.random._generator", "content": {}}
TYPE = {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode"}
ARRAY = {"__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode"}
ARRAY |= {"type": "numpy", "file": "a.npy"}
DEEP = "[" * 10**5
ARCHIVES = {
    "a pickle": lambda: pickle.dumps(Boom()),
    "a pickle of NumPy": lambda: _zip({"schema.json": _schema(**ARRAY), "a.npy": _pickled()}),
    "a bomb": lambda: _zip({"schema.json": BOMB}, zipfile.ZIP_DEFLATED),
    "a bomb within": lambda: _zip(
        {"schema.json": _schema(**ARRAY), "a.npz": _zip({"b": BOMB}, zipfile.ZIP_DEFLATED)}
    ),
    "an array without end": lambda: _zip(
        {"schema.json": _schema(**ARRAY), "a.npy": _npy((10**12,))}
    ),
    "an array without end, by another name": lambda: _zip(
        {"schema.json": _schema(**ARRAY | {"file": "b.bin"}), "b.bin": _npy((10**12,), bytes(8))}
    ),
    "a function": lambda: _zip({"schema.json": _schema(**TYPE)}),
    "a function of numpy.random": lambda: _zip(
        {"schema.json": _schema(**GENERATOR, __loader__="RandomGeneratorNode")}
    ),
    "a loader that stands twice": lambda: _zip(
        {"schema.json": b'{"__loader__":"RandomGeneratorNode","__loader__":"ListNode"}'}
    ),
    "nested JSON": lambda: _zip({"schema.json": DEEP.encode()}),
    "no estimator": lambda: _zip({"schema.json": _schema(**ARRAY), "a.npy": _npy((1,), bytes(8))}),
    "no schema": lambda: _zip({"../../../boom": b"boom"}),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_forged_archive_is_refused_and_nothing_runs(what, folder, tmp_path, monkeypatch):
    pytest.importorskip("skops")
    monkeypatch.chdir(tmp_path)

    def change(manifest, arrays):
        arrays["Pipeline.skops"] = np.frombuffer(archive, np.uint8)

    data, archive = _bytes_of("Pipeline", folder), ARCHIVES[what]()
    forged = _changed(data, change)
    assert _peak_of(lambda: _refused(forged, tmp_path / "forged")) < LEAST_MEMORY
    assert not (tmp_path / "boom").exists()


def test_what_is_written_has_no_compression(folder):
    pytest.importorskip("skops")
    _, arrays = unpack(_bytes_of("Pipeline", folder))
    with zipfile.ZipFile(io.BytesIO(arrays["Pipeline.skops"].tobytes())) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    nested = _zip({"a.npz": _zip({"b": b"0" * 999}, zipfile.ZIP_DEFLATED)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(stored(nested))) as archive:
        inner = zipfile.ZipFile(io.BytesIO(archive.read("a.npz")))
        assert inner.infolist()[0].compress_type == zipfile.ZIP_STORED
        assert inner.read("b") == b"0" * 999


def test_a_member_outside_of_an_archive_is_never_written(folder, tmp_path, monkeypatch):
    pytest.importorskip("skops")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")

    def change(manifest, arrays):
        file = io.BytesIO(arrays["Pipeline.skops"].tobytes())
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("../evil", b"evil")
        arrays["Pipeline.skops"] = np.frombuffer(file.getvalue(), np.uint8)

    (tmp_path / "inner" / "model").write_bytes(_changed(_bytes_of("Pipeline", folder), change))
    skvae.load("model").transform(numbers())
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


@pytest.mark.parametrize("number", [7, -1, None, "x", 0.5])
def test_a_part_that_is_not_there_is_refused(number, folder, tmp_path):
    pytest.importorskip("skops")

    def change(manifest, arrays):
        text = arrays["Pipeline.skops"].tobytes()
        before = re.search(rb'"content": "0"', text)
        assert before
        with zipfile.ZipFile(io.BytesIO(text)) as archive:
            members = {m.filename: archive.read(m) for m in archive.infolist()}
        shown = json.dumps(json.dumps(number)).encode()
        members["schema.json"] = re.sub(
            rb'("number": \{[^}]*"content": )"0"',
            lambda found: found[1] + shown,
            members["schema.json"],
        )
        arrays["Pipeline.skops"] = np.frombuffer(_zip(members), np.uint8)

    data = _changed(_bytes_of("Pipeline", folder), change)
    _refused(data, tmp_path / "forged")
