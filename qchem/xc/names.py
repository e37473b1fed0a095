"""Names of functionals and expressions in them, as PySCF and libxc understand them."""

import difflib
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from qchem.errors import FunctionalNotFoundError

from .registry import COMPONENTS, FUNCTIONALS

# libxc's numbers of components, and of functionals that are sums of them.
IDENTIFIERS = {
    1: "lda_x", 7: "lda_c_vwn", 8: "lda_c_vwn_rpa", 9: "lda_c_pz", 12: "lda_c_pw",
    13: "lda_c_pw_mod", 101: "gga_x_pbe", 102: "gga_x_pbe_r", 106: "gga_x_b88",
    109: "gga_x_pw91", 110: "gga_x_optx", 116: "gga_x_pbe_sol", 117: "gga_x_rpbe",
    130: "gga_c_pbe", 131: "gga_c_lyp", 132: "gga_c_p86", 133: "gga_c_pbe_sol",
    134: "gga_c_pw91", 170: "gga_xc_b97_d", 202: "mgga_x_tpss", 203: "mgga_x_m06_l",
    212: "mgga_x_revtpss", 231: "mgga_c_tpss", 233: "mgga_c_m06_l", 235: "mgga_c_m06",
    236: "mgga_c_m06_2x", 241: "mgga_c_revtpss", 263: "mgga_x_scan", 267: "mgga_c_scan",
    399: "hyb_gga_xc_wb97x_d3", 402: "hyb_gga_xc_b3lyp", 406: "hyb_gga_xc_pbeh",
    407: "hyb_gga_xc_b97", 408: "hyb_gga_xc_b97_1", 410: "hyb_gga_xc_b97_2",
    414: "hyb_gga_xc_b97_3", 428: "hyb_gga_xc_hse06", 433: "hyb_gga_xc_cam_b3lyp",
    436: "hyb_gga_xc_bhandhlyp", 449: "hyb_mgga_x_m06", 450: "hyb_mgga_x_m06_2x",
    457: "hyb_mgga_xc_tpssh", 463: "hyb_gga_xc_wb97", 464: "hyb_gga_xc_wb97x",
    466: "hyb_gga_xc_wb97x_v", 471: "hyb_gga_xc_wb97x_d", 475: "hyb_gga_xc_b3lyp5",
    478: "hyb_gga_xc_lc_wpbe", 497: "mgga_x_r2scan", 498: "mgga_c_r2scan",
    524: "gga_x_wpbeh", 529: "gga_x_ityh", 531: "hyb_mgga_xc_wb97m_v",
    660: "hyb_mgga_xc_r2scan0",
}  # fmt: skip
_SYNONYMS = {
    "b3lypg": "b3lyp",
    "pbeh": "pbe0",
    "pbe1pbe": "pbe0",
    "hyb_gga_xc_pbeh": "pbe0",
}
# Functionals that libxc knows by an identifier of their own and that are sums here.
_SYNONYMS |= {
    identifier: whole
    for identifier in IDENTIFIERS.values()
    for whole in FUNCTIONALS
    if identifier not in COMPONENTS
    and re.sub(r"^(hyb_)?(lda|gga|mgga)_xc_", "", identifier) == whole.replace("-", "_")
}

# Short names of components, before and after the comma of "exchange,correlation".
_EXCHANGE = {"lda": "lda_x", "slater": "lda_x"}
_CORRELATION = {
    "vwn": "lda_c_vwn",
    "vwn5": "lda_c_vwn",
    "vwn3": "lda_c_vwn_rpa",
    "vwnrpa": "lda_c_vwn_rpa",
}
# Functionals whose dispersion correction takes the place of the VV10 of another.
INSTEAD_OF_VV10 = {"wb97x": "wb97x-v", "wb97m": "wb97m-v"}
_SPELLED_BY_DAMPING = {"bhandhlyp": "bhlyp"}  # in the packages that have the parameters
_DISPERSION = re.compile(r"(.*\S)\s*[-_](d3bj|d4)\s*", re.DOTALL)
_FAMILIES = ("lda", "gga", "mgga", "hyb_lda", "hyb_gga", "hyb_mgga")
_NARGUMENT = {"sr_hf": 1, "lr_hf": 1, "vv10": 2, "rsh": 3}
_EXPLAINED = {
    "sr_hf": "exact exchange of short range is 'sr_hf(omega)', such as 'sr_hf(0.11)'",
    "lr_hf": "exact exchange of long range is 'lr_hf(omega)', such as 'lr_hf(0.33)'",
    "vv10": "nonlocal correlation is 'vv10(b; C)', such as 'vv10(6; 0.01)'",
    "rsh": "range-separated exchange is 'rsh(alpha; beta; omega)', as 'rsh(0.65; -0.46; 0.33)'",
}

_CORRECTION = "A dispersion correction is -d3bj or -d4 at the end."

_TERM = re.compile(
    r"\s*([+-]?)\s*(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*\*\s*)?"
    r"([a-z]\w*(?:-\w+)*|\d+(?![\w.]))\s*(?:\(([^()]*)\)\s*)?"
)


class FunctionalTerms(NamedTuple):
    """What an expression adds up to; as in `Functional`."""

    exchange_fraction: float
    components: tuple[tuple[float, str], ...]
    attenuated_fraction: float
    omega: float
    nonlocal_correlation: tuple[tuple[float, float, float], ...]
    dispersion: tuple[str, str] | None = None


@lru_cache(maxsize=256)
def parse(name: str) -> FunctionalTerms:
    """The terms of a name or an expression, with a dispersion correction where it ends in one.

    Raises:
        FunctionalNotFoundError: if a name in it is not known, or the expression is not one.
    """
    corrected = _DISPERSION.fullmatch(name.lower())
    if corrected is None:
        return _parse(name)
    base, model = corrected.groups()
    dispersion = model, damping_name(base)
    if _squash(base) in INSTEAD_OF_VV10:
        whole = _parse(INSTEAD_OF_VV10[_squash(base)])
        return whole._replace(nonlocal_correlation=(), dispersion=dispersion)
    return _parse(base)._replace(dispersion=dispersion)


def damping_name(name: str) -> str:
    """A functional as the packages of dispersion corrections spell it."""
    found = _find(name.lower().strip(), "") or name
    plain = _squash(re.sub(r"^(hyb_)?(lda|gga|mgga)_xc_", "", found))
    return _SPELLED_BY_DAMPING.get(plain, plain)


def _parse(name: str) -> FunctionalTerms:
    weights = _expand(name)
    if not any(weights.values()):
        raise FunctionalNotFoundError(f"functional {name!r} adds up to nothing.")
    full = weights.pop(("hf",), 0.0)
    ranges = {key: weights.pop(key) for key in list(weights) if key[0] in ("sr_hf", "lr_hf")}
    omegas = sorted({omega for _, omega in ranges})
    if len(omegas) > 1:
        raise FunctionalNotFoundError(
            f"functional {name!r} separates ranges with omega = {omegas[0]:g} and {omegas[1]:g}; "
            "one value is supported."
        )
    attenuated, omega = 0.0, 0.0
    if omegas:
        omega = omegas[0]
        near = full + ranges.get(("sr_hf", omega), 0.0)
        far = full + ranges.get(("lr_hf", omega), 0.0)
        # The parts that PySCF takes: they matter in density fitting, which is not linear.
        if far == 0:
            full, attenuated, omega = 0.0, near, -omega
        elif near == 0:
            full, attenuated = 0.0, far
        else:
            full, attenuated = near, far - near
    nonlocal_terms = [(weights.pop(key), *key[1:]) for key in list(weights) if key[0] == "vv10"]
    components = tuple((weight, _label(*key)) for key, weight in weights.items() if weight != 0)
    return FunctionalTerms(full, components, attenuated, omega, tuple(nonlocal_terms))


def _label(part, *arguments):
    return part + (f"({'; '.join(map(repr, arguments))})" if arguments else "")


def _expand(name: str) -> dict[tuple, float]:
    """Weights of components, exact exchange and VV10, each with its arguments, in `name`."""
    sides = name.lower().replace("ω", "w").split(",")
    if len(sides) > 2 or not "".join(sides).strip():
        raise FunctionalNotFoundError(
            f"functional {name!r} is not understood: write one name, such as 'pbe', "
            "or 'exchange,correlation', such as 'b88,lyp'."
        )
    kinds = ("",) if len(sides) == 1 else ("x", "c")
    weights: dict[tuple, float] = {}
    for side, kind in zip(sides, kinds, strict=True):
        for factor, term, arguments in _terms(side.rstrip(), kind, name):
            for part, weight in _resolve(term, arguments, kind, name).items():
                weights[part] = weights.get(part, 0.0) + factor * weight
    return weights


def _terms(side: str, kind: str, name: str) -> Iterator[tuple[float, str, str | None]]:
    """Factor, name and arguments of each term. A dash joins ("b97-d") where that is a name."""
    position = 0
    while position < len(side):
        match = _TERM.match(side, position)
        if match is None or (position > 0 and not match[1]):
            raise FunctionalNotFoundError(
                f"functional {name!r} is not understood at {side[position:].strip()!r}: "
                "write sums such as '0.5*hf + 0.5*b88'."
            )
        whole = term = match[3]
        while "-" in term and _find(term, kind) is None:
            term = term.rpartition("-")[0]
        if term != whole and _find(term, kind) is None:
            term = whole
        if position > 0 and side[position : match.start(3)] == "-" and "_" not in term:
            left, right = side[:position], side[match.start(3) :]
            raise FunctionalNotFoundError(
                f"functional {name!r} is not known{_nearest(name)}. A difference is written with "
                f"spaces, '{left} - {right}', exchange and correlation as '{left},{right}'. "
                + _CORRECTION
            )
        factor = float(match[1] + (match[2] or "1"))
        if not math.isfinite(factor):
            raise FunctionalNotFoundError(f"functional {name!r} has a factor of {match[2]}.")
        position = match.end() if term == whole else match.start(3) + len(term)
        yield factor, term, match[4] if term == whole else None


def _resolve(term: str, arguments: str | None, kind: str, name: str) -> dict[tuple, float]:
    """Weights of what one term means; `kind` is "x" or "c" on a side of the comma, else empty."""
    found = _find(term, kind)
    if found is None:
        raise _not_found(term, name)
    if found in FUNCTIONALS and arguments is None:
        return {(found,): 1.0} if found == "hf" else _expand(FUNCTIONALS[found])
    values = _arguments(found, arguments, name)
    if found == "rsh":
        alpha, beta, omega = values
        return {("sr_hf", omega): alpha + beta, ("lr_hf", omega): alpha}
    component = COMPONENTS.get(found)
    beside = _expand(component.beside) if component and component.beside else {}
    return {(found, *values): 1.0} | beside


def _arguments(found: str, arguments: str | None, name: str) -> tuple[float, ...]:
    expected = _NARGUMENT.get(found, 0 if arguments is None else 1)
    try:
        values = tuple(float(x) for x in arguments.split(";")) if arguments is not None else ()
    except ValueError:
        values = None
    takes_omega = found in _NARGUMENT or found in ("gga_x_ityh", "gga_x_wpbeh")
    plain = f"{found!r} takes {'omega alone' if takes_omega else 'no argument'}"
    hint = _EXPLAINED.get(found, plain)
    if values is None or len(values) != expected or (values and not takes_omega):
        raise FunctionalNotFoundError(f"functional {name!r} is not understood: {hint}.")
    if values and found != "vv10" and not 0 < values[-1] < math.inf:
        raise FunctionalNotFoundError(
            f"functional {name!r} has omega = {values[-1]:g} bohr⁻¹; it must be positive."
        )
    if not all(map(math.isfinite, values)) or (found == "vv10" and min(values) <= 0):
        raise FunctionalNotFoundError(f"functional {name!r} is not understood: {hint}.")
    return values


def _find(term: str, kind: str) -> str | None:
    """Key of FUNCTIONALS, COMPONENTS or of exact exchange that a term means; dashes and
    underscores do not count."""
    if term.isdigit():
        term = IDENTIFIERS.get(int(term), term)
    squashed = _squash(term)
    if squashed == "hf":
        return "hf"
    special = next((key for key in _NARGUMENT if _squash(key) == squashed), None)
    if special is not None:
        return special
    wholes = {_squash(key): key for key in FUNCTIONALS} if not kind else {}
    wholes |= {_squash(key): whole for key, whole in _SYNONYMS.items()} if not kind else {}
    parts = {_squash(key): key for key in COMPONENTS}
    for table in (parts, wholes):
        if squashed in table:
            return table[squashed]
    for one in (kind,) if kind else ("xc", "x", "c"):
        short = {"x": _EXCHANGE, "c": _CORRELATION}.get(one, {}).get(squashed)
        if short is not None:
            return short
        for family in _FAMILIES:
            part = parts.get(_squash(f"{family}_{one}_{term}"))
            if part is not None:
                return part
    return None


def _squash(name: str) -> str:
    return re.sub("[-_]", "", name)


def _nearest(term: str) -> str:
    known = [*FUNCTIONALS, *_SYNONYMS, *_EXCHANGE, *_CORRELATION, *COMPONENTS]
    known += [part.removeprefix("hyb_").split("_", 2)[-1] for part in COMPONENTS]
    near = difflib.get_close_matches(term.lower(), dict.fromkeys(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


def _not_found(term: str, name: str) -> FunctionalNotFoundError:
    return FunctionalNotFoundError(
        f"functional {name!r} is not known"
        + (f" (part {term!r})" if term != name.lower() else "")
        + _nearest(term)
        + f". Whole functionals: {', '.join(FUNCTIONALS)}; components, summed with factors: "
        + f"{', '.join(COMPONENTS)}. {_CORRECTION}"
    )
