"""Dispersion energies D3(BJ) and D4, by the packages dftd3 and dftd4."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qchem.errors import FunctionalNotFoundError, InputError
from qchem.xc.names import INSTEAD_OF_VV10, damping_name
from qchem.xc.registry import FUNCTIONALS


class Dispersion(eqx.Module):
    """What a dispersion correction adds to the energy: a function of the positions alone.

    D3 with rational damping and without three-body term (Grimme, Ehrlich & Goerigk, J. Comput.
    Chem. 32, 1456 (2011)), D4 with it (Caldeweyher et al., J. Chem. Phys. 150, 154122 (2019)).

    Attributes:
        model: "d3bj" or "d4".
        parameters: Name of the functional whose damping is used, as the package spells it.
        numbers: Atomic numbers.
        charge: Of the molecule; D4 depends on it.
    """

    model: str = eqx.field(static=True)
    parameters: str = eqx.field(static=True)
    numbers: tuple[int, ...] = eqx.field(static=True)
    charge: int = eqx.field(static=True)

    @classmethod
    def build(cls, terms: tuple[str, str], numbers: tuple[int, ...], charge: int = 0) -> Dispersion:
        """The correction that a functional asks for.

        Args:
            terms: `Functional.dispersion`.
            numbers, charge: The molecule.

        Raises:
            InputError: The package is not installed, or has no parameters for the functional.
        """
        model, parameters = terms
        if not _has_parameters(model, parameters):
            names = dict.fromkeys((*FUNCTIONALS, *INSTEAD_OF_VV10))
            known = [name for name in names if _has_parameters(model, damping_name(name))]
            raise FunctionalNotFoundError(
                f"{model!r} has no parameters for {parameters!r}; functionals that can be written "
                f"with -{model}: {', '.join(known)}."
            )
        return cls(model, parameters, numbers, charge)

    def energy(self, positions: Float[Array, "natom 3"]) -> Float[Array, ""]:
        """Dispersion energy, hartree; with first derivatives. The host computes it."""
        shapes = (), positions.shape
        like = tuple(jax.ShapeDtypeStruct(shape, positions.dtype) for shape in shapes)

        @jax.custom_jvp
        def both(positions):
            return jax.pure_callback(self._on_host, like, positions, vmap_method="broadcast_all")

        @both.defjvp
        def second(primals, tangents):
            raise NotImplementedError(
                "second derivatives of dispersion energies are not supported; difference the "
                "gradient instead."
            )

        @jax.custom_jvp
        def one(positions):
            return both(positions)[0]

        @one.defjvp
        def first(primals, tangents):
            value, slope = both(*primals)
            return value, jnp.vdot(slope, tangents[0], precision="highest")

        return one(positions)

    def _on_host(self, positions):
        """Energies and gradients of geometries along any leading axes; NaN where these are."""
        evaluate = _MODELS[self.model](self.parameters)
        positions = np.asarray(positions)
        gradient = np.full(positions.shape, np.nan, positions.dtype)
        energy = np.full(positions.shape[:-2], np.nan, positions.dtype)
        for place in np.ndindex(energy.shape):
            geometry = positions[place].astype(float)
            if np.isfinite(geometry).all():
                found = evaluate(np.array(self.numbers), geometry, self.charge)
                energy[place], gradient[place] = found["energy"], found["gradient"]
        return energy, gradient


Evaluate = Callable[[np.ndarray, np.ndarray, int], dict[str, Any]]


@lru_cache
def _d3bj(parameters: str) -> Evaluate:
    from dftd3.interface import DispersionModel, RationalDampingParam

    damping = RationalDampingParam(method=parameters)

    def evaluate(numbers, positions, charge):
        return DispersionModel(numbers, positions).get_dispersion(damping, grad=True)

    return evaluate


@lru_cache
def _d4(parameters: str) -> Evaluate:
    from dftd4.interface import DampingParam, DispersionModel

    damping = DampingParam(method=parameters)

    def evaluate(numbers, positions, charge):
        model = DispersionModel(numbers, positions, charge=float(charge))
        return model.get_dispersion(damping, grad=True)

    return evaluate


_MODELS = {"d3bj": _d3bj, "d4": _d4}


def _has_parameters(model: str, parameters: str) -> bool:
    try:
        _MODELS[model](parameters)
    except ImportError as error:
        package = {"d3bj": "dftd3", "d4": "dftd4"}[model]
        raise InputError(
            f"{model!r} needs the package {package}: pip install {package}."
        ) from error
    except RuntimeError:
        return False
    return True
