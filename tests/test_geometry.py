"""Internal coordinates, connectedness, and the distances they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qchem import BOHR_IN_ANGSTROM
from srdft.diagnostics import diagnose, quantities
from srdft.geometry import (
    bonds,
    distances,
    is_connected,
    matching,
    torsion_angles,
    torsions,
)

NUMBERS = (8, 8, 1, 1)  # hydrogen peroxide


def peroxide(angle):
    """H-O-O-H with right angles between bonds and the given torsion, bohr."""
    first, last = np.radians(0), np.radians(angle)
    return (
        np.array(
            [
                [0.0, 0.0, 0.0],
                [0.0, 0.0, 1.45],
                [0.97 * np.cos(first), 0.97 * np.sin(first), 0.0],
                [0.97 * np.cos(last), 0.97 * np.sin(last), 1.45],
            ]
        )
        / BOHR_IN_ANGSTROM
    )


@pytest.mark.parametrize("angle", [-120.0, 0.0, 60.0, 179.0])
def test_torsion_of_peroxide(angle):
    pairs = bonds(NUMBERS, peroxide(angle))
    assert pairs == [(0, 1), (0, 2), (1, 3)]
    chains = torsions(pairs, 4)
    assert chains == [(2, 0, 1, 3)]
    measured = torsion_angles(peroxide(angle)[None], chains)
    np.testing.assert_allclose(np.abs(measured), abs(angle), atol=1e-9)
    found = quantities(NUMBERS, peroxide(angle)[None], peroxide(angle))
    assert list(found) == ["O1-O2", "O1-H3", "O2-H4", "H3-O1-O2-H4"]
    np.testing.assert_allclose(found["O1-O2"], 1.45 / BOHR_IN_ANGSTROM)


def test_like_atoms_are_matched_by_their_bonds():
    here, order = peroxide(100.0), [1, 0, 2, 3]  # of the other's atoms O2, O1, H3, H4
    there = here[order]
    found = matching(NUMBERS, bonds(NUMBERS, here), bonds(NUMBERS, there))
    assert bonds(NUMBERS, there[found]) == bonds(NUMBERS, here)
    assert [NUMBERS[i] for i in found] == list(NUMBERS) and found != [0, 1, 2, 3]
    broken = here + np.array([[0.0], [0.0], [9.0], [0.0]])
    assert matching(NUMBERS, bonds(NUMBERS, here), bonds(NUMBERS, broken)) is None


def test_opposite_torsions_have_opposite_signs():
    chains = [(2, 0, 1, 3)]
    there = torsion_angles(np.stack([peroxide(60.0), peroxide(-60.0)]), chains)[:, 0]
    np.testing.assert_allclose(there[0], -there[1])


def test_connectedness_follows_chains_of_contacts():
    chain = jnp.arange(6.0)[:, None] * jnp.array([[1.4, 0.0, 0.0]])  # each in contact with the next
    numbers = (1,) * 6
    assert is_connected(numbers, chain, 2.0)
    assert not is_connected(numbers, chain.at[3:].add(2.0), 2.0)  # two molecules of three atoms
    assert not is_connected(numbers, chain, 1.1)
    assert is_connected((1,), jnp.zeros((1, 3)), 2.0)


def test_distances_have_finite_derivatives_where_atoms_coincide():
    positions = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    np.testing.assert_allclose(distances(positions)[0], [0.0, 0.0, 5.0])
    assert jnp.isfinite(jax.grad(lambda x: jnp.sum(distances(x)))(positions)).all()


def test_diagnostics_of_independent_and_of_stuck_chains():
    rng = np.random.default_rng(0)
    size, rhat = diagnose(rng.standard_normal((4, 500)))
    assert 1500 < size < 2600 and abs(rhat - 1) < 0.01
    size, rhat = diagnose(rng.standard_normal((4, 500)) + 5 * np.arange(4)[:, None])
    assert size < 50 and rhat > 2
    assert np.isnan(diagnose(np.zeros((4, 500)))).all()
