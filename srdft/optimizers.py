"""Optimizers of the mean variational energy: first order by Optax, second order by Gauss-Newton."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from srdft.objective import GaussNewton, NormalEquations
from srdft.parallel import Workers

# The ridge begins so many times larger; after a step that held on new geometries it is divided by
# the second number, after one that did not multiplied by the third.
_CAUTION, _TRUST, _DISTRUST = 100.0, 2.0, 10.0


class Judgement(eqx.Module):
    """Means over a batch; hartree.

    Attributes:
        energy: Energy of the predicted orbitals.
        error: Second-order estimate of its distance from the minimum, without labels.
        residual: Largest element of the occupied-virtual block of the Fock matrix.
    """

    energy: Float[Array, ""]
    error: Float[Array, ""]
    residual: Float[Array, ""]


def mean_judgement(judgements: Sequence[Judgement]) -> Judgement:
    """Mean over families."""
    return jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *judgements)


def _over(total, n):
    return jax.tree.map(lambda x: x / n, total)


class AbstractOptimizer(eqx.Module):
    """Lowers the mean energy of batches by changing a model. Called under `jit`."""

    @abstractmethod
    def init(self, model: Any) -> Any:
        """The state before the first step."""

    @abstractmethod
    def update(
        self,
        model: Any,
        state: Any,
        families: Sequence[Any],
        batches: Sequence[Float[Array, "_ _ 3"]],
        workers: Workers,
    ) -> tuple[Any, Any, Judgement]:
        """One step: model, state, and the judgement of the batches before it."""

    def judge(
        self,
        family: Any,
        model: Any,
        positions: Float[Array, "n natom 3"],
        workers: Workers,
    ) -> Judgement:
        """Mean energy and error of a model on a batch."""

        def one(shared, positions):
            prediction = shared[0].predict(shared[1], positions)
            return Judgement(prediction.energy, prediction.error_estimate, prediction.residual)

        total = workers.total(one, (family, model), positions)
        return _over(total, positions.shape[0])


class FirstOrder(AbstractOptimizer):
    """Gradient descent on the mean energy, by an Optax optimizer.

    Attributes:
        transformation: Of the gradients.
    """

    transformation: optax.GradientTransformation = eqx.field(static=True)

    @classmethod
    def adam(
        cls,
        steps: int,
        *,
        learning_rate: float = 3e-4,
        warmup_steps: int = 100,
        final_learning_rate: float = 1e-6,
        weight_decay: float = 1e-6,
        clip: float = 1.0,
    ) -> FirstOrder:
        """AdamW with a rising, then cosine-shaped learning rate and gradients of bounded norm.

        Args:
            steps: Of the whole training; the learning rate is smallest at its end.
            learning_rate: The largest.
            warmup_steps: In which it rises; at most half of all steps.
            final_learning_rate: The last.
            weight_decay, clip: As Optax has them.
        """
        rising = min(warmup_steps, steps // 2)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if rising else learning_rate,
            learning_rate,
            rising,
            max(steps, rising + 1),
            final_learning_rate,
        )
        descent = optax.adamw(schedule, weight_decay=weight_decay)
        return cls(optax.chain(optax.clip_by_global_norm(clip), descent))

    def init(self, model):
        return self.transformation.init(eqx.filter(model, eqx.is_inexact_array))

    def update(self, model, state, families, batches, workers):
        parameters, rest = eqx.partition(model, eqx.is_inexact_array)
        gradients, judgements = [], []
        for family, positions in zip(families, batches, strict=True):

            def one(shared, positions):
                parameters, family, rest = shared

                def energy(parameters):
                    return family.energy_fn(eqx.combine(parameters, rest), positions)

                return jax.grad(energy)(parameters)

            gradient = workers.total(one, (parameters, family, rest), positions)
            gradients.append(_over(gradient, len(positions)))
            judgements.append(self.judge(family, model, positions, workers))
        mean = jax.tree.map(lambda *x: sum(x) / len(x), *gradients)
        with jax.numpy_dtype_promotion("standard"):  # Optax's schedules count in integers
            changes, new_state = self.transformation.update(mean, state, parameters)
            new = optax.apply_updates(parameters, changes)
        # A gradient that is not finite changes nothing.
        leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(mean)]
        sound = jnp.all(jnp.stack(leaves))
        new, new_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (new, new_state), (parameters, state)
        )
        return eqx.combine(new, rest), new_state, mean_judgement(judgements)


class SecondOrderState(eqx.Module):
    """What a Gauss-Newton training remembers.

    Attributes:
        equations: Of past batches.
        before: The weights before the last step.
        caution: What the ridge is multiplied by, 1 or more.
    """

    equations: NormalEquations
    before: Float[Array, "nstep nspin nclass nop nfeature"]
    caution: Float[Array, ""]


class SecondOrder(AbstractOptimizer):
    """Gauss-Newton steps for models whose Fock matrix is linear in the weights.

    The energy may rise a little while the later of several learned steps adapt to the earlier. But
    a step that raises the mean energy of its own batches by more than their estimated error is made
    shorter, and given up where that does not help. Few geometries do not determine the weights, and
    what fits them may be wild elsewhere: if on the next batches the mean energy is higher than that
    of the weights before the step by more than the estimated error of these, the step is taken back
    and the ridge is raised; it begins high, and falls with each step that holds.

    Attributes:
        gauss_newton: Gathers and solves the equations.
        memory: What the equations of past steps count in the next.
        scale: Part of the computed change that is tried first.
        halvings: How often it is halved at most.
    """

    gauss_newton: GaussNewton
    memory: float = eqx.field(static=True, default=0.9)
    scale: float = eqx.field(static=True, default=1.0)
    halvings: int = eqx.field(static=True, default=4)

    def init(self, model):
        caution = jnp.asarray(_CAUTION, model.weights.dtype)
        return SecondOrderState(self.gauss_newton.init(model), model.weights, caution)

    def update(self, model, state, families, batches, workers):
        nothing = self.gauss_newton.init(model)
        gathered, judgements = [], []
        for family, positions in zip(families, batches, strict=True):

            def one(shared, r):
                nothing, family, model = shared
                accumulate = self.gauss_newton.accumulate
                equations, quality = accumulate(nothing, family, model, r[None])
                return equations, Judgement(
                    quality.energy[0], quality.error_estimate[0], quality.residual[0]
                )

            equations, judgement = workers.total(one, (nothing, family, model), positions)
            gathered.append(equations)
            judgements.append(_over(judgement, len(positions)))
        of_model = mean_judgement(judgements)
        before = eqx.tree_at(lambda model: model.weights, model, state.before)
        of_before = mean_judgement(
            [
                self.judge(family, before, positions, workers)
                for family, positions in zip(families, batches, strict=True)
            ]
        )
        highest = of_before.energy + of_before.error
        back = jnp.isfinite(highest) & ~(of_model.energy <= highest)

        def chosen(if_back, otherwise):
            return jax.tree.map(partial(jnp.where, back), if_back, otherwise)

        equations = jax.tree.map(
            lambda old, *new: self.memory * old + sum(new), state.equations, *gathered
        )
        state = SecondOrderState(
            chosen(state.equations, equations),
            chosen(before.weights, model.weights),
            chosen(_DISTRUST * state.caution, jnp.maximum(state.caution / _TRUST, 1)),
        )
        bound = chosen(highest, of_model.energy + of_model.error)
        start = eqx.tree_at(lambda model: model.weights, model, state.before)
        return self._search(start, state, families, batches, workers, bound), state, of_model

    def _search(self, model, state, families, batches, workers, bound):
        """The first of ever shorter steps whose mean energy is within the bound; else no step."""

        def mean_energy(model):
            means = []
            for family, positions in zip(families, batches, strict=True):

                def one(shared, r):
                    return shared[0].energy_fn(shared[1], r)

                total = workers.total(one, (family, model), positions)
                means.append(total / len(positions))
            return sum(means) / len(means)

        weights, rest = eqx.partition(model, eqx.is_inexact_array)
        whole = self.gauss_newton.step(state.equations, model, caution=state.caution)
        whole, _ = eqx.partition(whole, eqx.is_inexact_array)

        def stepped(tries):
            scale = self.scale * jnp.exp2(-tries.astype(bound.dtype))
            given_up = tries > self.halvings  # and then nothing of a step that may be NaN
            part = jax.tree.map(
                lambda old, new: jnp.where(given_up, old, old + scale * (new - old)), weights, whole
            )
            return eqx.combine(part, rest)

        def too_high(search):
            tries, energy = search
            return ~(energy <= bound) & (tries <= self.halvings)  # nor is a NaN low enough

        def shorter(search):
            tries = search[0] + 1
            return tries, mean_energy(stepped(tries))

        first = (jnp.asarray(-1, jnp.int32), jnp.full_like(bound, jnp.inf))
        tries, _ = jax.lax.while_loop(too_high, shorter, first)
        return stepped(tries)
