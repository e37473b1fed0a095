"""Charge distributions: every pair once, and the densities they stand for, at points in space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks.counting import operations
from qchem.basis.evaluate import evaluate_ao
from qchem.basis.layout import Basis
from qchem.basis.library import Shell
from qchem.basis.spherical import ncomponent
from qchem.integrals.moments import packed_moment
from qchem.integrals.pairs import (
    auxiliary_distributions,
    charge_distribution,
    coulomb_norm,
    hermite_sign,
    npair,
    pair_distributions,
    pair_expansions,
    plan_pairs,
)
from qchem.integrals.two_electron import coulomb_4c
from tests import oracle

POSITIONS = jnp.asarray([[0.1, -0.2, 0.3], [0.9, 0.5, -0.4]])
# A general contraction (one set of exponents, two columns), and shells of other depths.
GENERAL = [Shell(0, (6.0, 1.2, 0.3), (0.3, 0.6, 0.2)), Shell(0, (6.0, 1.2, 0.3), (-0.1, -0.4, 1.0))]
SHELLS = [
    [*GENERAL, Shell(1, (1.5, 0.4), (0.5, 0.6)), Shell(2, (0.8,), (1.0,))],
    [Shell(0, (0.7,), (1.0,)), Shell(1, (0.9,), (1.0,))],
]
POINTS = np.random.default_rng(0).normal(size=(7, 3))
RTOL = 1e-12  # of the largest value


def basis(spherical=True):
    return Basis.from_shells(SHELLS, spherical=spherical)


@pytest.mark.parametrize("options", [{"merge": True}, {"merge": False}, {"fitted": True}])
@pytest.mark.parametrize("spherical", [True, False])
def test_every_pair_once(spherical, options):
    """Each AO pair belongs to one shell pair, whose rows hold each primitive pair once."""
    of_basis = basis(spherical)
    targets = np.zeros(npair(of_basis.nao), int)
    for rows in plan_pairs(of_basis, **options):
        if "fitted" in options:
            assert rows.used.shape[1] == 1 and rows.used.all()
            assert rows.order > 0 or rows.la + rows.lb == 0
        assert rows.la >= rows.lb
        assert rows.order >= rows.la + rows.lb
        assert rows.index.shape[1] == ncomponent(rows.la, spherical) * ncomponent(
            rows.lb, spherical
        )
        batches = [next(b for b in of_basis.batches if b.l == l) for l in (rows.la, rows.lb)]
        places = [of_basis.batches.index(batch) for batch in batches]
        before = [of_basis.batches[:place] for place in places]
        shells = np.array([sum(b.atom.size for b in x) for x in before])
        primitives = np.array([sum(b.exponents.size for b in x) for x in before])
        of_batches = rows.shell - shells[:, None]
        for pair in {tuple(pair) for pair in of_batches.T.tolist()}:
            mine = (of_batches == np.array(pair)[:, None]).all(0)
            assert (rows.index[mine] == rows.index[mine][0]).all()
            index = rows.index[mine][0]
            np.add.at(targets, index[index < targets.size], 1)
            start = [p + n * b.exponents.shape[1] for p, n, b in zip(primitives, pair, batches)]
            held = (rows.primitive[:, mine][:, rows.used[mine]].T - start).tolist()
            depth = [np.count_nonzero(b.contraction[n]) for b, n in zip(batches, pair)]
            assert sorted(held) == np.indices(depth).reshape(2, -1).T.tolist()
    assert (targets == 1).all()


@pytest.fixture(scope="module", params=[True, False], ids=["spherical", "cartesian"])
def computed(request):
    """Distributions of AO pairs (merged and not) and of auxiliary shells."""
    of_basis = basis(request.param)
    plans = [plan_pairs(of_basis, merge) for merge in (True, False)]
    make = oracle.jit(
        lambda r: (
            [pair_distributions(of_basis, p, r) for p in plans],
            auxiliary_distributions(of_basis, r),
            evaluate_ao(of_basis, r, jnp.asarray(POINTS))[0],
        )
    )
    return of_basis, plans, *make(POSITIONS)


def densities(lists, ntarget, points):
    """The sum of all rows' functions for each target, at points."""
    total = np.zeros((ntarget, len(points)))
    for rows in lists:
        for n, index in enumerate(np.asarray(rows.index)):
            for function, target in enumerate(index):
                density = oracle.density(rows, n, function, points)
                if target < ntarget:
                    total[target] += density
                else:  # the other half of a shell's product with itself, or padding
                    assert target == ntarget
    return total


def test_pairs_are_products_of_aos(computed):
    of_basis, _, (merged, unmerged), _, ao = computed
    ao = np.asarray(ao)
    i, j = np.tril_indices(of_basis.nao)
    expected = (ao[:, i] * ao[:, j]).T
    for lists in (merged, unmerged):
        values = densities(lists, npair(of_basis.nao), POINTS)
        assert_allclose(values, expected, atol=RTOL * np.abs(expected).max())
    assert len(merged) < len(unmerged)


def test_auxiliary_shells_are_aos(computed):
    of_basis, _, _, aux, ao = computed
    expected = np.asarray(ao).T
    values = densities(aux, of_basis.nao, POINTS)
    assert_allclose(values, expected, atol=RTOL * np.abs(expected).max())


def test_merged_lists_give_the_same_integrals():
    of_basis = Basis.from_shells([SHELLS[0][1:3], SHELLS[1]])  # s and p: orders 0, 1 and 2
    size = npair(of_basis.nao)

    def integrals(positions, merge):
        pairs = pair_distributions(of_basis, plan_pairs(of_basis, merge), positions)
        moments = [packed_moment(pairs, size, p, jnp.zeros(3)) for p in ((0, 0, 0), (1, 0, 1))]
        return len(pairs), jnp.stack(moments), coulomb_4c(pairs, size)

    both = oracle.jit(lambda r: [integrals(r, merge) for merge in (True, False)])(POSITIONS)
    assert [length for length, *_ in both] == [2, 3]
    for one, other in zip(both[0][1:], both[1][1:], strict=True):
        assert_allclose(one, other, atol=RTOL * np.abs(other).max())


def test_density_fitting_has_negligible_pairs_stand_together(monkeypatch):
    """Rows follow their exponents where the atoms are; moments and gradients are the same."""
    of_basis, apart = basis(), 6.0 * POSITIONS
    plan, size = plan_pairs(of_basis, fitted=True), npair(of_basis.nao)

    def compute(positions):
        def moment(positions):
            pairs = pair_distributions(of_basis, plan, positions)
            return packed_moment(pairs, size, (1, 0, 1), jnp.zeros(3)), pairs

        square = lambda r: jnp.sum(moment(r)[0] ** 2)  # noqa: E731
        return *moment(positions), jax.grad(square)(positions)

    def changes(pairs):
        """How often a row that counts stands beside one that does not."""
        counts = [coulomb_norm(rows) > 1e-10 for rows in pairs]
        assert 1 < sum(np.sum(x) for x in counts) < sum(x.size for x in counts)
        return sum(np.sum(x[1:] != x[:-1]) for x in counts)

    moments, pairs, gradient = oracle.jit(compute)(apart)
    monkeypatch.setattr("qchem.integrals.pairs.platform", lambda: "gpu")  # leaves nothing out
    as_planned = oracle.jit(lambda positions: compute(positions))(apart)
    assert changes(pairs) < changes(as_planned[1])
    for one, other in zip((moments, gradient), as_planned[::2], strict=True):
        assert np.abs(other).max() > 1e-3
        assert_allclose(one, other, rtol=0, atol=RTOL * np.abs(other).max())


def test_tables_of_their_own_give_the_same_lists(monkeypatch):
    """One for each l of the first function, as of many pairs; derivatives too."""
    of_basis = basis()
    plan = plan_pairs(of_basis)

    def everything(largest):
        monkeypatch.setattr("qchem.integrals.pairs._AXIS_TABLE", largest)

        def arrays(positions):
            lists, kinetic = pair_expansions(of_basis, plan, positions)
            return [(rows.center, rows.coefficient) for rows in lists], kinetic

        squares = lambda r: sum(jnp.sum(x**2) for x in jax.tree.leaves(arrays(r)))  # noqa: E731
        made = oracle.jit(lambda r: (arrays(r), jax.grad(squares)(r)))
        return made(POSITIONS), operations(arrays, POSITIONS).total

    (together, more), (apart, less) = (everything(n) for n in (1 << 23, 0))
    assert less < more
    for one, other in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        assert_allclose(one, other, rtol=0, atol=RTOL * np.abs(other).max())


def test_padding_carries_no_charge(computed):
    _, plans, (_, unmerged), _, _ = computed
    unused = 0
    for rows in unmerged:  # one list per order, its classes in order of the plan
        parts = [part for part in plans[1] if part.order == rows.order]
        used = np.concatenate([np.pad(p.used, ((0, 0), (0, rows.width.shape[1] - p.used.shape[1])))
                               for p in parts])  # fmt: skip
        coefficient = np.moveaxis(np.asarray(rows.coefficient), 2, 1)
        assert (coefficient[~used] == 0).all()
        assert (np.abs(coefficient[used]).max(axis=(1, 2)) > 0).all()
        unused += np.count_nonzero(~used)
    assert unused > 0


def test_solid_harmonics_need_their_top_degree_alone(monkeypatch):
    """In lists that are not merged, as of a large auxiliary basis."""
    monkeypatch.setattr("qchem.integrals.pairs._MERGED_NAUX", 0)
    make = lambda r: (auxiliary_distributions(basis(), r),  # noqa: E731
                      evaluate_ao(basis(), r, jnp.asarray(POINTS))[0])  # fmt: skip
    aux, ao = oracle.jit(make)(POSITIONS)
    assert [(rows.order, rows.lowest) for rows in aux] == [(0, 0), (1, 1), (2, 2)]
    assert_allclose(densities(aux, basis().nao, POINTS), np.asarray(ao).T, atol=1e-12)


def test_charges():
    charges, widths = jnp.asarray([[2.0, -1.0]]), jnp.asarray([[0.5, 2.0]])
    rows = charge_distribution(charges, widths, POSITIONS[:1])
    r2 = ((POINTS - np.asarray(POSITIONS[0])) ** 2).sum(1)
    gaussians = [(p / np.pi) ** 1.5 * np.exp(-p * r2) for p in (2.0, 0.5)]
    assert_allclose(oracle.density(rows, 0, 0, POINTS), 2 * gaussians[0] - gaussians[1])


def test_signs():
    assert hermite_sign(2, 0).tolist() == [1, -1, -1, -1, 1, 1, 1, 1, 1, 1]
    assert hermite_sign(2, 2).tolist() == [1] * 6
