"""Memory is estimated before a calculation starts, and one that will not fit is refused."""

from dataclasses import replace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import qchem
from qchem import memory
from qchem.calculation import _build
from qchem.integrals.pairs import npair
from qchem.memory import available_bytes, check_memory, estimated_bytes
from qchem.properties import gradient

WATER = (8, 1, 1)


def method(basis="6-31g", xc="pbe0", aux=None, numbers=WATER):
    xc = qchem.Functional.from_name(xc)
    return _build(numbers, basis, xc, aux, (12, 26), False, 0, "double")


def test_stored_integrals_are_counted_as_they_are_made():
    fitted, exact = method(aux="def2-universal-jkfit"), method()
    positions = np.array([[0.0, 0, 0], [0, 1.4, 1.1], [0, -1.4, 1.1]])
    fitted_now, _ = jax.eval_shape(fitted.hamiltonian, positions)
    exact_now, _ = jax.eval_shape(exact.hamiltonian, positions)
    three = estimated_bytes(fitted, (5,))["three-index integrals"]
    assert three == 8 * fitted_now.jk.fitted.size
    four = estimated_bytes(exact, (5,))["four-index integrals"]
    assert four == 8 * exact_now.jk.eri.size == 8 * npair(npair(13))


def test_range_separation_takes_twice_the_integrals():
    once, twice = (
        estimated_bytes(method(xc=xc, aux="def2-universal-jkfit"), (5,))["three-index integrals"]
        for xc in ("b3lyp", "cam-b3lyp")
    )
    assert twice == 2 * once


def test_without_exchange_nothing_large_is_kept_beyond_what_is_allowed():
    large = method("def2-tzvp", xc="pbe", aux="def2-universal-jkfit", numbers=(6,) * 40)
    assert "three-index integrals" not in estimated_bytes(large, (120,))
    small = method(xc="pbe", aux="def2-universal-jkfit")
    assert "three-index integrals" in estimated_bytes(small, (5,))


def test_cores_share_what_is_large_and_each_has_the_rest():
    alone = method(aux="def2-universal-jkfit")
    mesh = Mock(spec=Mesh, size=4)
    one, four = (estimated_bytes(m, (5,)) for m in (alone, replace(alone, mesh=mesh)))
    for name in one:
        shared = name in ("three-index integrals", "values on the grid")
        assert four[name] == one[name] * (1 if shared else 4) or name == "programs and tiles"
    with pytest.raises(qchem.NotEnoughMemoryError, match="--cores 1, or no mesh"):
        check_memory(replace(alone, mesh=mesh), (5,), available=sum(four.values()) - 1)


@pytest.mark.slow
def test_the_estimate_is_what_the_compiler_counts():
    """Benzene in a set that makes the three-index integrals the largest arrays."""
    benzene = (6,) * 6 + (1,) * 6
    ring = np.array([[np.cos(t), np.sin(t), 0] for t in np.arange(6) * np.pi / 3])
    positions = np.concatenate([2.63 * ring, 4.69 * ring])
    large = method("def2-tzvp", aux="def2-universal-jkfit", numbers=benzene)
    factor = np.eye(large.basis.nao)[None, :, :21]
    fitted = large.fitted_types(positions.dtype)
    assert fitted is not None
    compute = jax.jit(lambda r, c, fitted: gradient(large, r, c, fitted=fitted))
    compiled = compute.lower(positions, factor, fitted).compile()
    analysis = compiled.memory_analysis()
    counted = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
    parts = estimated_bytes(large, (21,), forces=True)
    del parts["programs and tiles"]
    assert 0.5 < sum(parts.values()) / counted < 2


def test_too_large_a_calculation_is_refused_with_what_would_fit():
    large = method("def2-tzvp", aux="def2-universal-jkfit", numbers=(6,) * 20)
    need = sum(estimated_bytes(large, (60,)).values())
    check_memory(large, (60,), available=2 * need)
    with pytest.raises(qchem.NotEnoughMemoryError, match="without exact exchange") as caught:
        check_memory(large, (60,), available=need // 2)
    assert caught.value.needed == need
    assert "three-index integrals" in str(caught.value)
    forces = sum(estimated_bytes(large, (60,), forces=True).values())
    assert forces > need
    with pytest.raises(qchem.NotEnoughMemoryError, match="the energy alone would fit"):
        check_memory(large, (60,), forces=True, available=int(1.1 * need))


def test_energy_says_so_before_it_starts(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    mol = qchem.Molecule.from_arrays("H", [[0, 0, 0]], unit="bohr", multiplicity=2)
    with pytest.raises(qchem.NotEnoughMemoryError, match="1 MiB are available"):
        qchem.energy(mol, "sto-3g", "hf")


def test_this_machine_has_memory():
    assert available_bytes() > 1 << 26
