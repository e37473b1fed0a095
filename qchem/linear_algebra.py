"""The LAPACK that XLA calls on a CPU: that of SciPy, which JAX looks up by itself."""

import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
from threadpoolctl import ThreadpoolController

_VARIABLE = "OPENBLAS_NUM_THREADS"


@cache
def keep_lapack_on_one_thread() -> None:
    """Let SciPy's OpenBLAS, for the rest of the process, work on the thread that calls it.

    Its own threads spin while they wait for the next of many small matrices, on the cores that
    XLA's loops run on, and several devices must wait for one another to use them. XLA's matrix
    products are not its business, nor is NumPy's OpenBLAS, which is another in the wheels; where
    both packages share one, nothing is done. A choice by the environment variable
    OPENBLAS_NUM_THREADS is respected.
    """
    if _VARIABLE in os.environ:
        return
    import scipy.linalg.cython_lapack  # noqa: F401  # loads it

    for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        folder = Path(library.filepath).parent
        if folder.name == "scipy.libs" or folder.parent.name == "scipy":  # that of its wheels
            library.set_num_threads(1)


@cache
def prepare_lapack() -> None:
    """Look up LAPACK's routines, as JAX does when it lowers a first program that needs them."""
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))
