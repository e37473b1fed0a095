"""Boltzmann sampling of a model's energy by persistent parallel chains: init, step, refresh."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import (
    DualAveragingAdaptationState,
    dual_averaging_adaptation,
)
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qchem import HARTREE_IN_KELVIN, InputError
from srdft.geometry import is_connected
from srdft.kernels import AbstractKernel, Move, Point
from srdft.parallel import Workers
from srdft.potential import AbstractPotential


class ChainState(eqx.Module):
    """Where the chains are. Chains of one rung of the temperature ladder follow one another.

    Attributes:
        positions, energy, gradient: Of each chain, energy and gradient under the model of the last
            `init`, `step` or `refresh`.
        step_size: Of each rung, bohr²; frozen once `steps` has reached the warm-up.
        adaptation: Of each rung: dual averaging.
        steps: Transitions so far.
    """

    positions: Float[Array, "nchain natom 3"]
    energy: Float[Array, " nchain"]
    gradient: Float[Array, "nchain natom 3"]
    step_size: Float[Array, " nrung"]
    adaptation: DualAveragingAdaptationState
    steps: Int[Array, ""]


class ChainInfo(eqx.Module):
    """What happened in one transition of every chain, or on average in several.

    Attributes:
        acceptance: Probability of acceptance of each chain's proposal.
        impossible: Proposals whose energy was not finite, or, with NUTS, diverged.
        dissociated: Proposals that the guard refused.
        swaps: Part of the attempted swaps between rungs that was accepted; 0 without a ladder.
    """

    acceptance: Float[Array, " nchain"]
    impossible: Float[Array, " nchain"]
    dissociated: Float[Array, " nchain"]
    swaps: Float[Array, ""]


class Sampler(eqx.Module):
    """Chains that sample exp(-E(R)/kT), at one temperature or on a ladder of temperatures.

    With a ladder (parallel tempering: Geyer, Comput. Sci. Stat. 23, 156 (1991)), every rung has the
    same number of chains, and after each transition chains of neighbouring rungs may swap places.
    Only the first rung is at the temperature that was asked for.

    A translation changes no energy, so the centroid of the nuclei is brought back to the origin
    after each transition (`centred`).

    Attributes:
        potential: What is sampled.
        numbers: Atomic numbers; for the guard.
        kernel: How the chains move.
        temperatures: Of the rungs, kelvin.
        guard: A geometry that contacts shorter than `guard` sums of covalent radii do not join to
            one molecule is given no probability; 0 switches this off.
        warmup: Transitions in which the step size is adapted.
        centred: Whether the centroid is kept at the origin.
        workers: Devices.
    """

    potential: AbstractPotential
    kernel: AbstractKernel
    numbers: tuple[int, ...] = eqx.field(static=True)
    temperatures: tuple[float, ...] = eqx.field(static=True)
    guard: float = eqx.field(static=True, default=2.0)
    warmup: int = eqx.field(static=True, default=100)
    centred: bool = eqx.field(static=True, default=True)
    workers: Workers = Workers()

    def __check_init__(self):
        wrong = [t for t in self.temperatures if not 0 < t < math.inf]
        if wrong or not self.temperatures:
            raise InputError(
                f"temperatures {self.temperatures}: one or more are needed, all above 0 kelvin and "
                "finite."
            )

    @property
    def nrung(self) -> int:
        """Number of temperatures."""
        return len(self.temperatures)

    def init(
        self, model: Any, positions: Float[Array | np.ndarray, "nchain natom 3"], step_size: float
    ) -> ChainState:
        """Chains at given geometries, those of the first rung first; energies still unknown.

        `refresh` fills in the energies.

        Args:
            model: Not used yet; chains belong to one model.
            positions: Of each chain, bohr.
            step_size: To begin with, bohr².

        Raises:
            InputError: A number of chains that rungs or devices cannot share, a geometry that the
                guard refuses, or a step size that is not positive.
        """
        positions = jnp.asarray(positions)
        nchain = positions.shape[0]
        self.workers.check("chains", nchain)
        if nchain % self.nrung:
            raise InputError(
                f"chains = {nchain} cannot be shared equally by {self.nrung} temperatures; "
                f"use a multiple of {self.nrung}."
            )
        if not step_size > 0:
            raise InputError(f"step_size = {step_size}; it must be positive (bohr²).")
        if self.guard:
            apart = [i + 1 for i, x in enumerate(positions) if not self._allowed(x)]
            if apart:
                raise InputError(
                    f"start geometries {apart[:5]} are more than one molecule for the guard "
                    f"against dissociation (guard = {self.guard} sums of covalent radii); "
                    "choose a larger value, or 0 to switch it off."
                )
        dtype = positions.dtype
        first, _, _ = dual_averaging_adaptation(0.5)
        sizes = jnp.full((self.nrung,), step_size, dtype)
        adaptation = jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.asarray(x, dtype), sizes.shape), first(sizes)
        )
        return ChainState(
            positions=self._centre(positions),
            energy=jnp.full((nchain,), jnp.nan, dtype),
            gradient=jnp.zeros_like(positions),
            step_size=sizes,
            adaptation=adaptation,
            steps=jnp.zeros((), jnp.int32),
        )

    def refresh(self, model: Any, state: ChainState) -> ChainState:
        """The same chains with energies and gradients of another model; to be called in `jit`."""
        key = jax.random.key(0)  # nothing moves
        return self._next(model, state, key, jnp.asarray(True))[0]

    def step(
        self, model: Any, state: ChainState, *, key: PRNGKeyArray
    ) -> tuple[ChainState, ChainInfo]:
        """One transition of every chain, then one attempt to swap. To be called in `jit`."""
        return self._next(model, state, key, jnp.asarray(False))

    def sample(
        self,
        model: Any,
        state: ChainState,
        nstep: int,
        *,
        key: PRNGKeyArray,
        refresh: Bool[Array, ""] | bool = False,
    ) -> tuple[ChainState, ChainInfo]:
        """`nstep` transitions; the info is the mean over them. To be called in `jit`.

        Args:
            model: Whose energy is sampled.
            state: Of the chains.
            nstep: Number of transitions.
            key: Of the random numbers.
            refresh: `refresh` the state first; in the same loop, so that what evaluates energies
                is compiled once.
        """
        keys = jax.random.split(key, nstep + 1)
        first = jnp.arange(nstep + 1) == 0

        def one(state, x):
            key, first = x
            idle = first & ~jnp.asarray(refresh)
            # As lambdas: JAX hashes the branches, and what a potential holds cannot be hashed.
            return jax.lax.cond(
                idle,
                lambda state: self._stay(state),
                lambda state: self._next(model, state, key, first),
                state,
            )

        state, info = jax.lax.scan(one, state, (keys, first))
        return state, jax.tree.map(lambda x: jnp.mean(x[1:], axis=0), info)

    def at_temperature(self, values: Array) -> Array:
        """Of one value per chain, those of the first rung: the temperature asked for."""
        return values[: values.shape[0] // self.nrung]

    def _beta(self, dtype):
        return jnp.asarray(HARTREE_IN_KELVIN / np.asarray(self.temperatures), dtype)

    def _allowed(self, positions):
        if not self.guard:
            return jnp.asarray(True)
        return is_connected(self.numbers, positions, self.guard)

    def _centre(self, positions):
        if not self.centred:
            return positions
        return positions - jnp.mean(positions, axis=-2, keepdims=True)

    def _stay(self, state):
        zero = jnp.zeros_like(state.energy)
        return state, ChainInfo(zero, zero, zero, jnp.zeros((), zero.dtype))

    def _next(self, model, state, key, refresh):
        """One transition and an attempt to swap; or, to refresh, new energies and nothing else."""
        nchain, dtype = state.positions.shape[0], state.positions.dtype
        keys = jax.random.split(key, nchain + 1)
        per_rung = nchain // self.nrung
        beta = jnp.repeat(self._beta(dtype), per_rung)
        size = jnp.repeat(state.step_size, per_rung)
        point, acceptance, impossible, dissociated = self.workers.map(
            self._transition,
            (model, refresh),
            jax.random.key_data(keys[:nchain]),
            beta,
            size,
            Point(state.positions, -beta * state.energy, -beta[:, None, None] * state.gradient),
        )
        energy = -point.logdensity / beta
        gradient = -point.logdensity_grad / beta[:, None, None]
        cached = (point.position, energy, gradient)
        renewed = eqx.tree_at(lambda s: (s.positions, s.energy, s.gradient), state, cached)
        moved, swaps = self._swap(
            (self._centre(point.position), *cached[1:]), state.steps, keys[nchain]
        )
        step_size, adaptation = self._adapt(state, acceptance)
        new = ChainState(*moved, step_size, adaptation, state.steps + 1)
        state = jax.tree.map(lambda a, b: jnp.where(refresh, a, b), renewed, new)
        return state, ChainInfo(acceptance, impossible, dissociated, swaps)

    def _transition(self, shared, key, beta, step_size, point):
        model, refresh = shared

        @jax.custom_jvp
        def log_density(positions):
            return self._log_density(positions, beta, self.potential.energy(model, positions))

        @log_density.defjvp
        def with_gradient(primals, tangents):
            (positions,), (tangent,) = primals, tangents
            energy, gradient = self.potential.energy_and_gradient(model, positions)
            value = self._log_density(positions, beta, energy)
            sound = (value > -jnp.inf) & jnp.all(jnp.isfinite(gradient))
            drift = jnp.where(sound, -beta * gradient, jnp.zeros_like(gradient))
            return jnp.where(sound, value, -jnp.inf), jnp.vdot(drift, tangent)

        def move(step_size):
            key_here = jax.random.wrap_key_data(key)
            return self.kernel.step(point, log_density, step_size, key=key_here)

        def evaluate(step_size):
            here = Point(point.position, *jax.value_and_grad(log_density)(point.position))
            one = jnp.ones((), step_size.dtype)
            return Move(here, one, here, here.logdensity == -jnp.inf)

        if self.kernel.evaluates_once:
            done = move(jnp.where(refresh, 0, step_size))
        else:
            done = jax.lax.cond(refresh, evaluate, move, step_size)
        here = Point(point.position, *done.proposed[1:])
        new = jax.tree.map(lambda a, b: jnp.where(refresh, a, b), here, done.point)
        dissociated = ~self._allowed(done.proposed.position)
        counts = (done.impossible & ~dissociated, dissociated)
        return new, done.acceptance, *(x.astype(step_size.dtype) for x in counts)

    def _log_density(self, positions, beta, energy):
        allowed = self._allowed(positions) & jnp.isfinite(energy)
        return jnp.where(allowed, -beta * energy, -jnp.inf)

    def _swap(self, cached, steps, key):
        """Chains of neighbouring rungs change places with the probability of detailed balance.

        Even and odd pairs of rungs take turns.
        """
        nrung, dtype = self.nrung, cached[1].dtype
        if nrung == 1:
            return cached, jnp.zeros((), dtype)
        energy = cached[1].reshape(nrung, -1)
        lower = jnp.arange(nrung - 1)
        beta = self._beta(dtype)
        log_ratio = (beta[:-1] - beta[1:])[:, None] * (energy[:-1] - energy[1:])
        turn = ((lower - steps.astype(lower.dtype)) % 2 == 0)[:, None]
        uniform = jax.random.uniform(key, log_ratio.shape, dtype)
        accepted = turn & (jnp.log(uniform) < log_ratio)
        none = jnp.zeros((1, energy.shape[1]), bool)
        up = jnp.concatenate([accepted, none]).astype(lower.dtype)
        down = jnp.concatenate([none, accepted]).astype(lower.dtype)
        rows = jnp.arange(nrung)[:, None] + up - down
        columns = jnp.broadcast_to(jnp.arange(energy.shape[1])[None], rows.shape)

        def exchange(x):
            return x.reshape(*energy.shape, *x.shape[1:])[rows, columns].reshape(x.shape)

        attempted = jnp.maximum(jnp.sum(turn), 1).astype(dtype) * energy.shape[1]
        return tuple(map(exchange, cached)), jnp.sum(accepted).astype(dtype) / attempted

    def _adapt(self, state, acceptance):
        """Step sizes of the next transition: adapted in the warm-up, then their average, frozen."""
        target = self.kernel.target_acceptance
        if target is None or not self.warmup:
            return state.step_size, state.adaptation
        _, update, final = dual_averaging_adaptation(target)
        mean = jnp.mean(acceptance.reshape(self.nrung, -1), axis=1)
        adapted = jax.vmap(update)(state.adaptation, mean)
        adapting = state.steps < self.warmup
        last = state.steps + 1 >= self.warmup
        size = jnp.where(last, final(adapted), jnp.exp(adapted.log_step_size))
        adaptation = jax.tree.map(
            lambda new, old: jnp.where(adapting, new, old), adapted, state.adaptation
        )
        return jnp.where(adapting, size, state.step_size), adaptation
