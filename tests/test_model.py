"""The model: exact symmetry, what it starts from, what it refuses."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from qchem import InputError, density_matrix
from srdft.family import MoleculeFamily, map_geometries
from srdft.model import OperatorMixture
from srdft.network import Constant, Gates, Network
from tests import oracle

SYMMETRY_ATOL = 1e-8  # hartree; the promise
DENSITY_ATOL = 1e-8  # occupations are of the order of 1

POSITIONS = jnp.asarray([[0.0, 0.1, 0.2], [0.1, 1.4, -0.9], [0.0, -1.5, -0.8]])  # O, H, H
NUMBERS = (8, 1, 1)


def family_of(numbers=NUMBERS, **options):
    return MoleculeFamily.build(numbers, "6-31g", "hf", two_electron="exact", **options)


def features_of(kind, families):
    if kind == "gates":
        return Gates.build(families, degree=2)
    if kind == "network":
        return Network.build(families, width=6, layers=2, neven=3, nodd=2, key=jax.random.key(0))
    return Constant()


def random_weights(model, size=0.02):
    weights = size * np.random.default_rng(0).normal(size=model.weights.shape)
    return eqx.tree_at(lambda m: m.weights, model, jnp.asarray(weights))


def orthogonal():
    """A rotation times a reflection."""
    matrix, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    return jnp.asarray(matrix if np.linalg.det(matrix) < 0 else -matrix)


@pytest.fixture(scope="module")
def water():
    return family_of()


@pytest.fixture(scope="module", params=["gates", "network"])
def random_model(request, water):
    """With weights large enough to change the energy by tenths of a hartree."""
    return random_weights(
        OperatorMixture.build([water], features_of(request.param, [water]), steps=2)
    )


TURN, SHIFT, LIKE = orthogonal(), jnp.asarray([0.3, -2.0, 1.0]), [0, 2, 1]


@pytest.fixture(scope="module")
def moved_states(water, random_model):
    """Energies and densities of a molecule at rest, moved and turned, permuted; of two models."""
    points = jnp.stack([POSITIONS, POSITIONS @ TURN.T + SHIFT[None], POSITIONS[jnp.asarray(LIKE)]])
    untrained = OperatorMixture.build([water], Constant(), steps=2)

    def states(model, points):
        def one(r):
            molecule = water.place(r)
            factor = model.orbitals(molecule).factor
            return molecule.hamiltonian.energy(factor), density_matrix(factor)[0]

        return map_geometries(one, points)

    return oracle.jit(lambda x: (states(random_model, x), states(untrained, x)))(points)


@pytest.fixture(scope="module")
def moved(moved_states):
    return [energies for energies, _ in moved_states]


def test_motions_and_permutations_of_like_atoms_do_not_change_the_energy(moved):
    for energies in moved:
        assert_allclose(energies, energies[0], rtol=0, atol=SYMMETRY_ATOL)
    assert abs(moved[0][0] - moved[1][0]) > 1e-2  # the weights did something


def test_the_density_turns_with_the_molecule(water, moved_states):
    """6-31G has s functions, which do not turn, and p functions, which turn as vectors do."""
    blocks = [np.eye(1) if shell.l == 0 else np.asarray(TURN) for shell in water.shells]
    turn = scipy.linalg.block_diag(*blocks)
    atom = np.repeat([s.atom for s in water.shells], [s.size for s in water.shells])
    permuted = np.concatenate([np.flatnonzero(atom == i) for i in LIKE])
    for _, (rest, turned, exchanged) in moved_states:
        assert_allclose(turned, turn @ rest @ turn.T, rtol=0, atol=DENSITY_ATOL)
        assert_allclose(exchanged, rest[np.ix_(permuted, permuted)], rtol=0, atol=DENSITY_ATOL)


@pytest.mark.slow
def test_a_grid_turns_the_energy_no_more_than_a_converged_one():
    """The quadrature's own orientation is left, in a prediction as in an SCF."""
    family = MoleculeFamily.build((8, 1, 1), "6-31g", "pbe", grid=(12, 26))
    model = random_weights(OperatorMixture.build([family], Constant(), steps=1))
    turns = [np.linalg.qr(np.random.default_rng(i).normal(size=(3, 3)))[0] for i in range(4)]
    points = jnp.stack([POSITIONS @ jnp.asarray(turn) for turn in turns])
    predicted = oracle.jit(lambda x: map_geometries(lambda r: family.energy_fn(model, r), x))
    solved = oracle.jit(lambda x: map_geometries(lambda r: family.solve(r).energy, x))
    ours, converged = np.ptp(predicted(points)), np.ptp(solved(points))
    assert 1e-7 < converged and ours < 2 * converged  # four turns are a small sample


def test_the_order_of_the_atoms_does_not_change_the_energy(water, random_model, moved):
    """Another file of the same molecule is another family, which the model knows."""
    order = [1, 0, 2]
    other = family_of(tuple(NUMBERS[i] for i in order))
    energy = oracle.jit(lambda r: other.energy_fn(random_model, r))(POSITIONS[jnp.asarray(order)])
    assert_allclose(energy, moved[0][0], rtol=0, atol=SYMMETRY_ATOL)


@pytest.fixture(scope="module")
def converged(water):
    return oracle.jit(lambda r: water.solve(r))(POSITIONS)


def test_the_untrained_energy_is_sane(converged, moved):
    assert converged.converged
    assert 0 < moved[1][0] - converged.energy < 0.2


H2 = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])


def test_derivatives_are_finite_at_symmetry_and_far_apart():
    """Of energies with degenerate orbitals (an atom far from another) and of zero weights."""
    family = MoleculeFamily.build((1, 1), "6-31g", "hf", two_electron="exact")
    model = OperatorMixture.build([family], features_of("network", [family]), steps=1)

    @oracle.jit
    def gradients(positions):
        return jax.lax.map(
            lambda r: eqx.filter_grad(lambda x: family.energy_fn(*x))((model, r)), positions
        )

    of_model, of_positions = gradients(jnp.stack([H2, 20 * H2]))
    leaves = jax.tree.leaves(eqx.filter(of_model, eqx.is_inexact_array))
    assert all(np.isfinite(leaf).all() for leaf in [*leaves, of_positions])
    assert np.abs(of_model.weights[0]).max() > 1e-3  # zero weights can learn
    assert np.abs(of_positions[0]).max() > 1e-3


def test_features_do_not_move_and_know_the_order_of_a_pair(water):
    turn = orthogonal()
    for kind in ("constant", "gates", "network"):
        features = features_of(kind, [water])
        values = features(water, POSITIONS)
        assert values.shape == (3, 3, features.size)
        assert len(features.odd) == features.size
        assert_allclose(values[..., 0], 1)
        assert_allclose(features(water, POSITIONS @ turn.T), values, atol=1e-12)
        sign = np.where(features.odd, -1.0, 1.0)
        off_diagonal = ~np.eye(3, dtype=bool)
        swapped = (sign[None, None] * np.swapaxes(values, 0, 1))[off_diagonal]
        assert_allclose(values[off_diagonal], swapped, atol=1e-12)
        # An atom far away is no longer felt.
        far = [features(water, POSITIONS.at[2].multiply(z)) for z in (200.0, 300.0)]
        assert_allclose(far[0], far[1], atol=1e-12)
        if kind != "constant":
            assert np.abs(values - far[0])[:2, :2].max() > 1e-3


def test_features_of_shells_are_symmetric(water):
    """Otherwise Fock matrices would not be."""
    for kind in ("gates", "network"):
        model = OperatorMixture.build([water], features_of(kind, [water]))
        features = model.shell_features(water, POSITIONS)
        assert_allclose(features, jnp.swapaxes(features, 0, 1), atol=1e-12)
        odd = np.flatnonzero(model.features.odd)
        assert np.abs(features[..., odd]).max() > 1e-3


def test_size_is_configuration():
    family = family_of((1, 1))
    for width, layers, least, most in ((8, 1, 300, 5_000), (512, 4, 8_000_000, 20_000_000)):
        build = partial(Network.build, [family], width=width, layers=layers)
        network = eqx.filter_eval_shape(build, key=jax.random.key(0))
        size = sum(x.size for x in jax.tree.leaves(network))
        assert least < size < most


def test_one_table_serves_several_families(water):
    hydrogen, hydroxyl = family_of((1, 1)), family_of((8, 1), multiplicity=2)
    model = OperatorMixture.build([water, hydrogen, hydroxyl], steps=1)
    assert model.weights.shape[1] == 2  # spins
    index = model.classes.index(water)
    assert_allclose(index, index.T)
    assert set(hydrogen_index := model.classes.index(hydrogen).ravel()) <= set(index.ravel())
    assert len(set(hydrogen_index)) == 6  # three on one atom, three on two
    assert len(set(model.classes.index(water).ravel())) == 15 + 3 + 10 + 3


def test_families_that_do_not_fit_are_refused(water):
    model = OperatorMixture.build([family_of((1, 1))])
    with pytest.raises(InputError, match="not built for family 'OH2'"):
        model.classes.index(water)
    with pytest.raises(InputError, match="share one basis set"):
        OperatorMixture.build([water, MoleculeFamily.build((1, 1), "def2-svp", "hf")])
    with pytest.raises(InputError, match="kind of functional"):
        OperatorMixture.build([water, MoleculeFamily.build((1, 1), "6-31g", "pbe", grid=0)])
    with pytest.raises(InputError, match="steps = 0"):
        OperatorMixture.build([water], steps=0)
    with pytest.raises(InputError, match="at least one family"):
        OperatorMixture.build([])
