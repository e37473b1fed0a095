"""(ab|P) of solid harmonics by constant matrices: the same numbers as from the general kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.integrals import two_electron
from qchem.integrals.pairs import attenuated, auxiliary_distributions
from qchem.integrals.solid import plan_solid, solid_3c, solid_functions, solid_shells
from qchem.integrals.two_electron import auxiliary_columns, coulomb_3c
from tests import oracle
from tests.test_two_electron import NPAIR, POSITIONS, pairs

# Shells of one, two and three primitives, s to g; the last atoms have none.
DEEP = Shell(0, (9.0, 2.0, 0.7), (0.2, 0.5, 0.4))
PLAIN = Shell(4, (0.8,), (1.0,))
AUX = Basis.from_shells(
    [
        [
            DEEP,
            Shell(0, (0.5,), (1.0,)),
            Shell(1, (1.1, 0.3), (0.6, 0.5)),
            Shell(4, (0.8,), (1.0,)),
        ],
        [Shell(0, (0.9,), (1.0,)), Shell(2, (1.3,), (1.0,)), Shell(3, (0.9, 0.4), (0.3, 0.8))],
        *[[] for _ in POSITIONS[2:]],
    ]
)
PLAN = plan_solid(AUX)


def both(positions, inverse_omega2=0.0):
    """From the constant matrices, and from the general kernel in the same order."""
    lists = pairs(positions), auxiliary_distributions(AUX, positions)
    shells = solid_shells(AUX, PLAN, positions)
    lists = [attenuated(x, jnp.asarray(inverse_omega2)) for x in (*lists, shells)]
    columns = auxiliary_columns(lists[1], AUX.nao)[solid_functions(shells)]
    return solid_3c(NPAIR, *lists), coulomb_3c(*lists[:2], NPAIR)[:, columns]


@pytest.mark.parametrize("inverse_omega2", [0.0, 4.0])
@pytest.mark.parametrize("tile", [None, 2000])
def test_values(inverse_omega2, tile, monkeypatch):
    if tile:
        monkeypatch.setattr(two_electron, "_TILE_BYTES", dict.fromkeys(("cpu", "gpu"), tile))
    ours, general = oracle.jit(both)(POSITIONS, inverse_omega2)
    assert ours.shape == (NPAIR, AUX.nao)
    assert_allclose(ours, general, rtol=0, atol=1e-13 * np.abs(general).max())


def test_derivatives():
    """They are those of the general kernel; values in a derivative agree too."""
    direction = oracle.random_like(POSITIONS, 2)

    @oracle.jit
    def slopes(positions):
        (value, _), (slope, general) = jax.jvp(both, (positions,), (direction,))
        ends = [both(positions + t * direction)[0] for t in (-1e-4, 1e-4)]
        return value, slope, general, (ends[1] - ends[0]) / 2e-4

    value, slope, general, measured = slopes(POSITIONS)
    assert_allclose(slope, general, rtol=0, atol=1e-13 * np.abs(general).max())
    assert_allclose(slope, measured, rtol=0, atol=1e-6 * np.abs(general).max())
    assert np.abs(value).max() > 0.1


def test_the_plan_counts_primitives():
    of_s = PLAN[0]
    assert (of_s.depth, len(of_s.order), len(of_s.shell)) == (3, 3, 2 + 3)
    assert of_s.used.all()
    cartesian = Basis.from_shells([[Shell(2, (1.0,), (1.0,))]], spherical=False)
    assert plan_solid(cartesian) == ()
