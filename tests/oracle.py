"""Second, naive implementations, written as the book prints them; and what derivative tests share.

Helgaker, Jørgensen & Olsen, Molecular Electronic-Structure Theory (2000).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, localcontext
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from numpy.polynomial.hermite import hermval

# Compilation, not running, is what tests of programs that run once would spend their time on.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _compiled.append(event)
)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs compiled inside, known when the context ends."""
    start, seen = len(_compiled), []
    yield seen
    seen += [event for event in _compiled[start:] if event.endswith("backend_compile_duration")]


@cache
def boys(m: int, t: float) -> float:
    """F_m(T) by its series exp(-T) sum_k (2T)^k / (2m+1)(2m+3)...(2m+2k+1), in 60 digits."""
    with localcontext(prec=60):
        term = 1 / Decimal(2 * m + 1)
        total, k = term, 0
        while term > total * Decimal("1e-30"):
            k += 1
            term = term * 2 * Decimal(t) / (2 * m + 2 * k + 1)
            total += term
        return float(total * (-Decimal(t)).exp())


@cache
def hermite_coulomb(t: int, u: int, v: int, alpha: float, r, n: int = 0) -> float:
    """R^n_tuv of (9.9.18)-(9.9.20)."""
    x, y, z = r
    if min(t, u, v) < 0:
        return 0.0
    if t > 0:
        lower = hermite_coulomb(t - 2, u, v, alpha, r, n + 1) if t > 1 else 0.0
        return (t - 1) * lower + x * hermite_coulomb(t - 1, u, v, alpha, r, n + 1)
    if u > 0:
        lower = hermite_coulomb(t, u - 2, v, alpha, r, n + 1) if u > 1 else 0.0
        return (u - 1) * lower + y * hermite_coulomb(t, u - 1, v, alpha, r, n + 1)
    if v > 0:
        lower = hermite_coulomb(t, u, v - 2, alpha, r, n + 1) if v > 1 else 0.0
        return (v - 1) * lower + z * hermite_coulomb(t, u, v - 1, alpha, r, n + 1)
    return (-2 * alpha) ** n * boys(n, alpha * float(np.dot(r, r)))


def hermite_gaussian(t: int, p, x) -> np.ndarray:
    """(d/dP)^t exp(-p x^2) with x = r - P, by the polynomials of Hermite."""
    return p ** (t / 2) * hermval(np.sqrt(p) * x, [0.0] * t + [1.0]) * np.exp(-p * x**2)


def density(rows, n: int, function: int, points: np.ndarray) -> np.ndarray:
    """One function of row n of a `Distribution`, at points, as its docstring defines it."""
    from qchem.integrals.coulomb import hermite_powers

    total = np.zeros(len(points))
    for k, s in enumerate(np.asarray(rows.width[n])):
        p, x = 1.0 / s, points - np.asarray(rows.center[n, k])
        for column, powers in enumerate(hermite_powers(rows.order, rows.lowest)):
            value = (p / np.pi) ** 1.5 * float(rows.coefficient[n, function, k, column])
            for axis, t in enumerate(powers):
                value = value * hermite_gaussian(int(t), p, x[:, axis])
            total += value
    return total


def stencil(x, direction, step: float):
    """The four displaced arguments that `slope` wants the values of."""
    return jnp.stack([x + m * step * direction for m in (-2, -1, 1, 2)])


def slope(values, step: float):
    """Derivative along the direction of `stencil`, correct to step^4."""
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def turns_agree(energy, orbitals, rtol: float) -> None:
    """`energy(orbitals, turn)` and its derivatives in the turn, which alone moves, are those of
    the orbitals multiplied by it: the first in reverse mode, the second in forward mode of that."""
    nspin, _, nocc = orbitals.shape
    direction = jnp.triu(random_like(np.zeros((nspin, nocc, nocc)), 11))

    def derivatives(energy):
        function = lambda t: energy(jnp.eye(nocc)[None] + t * direction)  # noqa: E731
        slope = jax.grad(function)
        both = lambda t: jax.jvp(slope, (t,), (jnp.ones_like(t),))  # noqa: E731
        return jax.jit(lambda t: (function(t), *both(t)))(0.3)

    found = derivatives(lambda turn: energy(orbitals, turn))
    expected = derivatives(lambda turn: energy(orbitals @ turn, None))
    assert min(map(abs, expected[1:])) > 1e-3  # otherwise the check could not fail
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol)


def random_like(tree, seed: int = 0):
    """Normal random numbers in the shapes of the floating-point leaves."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=np.shape(x)), x.dtype), tree)


@contextmanager
def programs_kept_in(folder):
    """JAX's cache directory is this one, in which compiled programs are found again."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
