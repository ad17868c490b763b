"""What all benchmarks share: data sets, a table on the screen, JSON in a file, floors that fail."""

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "load.py"
BUNDLED: dict[str, Callable[..., Any]] = {
    "digits": load_digits,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
}


def shared_data() -> Any:
    """The loader of the shared data sets, or None where there are none."""
    if not SHARED.exists():
        return None
    spec = importlib.util.spec_from_file_location("shared_data_load", SHARED)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_set(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of one data set, scikit-learn's or shared."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    X, y, _ = shared_data().load(name)
    return X, y


def available(names: Sequence[str]) -> list[str]:
    """The sets that are here; says which are not."""
    found = [n for n in names if n in BUNDLED or shared_data() is not None]
    if missing := [n for n in names if n not in found]:
        print(f"skipped (no shared data here): {', '.join(missing)}")
    return found


def parser(description: str, seeds: int) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--seeds", type=int, default=seeds)
    p.add_argument("--sets", nargs="*", help="only these data sets (floors are then not checked)")
    p.add_argument("--set", nargs="*", default=[], metavar="PARAMETER=VALUE", dest="parameters")
    return p


def parameters(settings: Sequence[str]) -> dict[str, Any]:
    """PARAMETER=VALUE pairs, to run a benchmark with other parameters than the defaults."""
    import ast

    pairs = [setting.split("=", 1) for setting in settings]
    return {key: ast.literal_eval(value) for key, value in pairs}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    header = list(rows[0])
    cells = [[_cell(row[key]) for key in header] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(header, *cells, strict=True)]
    for line in [header, *cells]:
        print("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)), flush=True)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def save(name: str, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    report = {"machine": platform.processor() or platform.machine(), "rows": rows, **more}
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, default=float))


def check_floors(floors: Sequence[tuple[str, float, float]]) -> None:
    """Exit with 1 if a measured value is below its floor."""
    failed = False
    for name, value, floor in floors:
        failed |= not value >= floor
        print(f"{'ok  ' if value >= floor else 'FAIL'} {name}: {value:.2f} (floor {floor:g})")
    if failed:
        sys.exit(1)
