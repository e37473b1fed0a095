"""Markov kernels of one chain, from BlackJAX, with one meaning of the step size.

`step_size` is epsilon in R - epsilon beta dE/dR + sqrt(2 epsilon) noise, bohr², whatever the
kernel: the time step of a Hamiltonian trajectory and the width of a random walk are
sqrt(2 epsilon).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc import hmc, nuts, proposal
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from qchem import InputError

LogDensity = Callable[[Array], Array]


class Point(NamedTuple):
    """A geometry with what a kernel caches about it; BlackJAX's states have the same fields."""

    position: Float[Array, "natom 3"]
    logdensity: Float[Array, ""]
    logdensity_grad: Float[Array, "natom 3"]


class Move(NamedTuple):
    """What a kernel did.

    Attributes:
        point: Where the chain is now.
        acceptance: Probability with which the proposal was accepted.
        proposed: What was proposed; of a kernel with many proposals, `point`.
        impossible: The proposal had no probability at all.
    """

    point: Point
    acceptance: Float[Array, ""]
    proposed: Point
    impossible: Bool[Array, ""]


class AbstractKernel(eqx.Module):
    """One transition of a chain.

    Attributes:
        target_acceptance: What the step size is adapted to; None if it must be given.
        needs_gradient: Whether log-densities must come with gradients.
        evaluates_once: Whether a step of size zero evaluates the log-density where the chain is,
            and has the result in `Move.proposed`.
    """

    target_acceptance: eqx.AbstractVar[float | None]
    needs_gradient: eqx.AbstractClassVar[bool]
    evaluates_once: eqx.AbstractClassVar[bool]

    @abstractmethod
    def step(
        self,
        point: Point,
        log_density: LogDensity,
        step_size: Float[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Move:
        """Moves the chain, leaving exp(log_density) invariant (where the kernel is exact)."""


class Hamiltonian(AbstractKernel):
    """Hybrid Monte Carlo: Duane et al., Phys. Lett. B 195, 216 (1987).

    With a single leapfrog step it is the Metropolis-adjusted Langevin algorithm (MALA): the same
    proposal and the same acceptance (Neal, in Handbook of Markov Chain Monte Carlo (2011), 5.5.2).
    Any function of the position may stand in for the gradient: leapfrog steps remain reversible
    and conserve volume, so that the distribution stays exact.
    """

    target_acceptance: float | None = eqx.field(static=True)
    leapfrogs: int = eqx.field(static=True)
    needs_gradient: ClassVar[bool] = True
    evaluates_once: ClassVar[bool] = True

    def step(self, point, log_density, step_size, *, key):
        kernel = hmc.build_kernel()
        mass = jnp.ones(point.position.size, point.position.dtype)
        leapfrogs = self.leapfrogs
        if leapfrogs > 1:  # of size zero a single one says all that there is to know
            leapfrogs = jnp.where(step_size > 0, leapfrogs, 1)
        new, info = kernel(
            key,
            hmc.HMCState(*point),
            log_density,
            jnp.sqrt(2 * step_size),
            mass,
            leapfrogs,
        )
        end = info.proposal
        proposed = Point(end.position, end.logdensity, end.logdensity_grad)
        return Move(Point(*new), info.acceptance_rate, proposed, end.logdensity == -jnp.inf)


class NoUTurn(AbstractKernel):
    """No-U-turn sampler: Hoffman & Gelman, J. Mach. Learn. Res. 15, 1593 (2014).

    Its trajectories are made of many proposals; `impossible` says that one of them diverged.
    """

    target_acceptance: float | None = eqx.field(static=True)
    doublings: int = eqx.field(static=True)
    needs_gradient: ClassVar[bool] = True
    evaluates_once: ClassVar[bool] = False

    def step(self, point, log_density, step_size, *, key):
        mass = jnp.ones(point.position.size, point.position.dtype)
        state, time_step = hmc.HMCState(*point), jnp.sqrt(2 * step_size)
        if mass.dtype != jnp.zeros(()).dtype:
            raise InputError(
                "BlackJAX's NUTS works in float64 where 64-bit numbers are enabled, but the "
                f"positions are {mass.dtype}; use float64 positions, or kernel = 'hmc'."
            )
        new, info = nuts.build_kernel()(key, state, log_density, time_step, mass, self.doublings)
        return Move(Point(*new), info.acceptance_rate, Point(*new), info.is_divergent)


class RandomWalk(AbstractKernel):
    """Metropolis et al., J. Chem. Phys. 21, 1087 (1953), with Gaussian steps. No forces needed."""

    target_acceptance: float | None = eqx.field(static=True, default=0.234)
    needs_gradient: ClassVar[bool] = False
    evaluates_once: ClassVar[bool] = True

    def step(self, point, log_density, step_size, *, key):
        key_move, key_accept = jax.random.split(key)
        noise = jax.random.normal(key_move, point.position.shape, point.position.dtype)
        position = point.position + jnp.sqrt(2 * step_size) * noise
        new = Point(position, log_density(position), point.logdensity_grad)
        log_ratio = proposal.safe_energy_diff(-point.logdensity, -new.logdensity)
        moved, (_, acceptance, _) = proposal.static_binomial_sampling(
            key_accept, log_ratio, point, new
        )
        return Move(moved, acceptance, new, new.logdensity == -jnp.inf)


class Unadjusted(AbstractKernel):
    """Overdamped Langevin dynamics without an accept step (ULA): biased, to first order in epsilon.

    Only proposals without any probability are rejected.
    """

    target_acceptance: float | None = eqx.field(static=True, default=None)
    needs_gradient: ClassVar[bool] = True
    evaluates_once: ClassVar[bool] = True

    def step(self, point, log_density, step_size, *, key):
        noise = jax.random.normal(key, point.position.shape, point.position.dtype)
        drift = step_size * point.logdensity_grad
        position = point.position + drift + jnp.sqrt(2 * step_size) * noise
        new = Point(position, *jax.value_and_grad(log_density)(position))
        impossible = new.logdensity == -jnp.inf
        kept = jax.tree.map(lambda old, new: jnp.where(impossible, old, new), point, new)
        accepted = jnp.where(impossible, 0, 1).astype(step_size.dtype)
        return Move(kept, accepted, new, impossible)


KERNELS = ("mala", "hmc", "nuts", "random_walk", "ula")


def kernel_from_name(name: str, *, leapfrogs: int = 10, doublings: int = 6) -> AbstractKernel:
    """The kernel of this name.

    Args:
        name: One of `KERNELS`.
        leapfrogs: Steps of an "hmc" trajectory.
        doublings: A "nuts" trajectory has at most 2**doublings - 1 steps.

    Raises:
        InputError: There is no such kernel.
    """
    # Optimal in the limit of many independent degrees of freedom: Roberts & Rosenthal, Stat. Sci.
    # 16, 351 (2001) for MALA and the random walk; Beskos et al., Bernoulli 19, 1501 (2013) for HMC.
    kernels = {
        "mala": lambda: Hamiltonian(0.574, 1),
        "hmc": lambda: Hamiltonian(0.651, leapfrogs),
        "nuts": lambda: NoUTurn(0.8, doublings),
        "random_walk": RandomWalk,
        "ula": Unadjusted,
    }
    if name not in kernels:
        raise InputError(f"unknown kernel {name!r}; there are {', '.join(KERNELS)}.")
    return kernels[name]()
