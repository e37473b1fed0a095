"""Exchange-correlation functionals by name."""

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from qchem.errors import FunctionalNotFoundError

from .functionals.b88 import gga_x_b88
from .functionals.density import SpinDensity
from .functionals.lyp import gga_c_lyp
from .functionals.optx import gga_x_optx
from .functionals.p86 import gga_c_p86
from .functionals.pbe import (
    gga_c_pbe,
    gga_c_pbe_sol,
    gga_x_pbe,
    gga_x_pbe_r,
    gga_x_pbe_sol,
    gga_x_rpbe,
)
from .functionals.pw92 import lda_c_pw, lda_c_pw_mod
from .functionals.pz81 import lda_c_pz
from .functionals.slater import lda_x
from .functionals.vwn import lda_c_vwn, lda_c_vwn_rpa


class Component(NamedTuple):
    """One energy density and the density below which libxc sets it to zero, bohr⁻³."""

    energy_density: Callable[[SpinDensity], Float[Array, " npoint"]]
    threshold: float = 1e-15


COMPONENTS = {
    "lda_x": Component(lda_x),
    "lda_c_vwn": Component(lda_c_vwn),
    "lda_c_vwn_rpa": Component(lda_c_vwn_rpa),
    "lda_c_pw": Component(lda_c_pw),
    "lda_c_pw_mod": Component(lda_c_pw_mod),
    "lda_c_pz": Component(lda_c_pz),
    "gga_x_b88": Component(gga_x_b88),
    "gga_x_optx": Component(gga_x_optx),
    "gga_x_pbe": Component(gga_x_pbe),
    "gga_x_pbe_r": Component(gga_x_pbe_r),
    "gga_x_rpbe": Component(gga_x_rpbe),
    "gga_x_pbe_sol": Component(gga_x_pbe_sol),
    "gga_c_pbe": Component(gga_c_pbe, 1e-12),
    "gga_c_pbe_sol": Component(gga_c_pbe_sol, 1e-12),
    "gga_c_p86": Component(gga_c_p86),
    "gga_c_lyp": Component(gga_c_lyp, 1e-14),
}

# Names of whole functionals, as PySCF and libxc understand them; "hf" is exact exchange.
FUNCTIONALS = {
    "hf": "hf",
    "svwn": "lda_x + lda_c_vwn",
    "pbe": "gga_x_pbe + gga_c_pbe",
    "blyp": "gga_x_b88 + gga_c_lyp",
    "b3lyp": "0.2*hf + 0.08*lda_x + 0.72*gga_x_b88 + 0.19*lda_c_vwn_rpa + 0.81*gga_c_lyp",
    "b3lyp5": "0.2*hf + 0.08*lda_x + 0.72*gga_x_b88 + 0.19*lda_c_vwn + 0.81*gga_c_lyp",
    "revpbe": "gga_x_pbe_r + gga_c_pbe",
    "rpbe": "gga_x_rpbe + gga_c_pbe",
    "pbesol": "gga_x_pbe_sol + gga_c_pbe_sol",
    "bp86": "gga_x_b88 + gga_c_p86",
    "olyp": "gga_x_optx + gga_c_lyp",
    "bhandhlyp": "0.5*hf + 0.5*gga_x_b88 + gga_c_lyp",
    "pbe0": "0.25*hf + 0.75*gga_x_pbe + gga_c_pbe",
}
_SYNONYMS = {
    "b3lypg": "b3lyp",
    "hyb_gga_xc_b3lyp": "b3lyp",
    "hyb_gga_xc_b3lyp5": "b3lyp5",
    "pbeh": "pbe0",
    "pbe1pbe": "pbe0",
    "hyb_gga_xc_pbeh": "pbe0",
}

# Short names of components, before and after the comma of "exchange,correlation".
_EXCHANGE = {"lda": "lda_x", "slater": "lda_x"}
_CORRELATION = {
    "vwn": "lda_c_vwn",
    "vwn5": "lda_c_vwn",
    "vwn3": "lda_c_vwn_rpa",
    "vwnrpa": "lda_c_vwn_rpa",
}

# Below this the powers of the density that second derivatives hold leave the range of float32.
_FLOAT32_THRESHOLD = 1e-8
_TERM = re.compile(r"([+-]?)(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\*)?([a-z]\w*)")


class Functional(eqx.Module):
    """Exchange and correlation as a sum of components and a fraction of exact exchange."""

    name: str = eqx.field(static=True)
    exchange_fraction: float = eqx.field(static=True)
    components: tuple[tuple[float, str], ...] = eqx.field(static=True)

    @classmethod
    def from_name(cls, name: str) -> "Functional":
        """The functional of this name, or of an expression in the names of its parts.

        Args:
            name: In either case: a whole functional ("b3lyp"), "exchange,correlation"
                ("b88,lyp"), or sums of either with factors ("0.5*hf + 0.5*b88, lyp").

        Raises:
            FunctionalNotFoundError: if a name is not known.
        """
        weights = _expand(name)
        fraction = weights.pop("hf", 0.0)
        parts = tuple((weight, part) for part, weight in weights.items() if weight != 0)
        return cls(name=name, exchange_fraction=fraction, components=parts)

    @property
    def ingredients(self) -> str:
        """What the energy density depends on: "none", "lda" (rho) or "gga" (rho and sigma)."""
        present = {part.split("_")[0] for _, part in self.components}
        return next((rung for rung in ("gga", "lda") if rung in present), "none")

    def energy_density(
        self,
        rho: Float[Array, "nspin npoint"],
        sigma: Float[Array, "nsigma npoint"] | None = None,
    ) -> Float[Array, " npoint"]:
        """Energy per volume without exact exchange, hartree/bohr³.

        Finite with its first and second derivatives for any density; exactly zero below the
        threshold of each component (in float32 at least 1e-8).

        Args:
            rho: Total density if there is one row, else alpha and beta; bohr⁻³.
            sigma: grad rho · grad rho, bohr⁻⁸: one row, or aa, ab, bb. Not used by an LDA.
        """
        floor = _FLOAT32_THRESHOLD if rho.dtype == jnp.float32 else 0.0
        thresholds = [max(COMPONENTS[part].threshold, floor) for _, part in self.components]
        densities = {t: SpinDensity(rho, sigma, t) for t in sorted(set(thresholds))}
        energy = jnp.zeros_like(rho[0])
        for (weight, part), threshold in zip(self.components, thresholds, strict=True):
            density = densities[threshold]
            value = COMPONENTS[part].energy_density(density)
            energy = energy + weight * jnp.where(density.inside, value, 0.0)
        return energy


def _expand(name: str) -> dict[str, float]:
    """Weights of components, and of "hf", in the functional that `name` describes."""
    text = re.sub(r"\s", "", name.lower())
    sides = text.split(",")
    if len(sides) > 2 or not text.strip(","):
        raise FunctionalNotFoundError(
            f"functional {name!r} is not understood: write one name, such as 'pbe', "
            "or 'exchange,correlation', such as 'b88,lyp'."
        )
    kinds = ("",) if len(sides) == 1 else ("x", "c")
    weights: dict[str, float] = {}
    for side, kind in zip(sides, kinds, strict=True):
        for factor, term in _terms(side, name):
            for part, weight in _resolve(term, kind, name).items():
                weights[part] = weights.get(part, 0.0) + factor * weight
    return weights


def _terms(side: str, name: str):
    position = 0
    while position < len(side):
        match = _TERM.match(side, position)
        if match is None or (position > 0 and not match[1]):
            raise FunctionalNotFoundError(
                f"functional {name!r} is not understood at {side[position:]!r}: "
                "write sums such as '0.5*hf + 0.5*b88'."
            )
        yield float(match[1] + (match[2] or "1")), match[3]
        position = match.end()


def _resolve(term: str, kind: str, name: str) -> dict[str, float]:
    """Components of one term; `kind` is "x" or "c" on a side of the comma, else empty."""
    if term == "hf" or term in COMPONENTS:
        return {term: 1.0}
    whole = _SYNONYMS.get(term, term)
    if not kind and whole in FUNCTIONALS:
        return _expand(FUNCTIONALS[whole])
    for one in kind or "xc":
        short = (_EXCHANGE if one == "x" else _CORRELATION).get(term)
        for part in (short, f"lda_{one}_{term}", f"gga_{one}_{term}"):
            if part in COMPONENTS:
                return {part: 1.0}
    known = [*FUNCTIONALS, *_SYNONYMS, *_EXCHANGE, *_CORRELATION, *COMPONENTS]
    known += [part.split("_", 2)[-1] for part in COMPONENTS]
    near = difflib.get_close_matches(term, dict.fromkeys(known), n=3, cutoff=0.5)
    raise FunctionalNotFoundError(
        f"functional {name!r} is not known"
        + (f" (part {term!r})" if term != name.lower() else "")
        + (f"; nearest: {', '.join(near)}" if near else "")
        + f". Whole functionals: {', '.join(FUNCTIONALS)}; components, summed with factors: "
        + f"{', '.join(COMPONENTS)}."
    )
