"""Integrals as functions of a basis and positions: PySCF's values, identities, transformations.

Classes up to (gg|gg) and (gg|i) are compared with stored values by `qchem validate`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf import df

from qchem import integrals
from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from tests import oracle
from tests.test_basis_layout import pyscf_molecule

INTEGRAL_RTOL = 1e-10  # of the largest element
STEP = 3e-3
SLOPE_RTOL = 1e-7  # of the stencil, relative to second derivatives
NUMBERS = (8, 1, 6)
CHARGES = jnp.asarray([8.0, 1.0, 6.0])
POSITIONS = jnp.asarray([[0.1, -0.2, 0.3], [1.4, 0.6, -0.5], [-0.9, 1.1, 1.2]])
ORIGIN = jnp.asarray([0.3, -0.2, 0.1])
OMEGA = 0.4


def shells(*lists):
    return [[Shell(l, a, (0.7, 0.4)[: len(a)]) for l, a in of_atom] for of_atom in lists]


ORBITAL = shells([(0, (2.1, 0.4)), (1, (0.8,))], [(0, (0.6,)), (2, (0.7,))], [(3, (0.9, 0.5))])
AUXILIARY = shells([(0, (1.1,)), (4, (0.9,))], [(1, (0.6,))], [(2, (0.7,)), (3, (1.2,))])
SMALL = shells([(0, (2.1, 0.4)), (1, (0.8,))], [(0, (0.6,))], [(1, (0.9,))])
SMALL_AUXILIARY = shells([(0, (1.1,)), (1, (0.6,))], [(0, (0.8,))], [(1, (1.2,))])


def one_electron(basis, positions, origin=ORIGIN):
    attraction = [
        integrals.nuclear_attraction(basis, positions, CHARGES, omega=omega)
        for omega in (0.0, OMEGA)
    ]
    return {
        "overlap": integrals.overlap(basis, positions),
        "kinetic": integrals.kinetic(basis, positions),
        "dipole": integrals.dipole(basis, positions, origin),
        "second_moment": integrals.second_moment(basis, positions, origin),
        "nuclear_attraction": attraction[0],
        "nuclear_attraction_erf": attraction[1],
    }


def assert_equal(values, expected):
    assert values.keys() == expected.keys()
    for name, value in values.items():
        atol = INTEGRAL_RTOL * np.abs(expected[name]).max()
        assert_allclose(value, expected[name], rtol=0, atol=atol, err_msg=name)


SPHERICAL = pytest.param(True, id="spherical")
# Compilation alone; angular parts enter two-electron integrals as they do the others.
CARTESIAN = pytest.param(False, id="cartesian", marks=pytest.mark.slow)


@pytest.fixture
def bases(request):
    both = [Basis.from_shells(x, spherical=request.param) for x in (ORBITAL, AUXILIARY)]
    return *both, *(pyscf_molecule(x, NUMBERS, POSITIONS) for x in both)


@pytest.mark.parametrize("bases", [True, False], ids=["spherical", "cartesian"], indirect=True)
def test_one_electron_integrals_equal_pyscfs(bases):
    basis, _, mol, _ = bases
    values = oracle.jit(lambda r: one_electron(basis, r))(POSITIONS)
    attenuated = np.zeros((mol.nao, mol.nao))
    for charge, position in zip(CHARGES.tolist(), POSITIONS.tolist(), strict=True):
        with mol.with_rinv_origin(position), mol.with_rinv_zeta(OMEGA**2):
            attenuated -= charge * mol.intor("int1e_rinv")
    expected = {
        "overlap": mol.intor("int1e_ovlp"),
        "kinetic": mol.intor("int1e_kin"),
        "nuclear_attraction": mol.intor("int1e_nuc"),
        "nuclear_attraction_erf": attenuated,
    }
    with mol.with_common_origin(ORIGIN.tolist()):
        expected["dipole"] = mol.intor("int1e_r")
        expected["second_moment"] = mol.intor("int1e_rr").reshape(3, 3, mol.nao, mol.nao)
    assert_equal(values, expected)


@pytest.mark.parametrize("bases", [SPHERICAL, CARTESIAN], indirect=True)
def test_fitting_integrals_equal_pyscfs(bases):
    basis, aux, mol, auxmol = bases
    values = oracle.jit(
        lambda r: {"2c": integrals.eri_2c(aux, r), "3c": integrals.eri_3c(basis, aux, r)}
    )(POSITIONS)
    three = df.incore.aux_e2(mol, auxmol, aosym="s2ij")
    assert_equal(values, {"2c": auxmol.intor("int2c2e"), "3c": three})


@pytest.mark.parametrize("bases", [SPHERICAL, CARTESIAN], indirect=True)
def test_exact_integrals_equal_pyscfs(bases):
    basis, _, mol, _ = bases
    eri = oracle.jit(lambda r: integrals.eri(basis, r))(POSITIONS)
    assert_equal({"4c": eri}, {"4c": mol.intor("int2e", aosym="s8")})


def test_attenuated_integrals_equal_pyscfs():
    basis, aux = (Basis.from_shells(x) for x in (SMALL, SMALL_AUXILIARY))
    mol, auxmol = (pyscf_molecule(x, NUMBERS, POSITIONS) for x in (basis, aux))
    values = oracle.jit(
        lambda r: {
            "2c": integrals.eri_2c(aux, r, omega=OMEGA),
            "3c": integrals.eri_3c(basis, aux, r, omega=OMEGA),
            "4c": integrals.eri(basis, r, omega=OMEGA),
        }
    )(POSITIONS)
    with mol.with_range_coulomb(OMEGA), auxmol.with_range_coulomb(OMEGA):
        expected = {
            "2c": auxmol.intor("int2c2e"),
            "3c": df.incore.aux_e2(mol, auxmol, aosym="s2ij"),
            "4c": mol.intor("int2e", aosym="s8"),
        }
    assert_equal(values, expected)


def test_negative_attenuation_is_refused():
    with pytest.raises(ValueError, match="omega must be positive"):
        integrals.eri_2c(Basis.from_shells(SMALL), POSITIONS, omega=-0.4)


def test_identities():
    """Symmetry, normalization, translation, and the shift of moments with their origin."""
    basis = Basis.from_shells(SMALL)
    shift = jnp.asarray([0.7, -0.3, 1.9])
    compute = oracle.jit(lambda r, origin: one_electron(basis, r, origin))
    values, moved = compute(POSITIONS, jnp.zeros(3)), compute(POSITIONS + shift[None], shift)
    for name, value in values.items():
        assert_allclose(value, jnp.swapaxes(value, -1, -2), rtol=0, atol=1e-14)
        assert_allclose(moved[name], value, rtol=0, atol=1e-12)
    s, r, q = values["overlap"], values["dipole"], values["second_moment"]
    assert_allclose(jnp.diag(s), 1, rtol=1e-13)
    about = compute(POSITIONS, shift)
    s, r, q = (np.asarray(x) for x in (s, r, q))
    a = np.asarray(shift)[:, None, None]
    assert_allclose(about["dipole"], r - a * s, atol=1e-12)
    expected = q - a[:, None] * r[None] - a[None] * r[:, None] + a[:, None] * a[None] * s
    assert_allclose(about["second_moment"], expected, atol=1e-12)
    assert np.linalg.eigvalsh(values["kinetic"])[0] > 0
    assert np.diag(values["nuclear_attraction"]).max() < 0


def test_transformations():
    """vmap, grad, and jacfwd over grad, against displaced positions; two centres may coincide."""
    basis = Basis.from_shells(shells([(0, (2.1, 0.4)), (1, (0.8,))], [(0, (0.6,))]))
    aux = Basis.from_shells(shells([(0, (1.1,))], [(1, (1.2,))]))
    apart = POSITIONS[:2]

    def everything(positions):
        return {
            "overlap": integrals.overlap(basis, positions),
            "kinetic": integrals.kinetic(basis, positions),
            "attraction": integrals.nuclear_attraction(basis, positions, CHARGES[:2]),
            "2c": integrals.eri_2c(aux, positions),
            "3c": integrals.eri_3c(basis, aux, positions),
        }

    weights = oracle.random_like(jax.eval_shape(everything, apart))
    direction = oracle.random_like(apart, 1)

    def weighted(positions):
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, weights, everything(positions))))

    @oracle.jit
    def compute(positions):
        displaced = jax.vmap(lambda r: oracle.stencil(r, direction, STEP))(positions)
        points = jnp.concatenate([positions[:, None], displaced], axis=1)
        values = jax.lax.map(jax.vmap(jax.value_and_grad(weighted)), points)
        return values, jax.vmap(jax.jacfwd(jax.grad(weighted)))(positions)

    (values, slopes), hessians = compute(jnp.stack([apart, apart.at[1].set(apart[0])]))
    for value, slope, hessian in zip(values, slopes, hessians, strict=True):
        assert_allclose(hessian, jnp.transpose(hessian, (2, 3, 0, 1)), atol=1e-10)
        for measured, derivative in ((value, slope[0]), (slope, hessian)):
            expected = jnp.tensordot(derivative, direction, 2)
            assert np.abs(expected).max() > 0.1
            difference = oracle.slope(measured[1:], STEP)
            assert_allclose(expected, difference, atol=SLOPE_RTOL * np.abs(hessian).max())


def test_exponents_and_coefficients_are_differentiable():
    """The overlap of two normalized s functions: (2 sqrt(ab) / (a + b))^(3/2) exp(-ab/p R^2)."""
    r = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    basis = Basis.from_shells([[Shell(0, (0.5,), (1.0,))], [Shell(0, (0.9,), (1.0,))]])
    batch = basis.batches[0]

    def element(exponents, contraction):
        fields = lambda b: (b.batches[0].exponents, b.batches[0].contraction)  # noqa: E731
        changed = eqx.tree_at(fields, basis, (exponents, contraction))
        return integrals.overlap(changed, r)[0, 1]

    def closed(exponents):
        a, b = exponents[:, 0]
        return (2 * jnp.sqrt(a * b) / (a + b)) ** 1.5 * jnp.exp(-a * b / (a + b))

    exponents, contraction = jnp.asarray(batch.exponents), jnp.asarray(batch.contraction)
    slopes = oracle.jit(jax.grad(element, argnums=(0, 1)))(exponents, contraction)
    assert_allclose(slopes[0], jax.grad(closed)(exponents), rtol=1e-10)
    assert_allclose(slopes[1], 0, atol=1e-14)  # normalized whatever its only coefficient


def test_new_positions_need_no_new_program():
    basis = Basis.from_shells(SMALL)
    first, moved = integrals.overlap(basis, POSITIONS), POSITIONS * 1.1
    with oracle.compilations() as compiled:
        second = integrals.overlap(basis, moved)
    assert compiled == []
    assert np.abs(first - second).max() > 1e-2


def test_single_precision():
    basis, positions = Basis.from_shells(SMALL), POSITIONS.astype(jnp.float32)
    compute = oracle.jit(
        lambda r: {"overlap": integrals.overlap(basis, r), "2c": integrals.eri_2c(basis, r)}
    )
    for name, value in compute(positions).items():
        assert value.dtype == jnp.float32
        expected = compute(POSITIONS)[name]
        assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max())


def test_a_zero_coefficient_is_no_end():
    """A primitive without weight in the middle of a contraction hides none that follow."""
    holed, plain = (
        Basis.from_shells([[Shell(0, a, c)]])
        for a, c in (((3.0, 1.0, 0.4), (0.5, 0.0, 0.6)), ((3.0, 0.4), (0.5, 0.6)))
    )
    values = [integrals.kinetic(basis, POSITIONS[:1]) for basis in (holed, plain)]
    assert_allclose(*values, rtol=1e-13)
