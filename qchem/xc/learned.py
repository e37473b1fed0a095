"""Functionals with learned parts: a module of any kind on top of a functional by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from qchem.errors import FunctionalNotFoundError, InputError

from .functional import Functional
from .functionals.density import SpinDensity

SUFFIX = ".eqx"
_RUNGS = ("none", "lda", "gga", "mgga")
_MAGIC = "qchem functional"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


class LearnedFunctional(eqx.Module):
    """A functional by name plus a correction, any module whose arrays can be learned.

    It takes the place of a `Functional` everywhere.

    Attributes:
        base: Gives exact exchange, nonlocal correlation and most of the rest.
        correction: Takes a `SpinDensity` to an energy per volume, hartree/bohr³: smooth, finite,
            and of the form that both spins can be exchanged.
        needs: What `correction` depends on: "lda", "gga" or "mgga".
        threshold: Density below which the correction is zero, bohr⁻³.
    """

    base: Functional
    correction: Callable[[SpinDensity], Float[Array, " npoint"]]
    needs: str = eqx.field(static=True, default="gga")
    threshold: float = eqx.field(static=True, default=1e-10)

    def __check_init__(self):
        if self.needs not in _RUNGS[1:]:
            raise InputError(f"needs = {self.needs!r}; a correction needs lda, gga or mgga.")

    @property
    def name(self) -> str:
        """The base's, marked."""
        return f"{self.base.name} + learned"

    @property
    def ingredients(self) -> str:
        """The higher rung of base and correction."""
        return max(self.base.ingredients, self.needs, key=_RUNGS.index)

    @property
    def exchange_fraction(self) -> float:
        """Of exact exchange, as in `Functional`."""
        return self.base.exchange_fraction

    @property
    def attenuated_fraction(self) -> float:
        """Of attenuated exact exchange, as in `Functional`."""
        return self.base.attenuated_fraction

    @property
    def omega(self) -> float:
        """Of the attenuated interaction, bohr⁻¹."""
        return self.base.omega

    @property
    def nonlocal_correlation(self) -> tuple[tuple[float, float, float], ...]:
        """As in `Functional`."""
        return self.base.nonlocal_correlation

    @property
    def dispersion(self) -> tuple[str, str] | None:
        """As in `Functional`."""
        return self.base.dispersion

    def energy_density(
        self,
        rho: Float[Array, "nspin npoint"],
        sigma: Float[Array, "nsigma npoint"] | None = None,
        tau: Float[Array, "nspin npoint"] | None = None,
    ) -> Float[Array, " npoint"]:
        """Energy per volume without exact exchange, hartree/bohr³; see `Functional`."""
        density = SpinDensity(rho, sigma, tau, self.threshold)
        correction = jnp.where(density.inside, self.correction(density), 0.0)
        return self.base.energy_density(rho, sigma, tau) + correction

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file that `load_functional` and the command line's --xc read.

        Raises:
            InputError: The correction does not say how it was made: see `load_functional`.
        """
        path = _checked(path)
        kind = type(self.correction)
        hyperparameters = getattr(self.correction, "hyperparameters", None)
        if not isinstance(hyperparameters, dict):
            raise InputError(
                f"{kind.__name__} cannot be saved: give it a static field `hyperparameters`, the "
                "dictionary of the arguments that it was made with, `key` left out."
            )
        header = {
            "kind": _MAGIC,
            "base": self.base.name,
            "needs": self.needs,
            "threshold": self.threshold,
            "correction": f"{kind.__module__}:{kind.__qualname__}",
            "hyperparameters": hyperparameters,
        }
        scratch = path.with_name(path.name + ".part")
        with open(scratch, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            eqx.tree_serialise_leaves(file, self.correction)
        scratch.replace(path)


AnyFunctional = Functional | LearnedFunctional


def load_functional(path: str | PathLike[str]) -> LearnedFunctional:
    """A functional written by `LearnedFunctional.save`.

    The class of its correction is imported by name and called with the hyperparameters in the
    file and a `key`; then its arrays are read.

    Raises:
        InputError: A name that does not end in .eqx.
        FunctionalNotFoundError: No such file, or not a functional.
    """
    path = _checked(path)
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline())
            if header["kind"] != _MAGIC:
                raise ValueError("it is another kind of file")
            module, _, name = header["correction"].partition(":")
            kind = importlib.import_module(module)
            for part in name.split("."):
                kind = getattr(kind, part)
            blank = kind(**header["hyperparameters"], key=jax.random.key(0))
            correction = eqx.tree_deserialise_leaves(file, blank)
        base = Functional.from_name(header["base"])
        return LearnedFunctional(base, correction, header["needs"], header["threshold"])
    except FileNotFoundError as error:
        raise FunctionalNotFoundError(f"no functional at {str(path)!r}: {error}") from error
    except _UNREADABLE as error:
        raise FunctionalNotFoundError(
            f"{str(path)!r} cannot be read as a functional ({error}); it should have been written "
            "by LearnedFunctional.save, in a program whose modules can be imported here."
        ) from error


def _checked(path):
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"{str(path)!r}: files of functionals end in {SUFFIX}.")
    return path


class EnhancementNetwork(eqx.Module):
    """A small neural factor of the local exchange energy: a correction for `LearnedFunctional`.

    rho eps_x(rho) times a network of four bounded numbers: density, reduced gradient of the total
    density, polarization squared, and, for a meta-GGA, the ratio of the kinetic energy densities of
    a single orbital and of the electrons. Zero, so that the base stands alone, before training.
    """

    network: eqx.nn.MLP
    hyperparameters: dict[str, Any] = eqx.field(static=True)

    def __init__(self, width: int = 16, depth: int = 2, needs: str = "gga", *, key: Key[Array, ""]):
        """With `depth` hidden layers of `width` numbers; arguments must be hashable."""
        self.hyperparameters = {"width": width, "depth": depth, "needs": needs}
        network = eqx.nn.MLP(4, "scalar", width, depth, jax.nn.softplus, key=key, dtype=jnp.float64)
        last = network.layers[-1]
        zeros = (jnp.zeros_like(last.weight), jnp.zeros_like(last.bias))
        where = lambda m: (m.layers[-1].weight, m.layers[-1].bias)  # noqa: E731
        self.network = eqx.tree_at(where, network, zeros)

    def __call__(self, density: SpinDensity) -> Float[Array, " npoint"]:
        """Energy per volume, hartree/bohr³."""
        needs = self.hyperparameters["needs"]
        dtype = density.rho.dtype
        zero = jnp.zeros_like(density.rho)
        gradient = density.reduced if needs != "lda" else zero
        inverse_radius = density.cbrt
        tau = density.alpha.tau + density.beta.tau if needs == "mgga" else None
        single = zero if tau is None else density.sigma / (8 * density.rho * tau)
        features = jnp.stack(
            [
                inverse_radius / (1 + inverse_radius),
                gradient / (10 + gradient),
                density.zeta**2,
                single,
            ],
            axis=-1,
        )
        network = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_array(x) else x, self.network)
        factor = jax.vmap(network)(features)
        return -density.rho * density.cbrt * factor
