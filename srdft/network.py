"""Invariant features of pairs of atoms, on which learned weights depend linearly."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from srdft.family import MoleculeFamily
from srdft.geometry import distances


class AbstractFeatures(eqx.Module):
    """Numbers for each pair of atoms, and for each atom with itself, that no motion changes."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many features there are."""

    @property
    @abc.abstractmethod
    def odd(self) -> tuple[bool, ...]:
        """Which features of two atoms change their sign when these are exchanged."""

    @abc.abstractmethod
    def __call__(
        self, family: MoleculeFamily, positions: Float[Array, "natom 3"]
    ) -> Float[Array, "natom natom nfeature"]:
        """The features of each pair; the first is 1."""


class Constant(AbstractFeatures):
    """The number 1: weights that do not depend on the geometry."""

    @property
    def size(self) -> int:
        return 1

    @property
    def odd(self) -> tuple[bool, ...]:
        return (False,)

    def __call__(
        self, family: MoleculeFamily, positions: Float[Array, "natom 3"]
    ) -> Float[Array, "natom natom nfeature"]:
        natom = len(family.numbers)
        return jnp.ones((natom, natom, 1), positions.dtype)


class Gates(AbstractFeatures):
    """Smooth functions of distances, without parameters.

    With u = exp(-r / range): for two atoms Chebyshev polynomials of 2u - 1, which become constant
    as the atoms part, and the sum and the difference of both atoms' sums of u over all others; for
    one atom sums over the others of u (2u - 1)^g, element by element.

    Attributes:
        elements: Whose sums are told apart.
        degree: Number of polynomials.
        range: Decay length, bohr.
    """

    elements: tuple[int, ...] = eqx.field(static=True)
    degree: int = eqx.field(static=True)
    range: float = eqx.field(static=True)

    @classmethod
    def build(
        cls, families: Sequence[MoleculeFamily], degree: int = 3, range: float = 2.0
    ) -> Gates:
        """Gates for the elements of the families."""
        elements = tuple(sorted({number for family in families for number in family.numbers}))
        return cls(elements, degree, range)

    @property
    def size(self) -> int:
        return 1 + max(self.degree + 2, self.degree * len(self.elements))

    @property
    def odd(self) -> tuple[bool, ...]:
        difference = self.degree + 2
        return (False,) * difference + (True,) + (False,) * (self.size - difference - 1)

    def __call__(
        self, family: MoleculeFamily, positions: Float[Array, "natom 3"]
    ) -> Float[Array, "natom natom nfeature"]:
        natom, dtype = len(family.numbers), positions.dtype
        other = jnp.asarray(1 - np.eye(natom), dtype)
        u = jnp.exp(-distances(positions) / self.range)
        x = 2 * u - 1
        around = jnp.sum(other * u, axis=1)
        pair = _polynomials(x, self.degree)[1:]
        pair += [around[:, None] + around[None, :], around[:, None] - around[None, :]]
        alone = []
        for element in self.elements:
            chosen = other * jnp.asarray(np.asarray(family.numbers) == element, dtype)[None, :]
            alone += [jnp.sum(chosen * u * x**g, axis=1) for g in range(self.degree)]
        rest = self.size - 1
        zero = jnp.zeros((natom, natom), dtype)
        pair += [zero] * (rest - len(pair))
        alone += [zero[0]] * (rest - len(alone))
        features = [jnp.ones((natom, natom), dtype)]
        features += [other * p + jnp.diag(a) for p, a in zip(pair, alone)]
        return jnp.stack(features, axis=-1)


class Network(AbstractFeatures):
    """Features learned by passing messages along pairs of atoms.

    The state of an ordered pair AB, atoms with themselves included, starts from both elements and
    their distance, and in each layer takes up sum_C (left of AC) * (right of CB), damped with both
    distances: lengths, angles and longer paths. All of it is smooth, depends on distances alone,
    and becomes independent of atoms that are far away. Even features are made of the sum of the
    states of AB and BA, odd ones of their difference.

    Attributes:
        elements: That the network knows.
        range: Decay length of the influence of other atoms, bohr.
        embedding: Of the elements of the first and of the second atom, and whether it is the same.
    """

    elements: tuple[int, ...] = eqx.field(static=True)
    range: float = eqx.field(static=True)
    neven: int = eqx.field(static=True)
    nodd: int = eqx.field(static=True)
    nradial: int = eqx.field(static=True)
    embedding: eqx.nn.Linear
    layers: tuple[Layer, ...]
    even: eqx.nn.Linear
    uneven: eqx.nn.Linear

    @classmethod
    def build(
        cls,
        families: Sequence[MoleculeFamily],
        *,
        width: int = 32,
        layers: int = 2,
        neven: int = 12,
        nodd: int = 4,
        nradial: int = 8,
        range: float = 2.5,
        dtype: DTypeLike = float,
        key: PRNGKeyArray,
    ) -> Network:
        """A network with random weights for the elements of the families.

        Args:
            width: Length of the state of a pair.
            layers: Number of rounds of messages.
            neven, nodd: Number of features beside the constant one.
            nradial: Number of functions of a distance.
            range: Decay length of the influence of other atoms, bohr.
            dtype: Of the weights; by default the widest that JAX is set to.
        """
        elements = tuple(sorted({number for family in families for number in family.numbers}))
        dtype = jnp.zeros((), dtype).dtype
        first, even, odd, *rest = jax.random.split(key, layers + 3)
        return cls(
            elements=elements,
            range=range,
            neven=neven,
            nodd=nodd,
            nradial=nradial,
            embedding=eqx.nn.Linear(2 * len(elements) + 1 + nradial, width, dtype=dtype, key=first),
            layers=tuple(Layer.build(width, dtype, key=key) for key in rest),
            even=eqx.nn.Linear(width, neven, dtype=dtype, key=even),
            uneven=eqx.nn.Linear(width, nodd, use_bias=False, dtype=dtype, key=odd),
        )

    @property
    def size(self) -> int:
        return 1 + self.neven + self.nodd

    @property
    def odd(self) -> tuple[bool, ...]:
        return (False,) * (1 + self.neven) + (True,) * self.nodd

    def __call__(
        self, family: MoleculeFamily, positions: Float[Array, "natom 3"]
    ) -> Float[Array, "natom natom nfeature"]:
        natom, dtype = len(family.numbers), positions.dtype
        network = jax.tree.map(
            lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x,
            (self.embedding, self.layers, self.even, self.uneven),
        )
        embedding, layers, even, uneven = network
        same = jnp.asarray(np.eye(natom), dtype)
        damping = jnp.exp(-distances(positions) / self.range)
        radial = _polynomials(2 * damping - 1, self.nradial)[1:]
        radial = [(1 - same) * (f - (-1) ** g) for g, f in enumerate(radial, 1)]
        known = np.asarray(family.numbers)[:, None] == np.asarray(self.elements)[None, :]
        element = jnp.asarray(known, dtype)
        first = jnp.broadcast_to(element[:, None], (natom, *element.shape))
        second = jnp.broadcast_to(element[None], (natom, *element.shape))
        state = jnp.concatenate([first, second, jnp.stack([same, *radial], axis=-1)], axis=-1)
        state = _along_pairs(embedding, state)
        for layer in layers:
            state = layer(state, damping)
        exchanged = jnp.swapaxes(state, 0, 1)
        features = [
            jnp.ones((natom, natom, 1), dtype),
            jnp.tanh(_along_pairs(even, state + exchanged)),
            jnp.tanh(_along_pairs(uneven, state - exchanged)),
        ]
        return jnp.concatenate(features, axis=-1)


class Layer(eqx.Module):
    """One round of messages between pairs."""

    left: eqx.nn.Linear
    right: eqx.nn.Linear
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    @classmethod
    def build(cls, width: int, dtype: DTypeLike, *, key: PRNGKeyArray) -> Layer:
        """Random weights."""
        left, right, hidden, out = jax.random.split(key, 4)
        return cls(
            left=eqx.nn.Linear(width, width, dtype=dtype, key=left),
            right=eqx.nn.Linear(width, width, dtype=dtype, key=right),
            hidden=eqx.nn.Linear(2 * width, 2 * width, dtype=dtype, key=hidden),
            out=eqx.nn.Linear(2 * width, width, dtype=dtype, key=out),
        )

    def __call__(
        self, state: Float[Array, "natom natom width"], damping: Float[Array, "natom natom"]
    ) -> Float[Array, "natom natom width"]:
        """The state with what came along other atoms."""
        left = _along_pairs(self.left, state) * damping[:, :, None]
        right = _along_pairs(self.right, state) * damping[:, :, None]
        message = jnp.einsum("acw,cbw->abw", left, right, precision="highest")
        hidden = _along_pairs(self.hidden, jnp.concatenate([state, message], axis=-1))
        return state + _along_pairs(self.out, jax.nn.silu(hidden))


def _along_pairs(linear: eqx.nn.Linear, x: Float[Array, "natom natom n"]):
    return jax.vmap(jax.vmap(linear))(x)


def _polynomials(x, degree: int):
    """Chebyshev polynomials of the first kind, order 0 to `degree`."""
    found = [jnp.ones_like(x), x]
    while len(found) <= degree:
        found.append(2 * x * found[-1] - found[-2])
    return found[: degree + 1]
