"""Which numbers are float32, and products of matrices that are never rounded below their dtype.

Everything has the dtype of the positions, except in the mixed mode: there positions and energies
are float64, but what costs most is float32. See docs/precision.md.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from qchem.errors import InputError

Precision = Literal["double", "mixed"]
# Of the SCF in the mixed mode, whose Fock matrices are good to about 1e-6 hartree.
MIXED_TOLERANCES = {"energy_tolerance": 1e-6, "residual_tolerance": 1e-5}


def check_mode(precision: str, dtype: DTypeLike = np.float64) -> None:
    """Refuse a mode that does not exist, or one that the positions are too short for."""
    if precision not in get_args(Precision):
        raise InputError(
            f"precision = {precision!r}; {' and '.join(map(repr, get_args(Precision)))} are "
            "available, and float32 positions for single precision throughout."
        )
    if precision == "mixed" and np.dtype(dtype) != np.float64:
        raise InputError(
            f"precision = 'mixed' needs float64 positions, these are {np.dtype(dtype)}: leave "
            "precision out for a calculation in single precision throughout."
        )


def in_dtype(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """The same with all real numbers in this dtype; NumPy's on the host, before any tracing."""

    def cast(x):
        array = isinstance(x, np.ndarray | jax.Array)
        if not array or not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == dtype:
            return x
        return x.astype(dtype)

    return jax.tree.map(cast, tree)


def full_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """Within, products of float32 matrices are those of float32.

    A device's default may be less: TF32 on a GPU, bfloat16 on a TPU. What is differentiated states
    it in each product instead, since derivative rules are traced later.
    """

    @wraps(function)
    def call(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return call
