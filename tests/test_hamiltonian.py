"""The energy of given orbitals and its Fock matrix; the gradient of the converged energy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from qchem import energy_fn
from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.grids import Grid
from qchem.scf.hamiltonian import Method, nuclear_repulsion
from qchem.scf.orbitals import reorthonormalize
from qchem.xc.functional import Functional
from tests import oracle

STEP = 3e-3
FOCK_RTOL = 1e-8
GRADIENT_ATOL = 1e-7  # hartree/bohr, against differences of converged energies

NUMBERS = (8, 1, 1)
POSITIONS = jnp.asarray([[0.02, -0.01, 0.22], [1.46, 0.05, -0.90], [-1.41, -0.06, -0.93]])
AUX = Basis.from_shells(
    [[Shell(0, (a,), (1.0,)) for a in (40.0, 9.0, 2.2, 0.5)] + [Shell(1, (1.4,), (1.0,))]]
    + [[Shell(0, (a,), (1.0,)) for a in (1.5, 0.4)]] * 2
)
# One method of each kind: integrals stored, made again, fitted; AO values stored or not.
KINDS = {"exact": {}, "direct": {"stored_bytes": 0}, "df": {"aux": AUX}}


def build(xc, **options):
    return Method.build(
        NUMBERS,
        Basis.from_name(NUMBERS, "sto-3g"),
        Functional.from_name(xc),
        grid=Grid.from_numbers(NUMBERS, sizes=(8, 26)),
        chunk=300,
        **options,
    )


@pytest.fixture(
    scope="module",
    params=[
        ("exact", 1, "0.2*hf + lda_x"),
        ("exact", 2, "b3lyp"),
        ("direct", 2, "0.2*hf + lda_x"),
        ("df", 1, "b3lyp"),
        ("df", 2, "0.2*hf + lda_x"),
        ("direct", 1, "0.3*sr_hf(0.4) + lda_x"),
        ("df", 2, "0.2*sr_hf(0.4) + 0.9*lr_hf(0.4) + lda_x"),
    ],
    ids=lambda kind: f"{kind[0]}, nspin {kind[1]}, {kind[2]}",
)
def compared(request):
    """The Hamiltonian's energies and Fock matrix along a line of orbitals; one program."""
    kind, nspin, xc = request.param
    method = build(xc, **KINDS[kind])
    assert method.two_electron == kind

    @oracle.jit
    def measure(factor, direction):
        hamiltonian, guess = method.hamiltonian(POSITIONS)
        factor = reorthonormalize(factor, hamiltonian.overlap, 2.0 / nspin)
        line = jnp.concatenate([factor[None], oracle.stencil(factor, direction, STEP)])
        parts, focks = jax.lax.map(hamiltonian.energies_and_fock, line)
        return {
            "factor": factor,
            "parts": parts,
            "fock": focks[0],
            "other": method.energy(POSITIONS, factor),
            "guess": guess,
            "overlap": hamiltonian.overlap,
        }

    factor = oracle.random_like(np.zeros((nspin, 7, 5)), nspin)
    if nspin == 2:
        factor = factor.at[1, :, 4].set(0.0)  # one beta electron less
    direction = oracle.random_like(factor, 7)
    return direction, measure(factor, direction)


def test_fock_is_the_derivative_of_the_energy(compared):
    """dE = 2 tr(F_s C_s dC_s^T), summed over spins."""
    direction, of = compared
    assert_allclose(of["fock"], jnp.swapaxes(of["fock"], 1, 2), atol=1e-11)
    measured = oracle.slope(sum(of["parts"].values())[1:], STEP)
    assert abs(measured) > 1
    slope = 2 * jnp.vdot(of["fock"] @ of["factor"], direction)
    assert_allclose(slope, measured, rtol=FOCK_RTOL)


def test_both_ways_to_the_energy_agree(compared):
    """From matrices, as the SCF goes, and from densities, as forces do."""
    _, of = compared
    energy = sum(of["parts"].values())[0]
    assert_allclose(of["other"], energy, rtol=0, atol=1e-11 * abs(energy))


def test_parts_of_the_energy(compared):
    _, of = compared
    parts = {name: float(values[0]) for name, values in of["parts"].items()}
    assert sorted(parts) == ["coulomb", "exchange", "nuclear", "one_electron", "xc"]
    assert min(parts["nuclear"], parts["coulomb"]) > 0
    assert max(parts["one_electron"], parts["exchange"], parts["xc"]) < 0


def test_orbitals_were_orthonormal(compared):
    _, of = compared
    electrons = jnp.einsum("sai,ab,sbi->", of["factor"], of["overlap"], of["factor"])
    assert_allclose(electrons, 10 if len(of["factor"]) == 1 else 9)


def test_guess_is_close(compared):
    guess = compared[1]["guess"]
    assert_allclose(guess, guess.T)
    assert -20.7 < float(guess[0, 0]) < -18  # 1s of oxygen: converged at -20.2 hartree in HF


def test_nuclear_repulsion():
    positions = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [1.5, 0.0, 0.0]])
    expected = 8 * 1 / 2.0 + 8 * 3 / 1.5 + 1 * 3 / 2.5
    charges = jnp.asarray([8.0, 1.0, 3.0])
    assert_allclose(nuclear_repulsion(charges, positions), expected, rtol=1e-15)
    assert nuclear_repulsion(charges[:1], positions[:1]) == 0


def test_integrals_are_stored_while_they_fit():
    assert build("hf").grid is None
    assert build("hf", stored_bytes=8 * 406).two_electron == "exact"  # 28 (28 + 1) / 2 integrals
    assert build("hf", stored_bytes=8 * 406 - 1).two_electron == "direct"
    separated = "0.2*hf + 0.3*lr_hf(0.4)"  # needs the integrals of both interactions
    assert build(separated, stored_bytes=2 * 8 * 406).two_electron == "exact"
    assert build(separated, stored_bytes=2 * 8 * 406 - 1).two_electron == "direct"


CONVERGED = [
    ("pbe", {"two_electron": "exact"}),
    ("b3lyp", {"two_electron": "df", "aux": AUX, "charge": 1, "multiplicity": 2}),
]


@pytest.mark.parametrize("xc, options", CONVERGED, ids=["closed, exact", "open, df"])
def test_gradient_is_the_derivative_of_the_converged_energy(xc, options):
    """Basis, grid, metric and overlap all follow the nuclei."""
    function = energy_fn(NUMBERS, basis="sto-3g", xc=xc, grid=(8, 26), tolerance=1e-9, **options)
    direction = oracle.random_like(POSITIONS, 2)
    points = jnp.concatenate([POSITIONS[None], oracle.stencil(POSITIONS, direction, STEP)])
    energies, gradients = oracle.jit(jax.vmap(jax.value_and_grad(function)))(points)
    measured = oracle.slope(energies[1:], STEP)
    assert abs(measured) > 1e-2
    assert_allclose(jnp.vdot(gradients[0], direction), measured, rtol=0, atol=GRADIENT_ATOL)
    assert_allclose(gradients[0].sum(0), 0, atol=1e-9)
