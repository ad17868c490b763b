"""Files of each format stay here for ever, and give what they gave when they were written.

``python tests/test_old_files.py`` writes those of the present format, once in its life.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import skvae
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer, likelihoods, priors
from skvae._files.container import FORMAT, unpack

pytest.importorskip("safetensors")
FOLDER = Path(__file__).parent / "fixtures"
N_ROWS = 24
HIDDEN = {"hidden_layer_sizes": (4,), "random_state": 0}


def numbers():
    """Rows that no random generator has to draw again."""
    t = np.linspace(0.0, 3.0, N_ROWS)
    return np.stack([np.sin(3.0 * t), np.cos(5.0 * t), np.sin(3.0 * t) + 0.3 * np.cos(17.0 * t)], 1)


def with_holes():
    X = numbers()
    X[::7, 1], X[3::11, 2] = np.nan, np.nan
    return X


def mixed():
    X, turn = numbers(), np.arange(N_ROWS)
    frame = pd.DataFrame(
        {
            "number": X[:, 0],
            "whole": pd.array(turn % 5, dtype="Int64"),
            "switch": turn % 3 == 0,
            "perhaps": pd.array(turn % 4 < 2, dtype="boolean"),
            "level": pd.Categorical(np.array(["x", "y", "z"], dtype=object)[turn % 3]),
            "ordered": pd.Categorical.from_codes(turn % 2, [10, 20], ordered=True),
            "text": np.array(["u", "v"], dtype=object)[(turn // 2) % 2],
            "day": (np.datetime64("2020-01-01") + turn.astype("m8[D]")).astype("M8[ns]"),
        }
    )
    frame.loc[::9, "number"], frame.loc[::8, "whole"] = np.nan, pd.NA
    frame.loc[5, "text"] = None
    return frame


ESTIMATORS = {
    "transformer": lambda: VAETransformer(
        2, prior=priors.Mixture(2), likelihood={"number": "student_t"}, max_iter=3, **HIDDEN
    ),
    "shaped": lambda: VAETransformer(2, likelihood="normal_scores", max_iter=3, **HIDDEN),
    "instances": lambda: VAETransformer(1, likelihood=likelihoods.Gaussian(floor=0.1), **HIDDEN),
    "detector": lambda: VAEOutlierDetector(
        contamination=0.1, random_state=np.random.RandomState(0)
    ),
    "imputer": lambda: VAEImputer(
        VAETransformer(2, likelihood="gaussian", max_iter=0, **HIDDEN), add_indicator=True
    ),
}
ROWS = {
    "transformer": mixed,
    "shaped": mixed,
    "instances": numbers,
    "detector": mixed,
    "imputer": with_holes,
}


def _shown(cells):
    """Numbers and levels as JSON has them; dates as days."""
    if isinstance(cells, pd.DataFrame):
        dtypes = {name: str(dtype).partition("[")[0] for name, dtype in cells.dtypes.items()}
        dtypes = {name: "text" if d in ("str", "object") else d for name, d in dtypes.items()}
        return {"dtypes": dtypes, "cells": [_shown(cells[name]) for name in cells]}
    if isinstance(cells, pd.Series) and cells.dtype.kind == "M":
        cells = (cells - pd.Timestamp("2020-01-01")) / pd.Timedelta(days=1)
    values = [None if pd.isna(v) else v for v in np.asarray(cells, dtype=object).ravel()]
    return [v if isinstance(v, str) or v is None else float(f"{v:.10g}") for v in values]


def computed(name, model):
    """What does not hang on a generator of torch's."""
    X = ROWS[name]()
    if name == "detector":
        return {
            "scores": _shown(model.score_samples(X)),
            "predict": _shown(model.predict(X)),
            "p_values": _shown(model.p_values(X)),
            "shares": _shown(-model.score_features(X)),
        }
    if name == "imputer":  # of a linear model: its expectations are exact
        return {"transform": _shown(model.transform(X))}
    Z = model.transform(X)
    return {"transform": _shown(Z), "inverse_transform": _shown(model.inverse_transform(Z))}


def _assert_close(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            _assert_close(found[key], expected[key])
    elif expected and isinstance(expected[0], list):
        for one, other in zip(found, expected, strict=True):
            _assert_close(one, other)
    elif all(isinstance(value, float) for value in expected):
        assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    else:
        assert found == expected


FORMATS = sorted({path.name for path in FOLDER.iterdir()})


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("version", FORMATS)
def test_a_file_of_every_format_gives_what_it_gave(version, name):
    folder = FOLDER / version
    if not (folder / f"{name}.skvae").exists():
        pytest.skip("This format had no such file.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = skvae.load(folder / f"{name}.skvae")
    expected = json.loads((folder / f"{name}.json").read_text())
    _assert_close(computed(name, model), expected)


def test_there_are_files_of_the_present_format_and_they_are_small():
    files = [*(FOLDER / f"format_{FORMAT}").iterdir()]
    assert {path.name for path in files} >= {f"{name}.skvae" for name in ESTIMATORS}
    assert sum(path.stat().st_size for path in files) < 100_000


def _assert_within(before, now):
    """Check that all that stood in a manifest stands in another one; that may say more."""
    assert type(before) is type(now)
    if isinstance(before, dict):
        for key in before:
            _assert_within(before[key], now[key])
    elif isinstance(before, list):
        for one, other in zip(before, now, strict=True):
            _assert_within(one, other)
    else:
        assert before == now


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_an_old_file_says_is_written_again(name, tmp_path):
    # A new field needs a default for older files. Another meaning needs another format.
    old = FOLDER / f"format_{FORMAT}" / f"{name}.skvae"
    skvae.save(skvae.load(old), tmp_path / "again")
    (before, arrays), (now, again) = (
        unpack(path.read_bytes()) for path in (old, tmp_path / "again")
    )
    _assert_within(before["model"], now["model"])
    for key, array in arrays.items():
        assert again[key].tobytes() == array.tobytes()


if __name__ == "__main__":
    folder = FOLDER / f"format_{FORMAT}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in ESTIMATORS.items():
        model = make().fit(ROWS[name]())
        skvae.save(model, folder / f"{name}.skvae")
        (folder / f"{name}.json").write_text(json.dumps(computed(name, model)))
