"""Basis: AO order and normalization against PySCF, padding, derivatives of the normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose
from pyscf import gto

from qchem.basis.layout import Basis, ShellBatch
from qchem.basis.library import Shell
from qchem.molecule import SYMBOLS


def pyscf_molecule(basis, numbers, positions, **options):
    """PySCF's molecule with exactly these shells; each atom has a basis of its own."""
    names = [f"{SYMBOLS[z]}{n}" for n, z in enumerate(numbers)]
    shells = {name: [] for name in names}
    for batch in basis.batches:
        for n, atom in enumerate(batch.atom):
            primitives = zip(batch.exponents[n], batch.contraction[n], strict=True)
            table = [[float(a), float(c)] for a, c in primitives if c != 0]
            shells[names[atom]].append([batch.l, *table])
    return gto.M(
        atom=list(zip(names, np.asarray(positions).tolist(), strict=True)),
        basis=shells,
        unit="bohr",
        cart=not basis.spherical,
        spin=None,
        verbose=0,
        **options,
    )


@pytest.mark.parametrize("spherical", [True, False])
def test_ao_order_is_pyscfs(spherical):
    numbers = (8, 1, 17)
    basis = Basis.from_name(numbers, "def2-tzvp", spherical=spherical)
    labels = pyscf_molecule(basis, numbers, np.eye(3) * 3).ao_labels(fmt=None)
    assert basis.nao == len(labels)
    width = {l: len([x for x in labels if x[0] == 0 and x[2] == f"{n}{'spdf'[l]}"])
             for l, n in ((0, 1), (1, 2), (2, 3), (3, 4))}  # fmt: skip
    seen = 0
    for batch in basis.batches:
        for atom, ao in zip(batch.atom.tolist(), batch.ao.tolist(), strict=True):
            for label in labels[ao : ao + width[batch.l]]:
                assert label[0] == atom
                assert label[2][-1] == "spdf"[batch.l]
                seen += 1
    assert seen == basis.nao
    assert [batch.l for batch in basis.batches] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["def2-svp", "cc-pvdz", "6-31g*", "sto-3g", "aug-cc-pvdz"])
def test_library_equals_pyscfs(name):
    numbers, positions = (8, 6, 17, 1), np.eye(4, 3) * 3
    ours = pyscf_molecule(Basis.from_name(numbers, name), numbers, positions)
    atom = [(SYMBOLS[z], xyz) for z, xyz in zip(numbers, positions.tolist(), strict=True)]
    theirs = gto.M(atom=atom, basis=name, unit="bohr", spin=None, verbose=0)
    expected = theirs.intor("int1e_kin")
    # The libraries hold different roundings of the published numbers, Pople's most of all.
    atol = (1e-5 if name == "6-31g*" else 1e-7) * np.abs(expected).max()
    assert_allclose(ours.intor("int1e_kin"), expected, atol=atol)


@pytest.mark.parametrize("l", [0, 1, 3, 6])
def test_contractions_are_normalized(l):
    shell = Shell(l, (0.3, 9.0, 2.0), (0.4, -0.2, 0.7))
    batch = Basis.from_shells([[shell, Shell(l, (1.5,), (3.0,))]]).batches[0]
    assert batch.exponents[0].tolist() == [9.0, 2.0, 0.3]
    assert batch.contraction[1].tolist() == [3.0, 0.0, 0.0]
    coefficients = np.asarray(batch.coefficients("float64"))
    assert (coefficients[1, 1:] == 0).all()
    r, step = np.linspace(0, 30, 30001, retstep=True)
    gaussians = np.exp(-batch.exponents[:, :, None] * r**2)
    radial = r ** (l + 1) * np.einsum("nk,nkr->nr", coefficients, gaussians)
    assert_allclose((radial**2).sum(1) * step, 1, rtol=1e-12)  # smooth and flat at both ends


def test_normalization_has_derivatives():
    shell = Shell(0, (1.1, 0.6, 0.2), (0.3, 0.5, 0.4))
    basis = Basis.from_shells([[shell, Shell(0, (0.4,), (1.0,))]])  # the second is padded

    def coefficients(exponents, contraction):
        batch = basis.batches[0]
        return ShellBatch(0, exponents, contraction, batch.atom, batch.ao).coefficients("float64")

    batch = basis.batches[0]
    check_grads(jax.jit(coefficients), (batch.exponents, batch.contraction), 1, rtol=1e-5)


def test_padding_shells_vanish():
    batch = ShellBatch(
        2, np.ones((1, 3)), np.zeros((1, 3)), np.zeros(1, np.int32), np.zeros(1, np.int32)
    )
    gradient = jax.grad(lambda c: ShellBatch(2, batch.exponents, c, batch.atom, batch.ao)
                        .coefficients("float64").sum())(jnp.zeros((1, 3)))  # fmt: skip
    assert not batch.coefficients("float64").any()
    assert bool(jnp.isfinite(gradient).all())


def test_dtype_follows_the_caller():
    batch = Basis.from_name((8,), "sto-3g").batches[0]
    assert batch.coefficients("float32").dtype == jnp.float32
    assert_allclose(batch.coefficients("float32"), batch.coefficients("float64"), rtol=1e-5)
