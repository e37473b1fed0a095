"""Derivatives of converged orbitals: implicit differentiation of the stationary energy."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qchem.precision import full_products
from qchem.scf.orbitals import Nocc, orbital_factor, reorthonormalize
from qchem.scf.rotations import Expansion
from qchem.scf.solve import SCFResult, SelfConsistent

TOLERANCE = 1e-10  # of the linear equations, relative
_SMALLEST_GAP = 0.1  # hartree; smaller orbital energy differences precondition like this one


@full_products
def relaxed_factor(
    hamiltonian: SelfConsistent,
    scf: SCFResult,
    nocc: Nocc,
    *,
    max_products: int = 200,
) -> Float[Array, "nspin nao nocc"]:
    """The converged orbitals, with their first derivative in all that the Hamiltonian depends on.

    The gradient g of the energy in rotations kappa of the orbitals is zero whatever the parameters
    are, so that d(kappa) = -H^-1 dg with the orbital Hessian H: the coupled-perturbed Kohn-Sham
    equations (Gerratt & Mills, J. Chem. Phys. 49, 1719 (1968)), solved by preconditioned conjugate
    gradients in forward as in reverse mode. Orbitals follow the overlap as in `reorthonormalize`.
    Right for whatever depends on the density matrix of the result alone. Second derivatives are
    not those of the converged state.

    Args:
        hamiltonian: At the parameters to differentiate in.
        scf: Converged there; a constant. Where it has not converged the result is not a number.
            Where the equations do not, for example because the state is a saddle point or the
            basis is nearly dependent, so is the derivative, or the linear solver ends with an
            error that names its number of steps.
        nocc: Number of occupied orbitals in each spin channel.
        max_products: Of the Hessian with a vector, at most.
    """
    scf = jax.lax.stop_gradient(scf)
    exists = jnp.isfinite(scf.mo_energy[0])
    mo_coeff = reorthonormalize(scf.mo_coeff, hamiltonian.overlap)
    _, fock = hamiltonian.energy_and_fock(orbital_factor(mo_coeff, nocc))
    here = Expansion.at(hamiltonian, mo_coeff, fock, exists, nocc)
    kappa = _solve(constant(here), here.gradient, scf.converged, max_products)
    return orbital_factor(here.rotated(-kappa), nocc)


def constant(tree: PyTree) -> PyTree:
    """The same for differentiation a constant; what is not an array remains."""
    return eqx.combine(jax.lax.stop_gradient(eqx.filter(tree, eqx.is_array)), tree)


def _solve(here: Expansion, gradient, converged, max_products):
    """H^-1 times a vector."""
    import lineax  # here, as `import qchem` is the faster for it

    like = jax.eval_shape(lambda: gradient)
    # Outside of the allowed rotations the unit matrix, so that the operator is definite.
    smallest = 4 / len(here.nocc) * _SMALLEST_GAP
    weight = jnp.where(here.allowed, jnp.maximum(here.diagonal, smallest), 1)
    tags = (lineax.symmetric_tag, lineax.positive_semidefinite_tag)

    def product(kappa):
        inside = jnp.where(here.allowed, kappa, 0)
        return here.product(inside) + (kappa - inside)

    hessian = lineax.FunctionLinearOperator(product, like, tags)
    inverse = lineax.FunctionLinearOperator(lambda kappa: kappa / weight, like, tags)
    solver = lineax.CG(rtol=TOLERANCE, atol=1e-14, max_steps=max_products)
    solution = lineax.linear_solve(
        hessian, gradient, solver, options={"preconditioner": inverse}, throw=False
    )
    solved = converged & (solution.result == lineax.RESULTS.successful)
    return jnp.where(solved, solution.value, jnp.nan)
