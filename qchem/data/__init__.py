"""Packaged reference values, and the form in which matrices are stored."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Array, Float


@cache
def read_json(name: str) -> dict[str, Any]:
    """Contents of a packaged JSON file."""
    return json.loads(files(__name__).joinpath(name).read_text(encoding="utf-8"))


@cache
def read_npz(name: str) -> dict[str, np.ndarray]:
    """Arrays of a packaged npz file."""
    with files(__name__).joinpath(name).open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def project(values: Float[Array | np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows 2"]:
    """Products of the last axis with two random vectors, which stand for all of it.

    The weights have magnitudes between 0.5 and 1.5 and random signs: a single wrong element shows
    in its row with at least half of its error, and errors that cancel in one product do not in
    the other. A matrix of 1,275 pairs by 1,275 pairs takes 20 kB in this form.
    """
    uniform = np.random.default_rng(0).random((2, np.shape(values)[-1]))
    weights = np.where(uniform < 0.5, -1.0, 1.0) * (0.5 + 2 * (uniform % 0.5))
    return np.asarray(values) @ weights.T
