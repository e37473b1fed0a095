"""No float64 in single precision; the mixed mode against float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import qchem
from qchem.errors import InputError
from qchem.precision import check_mode, in_dtype
from qchem.xc.functional import Functional
from tests import jaxprs

NUMBERS = (1, 1)
POSITIONS = np.array([[0.0, 0.0, 0.2], [0.3, 0.1, -1.2]])
WATER = [[0.0, 0.0, 0.22], [0.0, 1.43, -0.89], [0.0, -1.43, -0.89]]  # bohr
MOLECULE = qchem.Molecule.from_arrays(NUMBERS, POSITIONS, unit="bohr")
SINGLE_ATOL = 1e-4  # hartree
MIXED_ATOL = 1e-5  # hartree
BASIS = "6-31g**"  # s and p
WHOLE = "converged energy and gradient"  # has all the others in it
SLOW = [(xc, kind) for xc in ("hf", "pbe") for kind in ("exact", "df")]
CASES = [
    ("b3lyp", "exact"),
    ("b3lyp", "df"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
]
GRID = (10, 26)


def programs(function, dtype):
    """The main programs of an energy function, by name, with their arguments."""
    method, positions = function.method, POSITIONS.astype(dtype)
    factor = np.eye(method.basis.nao, sum(NUMBERS) // 2, dtype=dtype)[None]
    return {
        "energy and gradient of orbitals": (jax.value_and_grad(method.energy), positions, factor),
        "hamiltonian": (lambda x: jax.tree.leaves(method.hamiltonian(x)), positions),
        "solve": (lambda x: jax.tree.leaves(function.solve(x)), positions),
        "converged energy and gradient": (jax.value_and_grad(function), positions),
    }


def function_of(xc, two_electron, **options):
    return qchem.energy_fn(NUMBERS, BASIS, xc, two_electron=two_electron, grid=GRID, **options)


@pytest.mark.parametrize("xc, two_electron", CASES)
def test_single_precision_has_no_double_and_rounds_no_product(xc, two_electron):
    program, *arguments = programs(function_of(xc, two_electron), "float32")[WHOLE]
    jaxpr = jax.make_jaxpr(program)(*arguments)
    assert not jaxprs.doubles(jaxpr)
    assert not jaxprs.rounded_products(jaxpr)


def test_what_is_double_is_found():
    inner = jax.jit(lambda x: x * np.ones(2))
    jaxpr = jax.make_jaxpr(lambda x: inner(x.astype("float64")))(jnp.ones(2, "float32"))
    assert any("float64[2]" in found or "f64[2]" in found for found in jaxprs.doubles(jaxpr))
    matrix = jnp.ones((2, 2), "float32")
    assert jaxprs.rounded_products(jax.make_jaxpr(lambda x: x @ x)(matrix))


def test_mixed_products_are_float32_and_in_full():
    function = function_of("b3lyp", "df", precision="mixed")
    program, *arguments = programs(function, "float64")["energy and gradient of orbitals"]
    jaxpr = jax.make_jaxpr(program)(*arguments)
    assert not jaxprs.rounded_products(jaxpr)
    products = [e for e in jaxprs.equations(jaxpr) if e.primitive.name == "dot_general"]
    assert {str(e.invars[0].aval.dtype) for e in products} == {"float32", "float64"}


def converged(basis, dtype="float64", **options):
    short = dataclasses.replace(MOLECULE, positions=POSITIONS.astype(dtype))
    result = qchem.energy(short, basis, "b3lyp", two_electron="df", grid=GRID, **options)
    return result.require_converged()


def test_mixed_energy():
    mixed, double = converged("sto-3g", precision="mixed"), converged("sto-3g")
    assert mixed.settings["precision"] == "mixed"
    assert mixed.scf.fock.dtype == np.float64
    assert 0 < abs(mixed.energy - double.energy) < MIXED_ATOL


@pytest.mark.parametrize(
    "derivative, atol", [(0, 1e-11), pytest.param(1, 1e-7, marks=pytest.mark.slow)]
)
def test_mixed_at_given_orbitals(derivative, atol):
    """Products that the metric is divided out of are not float32: its inverse is large."""
    positions = jnp.asarray(WATER)

    @partial(jax.jit, static_argnums=0)
    def found(precision):
        options = {"two_electron": "df", "precision": precision}
        method = qchem.energy_fn((8, 1, 1), "def2-svp", "hf", **options).method
        of = jax.grad(method.energy) if derivative else method.energy
        return of(positions, jnp.eye(method.basis.nao, 5)[None])

    assert_allclose(found("mixed"), found("double"), rtol=0, atol=atol)


@pytest.mark.slow
def test_forces():
    double = converged(BASIS)
    mixed, single = converged(BASIS, precision="mixed"), converged(BASIS, "float32")
    assert single.scf.energy.dtype == np.float32
    assert 0 < abs(mixed.energy - double.energy) < MIXED_ATOL
    assert 0 < abs(single.energy - double.energy) < SINGLE_ATOL
    assert_allclose(mixed.forces(), double.forces(), rtol=0, atol=1e-4)
    assert_allclose(single.forces(), double.forces(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["svwn", "pbe", "b3lyp", "tpss"])
@pytest.mark.parametrize("nspin", [1, 2])
def test_functionals_are_finite_at_small_densities_in_single_precision(name, nspin):
    functional = in_dtype(Functional.from_name(name), np.float32)
    density = jnp.asarray([0.0, 1e-30, 1e-12, 1e-6], jnp.float32)
    rho = jnp.broadcast_to(density, (nspin, 4))
    sigma = jnp.broadcast_to(density**2, (1 if nspin == 1 else 3, 4))
    value = partial(total, functional)
    gradient = jax.grad(value, argnums=(0, 1, 2))
    hessian = jax.jacfwd(gradient, argnums=(0, 1, 2))
    for found in (value, gradient, hessian):
        for x in jax.tree.leaves(jax.jit(found)(rho, sigma, rho)):
            assert x.dtype == jnp.float32
            assert np.isfinite(x).all()


def total(functional, rho, sigma, tau):
    """Energy of all points, by what the functional takes."""
    sigma = None if functional.ingredients == "lda" else sigma
    tau = tau if functional.ingredients == "mgga" else None
    return jnp.sum(functional.energy_density(rho, sigma, tau))


def test_unknown_modes_are_refused():
    with pytest.raises(InputError, match="'double' and 'mixed'"):
        check_mode("half")
    with pytest.raises(InputError, match="float64 positions"):
        function_of("hf", "df", precision="mixed")(POSITIONS.astype("float32"))
