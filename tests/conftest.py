import importlib.util
import os
from pathlib import Path

import pytest

# SciPy reads it once, when it is first imported; without it scikit-learn's array-API check is
# skipped in silence. So nothing above this line may import SciPy.
os.environ["SCIPY_ARRAY_API"] = "1"
# Read once, too: a process of tests has a core to itself. On a busy machine two threads that wait
# for each other took four times the processor time. Tests of threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared():
    """The loader of the data sets beside the repository: ``shared.load(name)``."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "load.py"
    if not path.exists():
        pytest.skip(f"The data sets are not on this machine: {path} does not exist.")
    spec = importlib.util.spec_from_file_location("shared_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
