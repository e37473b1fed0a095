"""SciPy's LAPACK stays on the thread that calls it, NumPy's and a user's choice are left alone."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import numpy, scipy.linalg.cython_lapack
from threadpoolctl import ThreadpoolController

def threads():
    found = ThreadpoolController().select(internal_api="openblas").info()
    return {"scipy.libs" in x["filepath"]: x["num_threads"] for x in found}

ThreadpoolController().limit(limits=2)
if threads() != {True: 2, False: 2}:
    print("other libraries")
else:
    import qchem
    qchem.energy_fn((1, 1), basis="sto-3g", xc="hf")
    print(threads()[True], threads()[False])
"""


@pytest.mark.parametrize("chosen, expected", [(None, "1 2"), ("2", "2 2")])
def test_lapack_stays_on_its_thread_unless_the_user_says_otherwise(chosen, expected):
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    env |= {} if chosen is None else {"OPENBLAS_NUM_THREADS": chosen}
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    if printed.strip() == "other libraries":
        pytest.skip("NumPy or SciPy comes with another BLAS than the OpenBLAS of their wheels")
    assert printed.strip() == expected
