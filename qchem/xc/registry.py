"""The table of functionals: a line for each energy density, a line for each whole functional."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxtyping import Array, Float

from .functionals.attenuation import gga_x_ityh
from .functionals.b88 import gga_x_b88
from .functionals.b97 import (
    gga_xc_b97_d,
    hyb_gga_xc_b97,
    hyb_gga_xc_b97_1,
    hyb_gga_xc_b97_2,
    hyb_gga_xc_b97_3,
    hyb_gga_xc_wb97,
    hyb_gga_xc_wb97x,
    hyb_gga_xc_wb97x_d,
    hyb_gga_xc_wb97x_d3,
    hyb_gga_xc_wb97x_v,
    hyb_mgga_xc_wb97m_v,
)
from .functionals.lyp import gga_c_lyp
from .functionals.m06 import (
    hyb_mgga_x_m06,
    hyb_mgga_x_m06_2x,
    mgga_c_m06,
    mgga_c_m06_2x,
    mgga_c_m06_l,
    mgga_x_m06_l,
)
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
from .functionals.pw91 import gga_c_pw91, gga_x_pw91
from .functionals.pw92 import lda_c_pw, lda_c_pw_mod
from .functionals.pz81 import lda_c_pz
from .functionals.scan import mgga_c_r2scan, mgga_c_scan, mgga_x_r2scan, mgga_x_scan
from .functionals.slater import lda_x
from .functionals.tpss import mgga_c_revtpss, mgga_c_tpss, mgga_x_revtpss, mgga_x_tpss
from .functionals.vwn import lda_c_vwn, lda_c_vwn_rpa
from .functionals.wpbeh import gga_x_wpbeh


class Component(NamedTuple):
    """One energy density of libxc's.

    Attributes:
        energy_density: hartree/bohr³; where it takes `omega` (bohr⁻¹), so does the name:
            "gga_x_wpbeh(0.4)".
        threshold: The density below which libxc sets it to zero, bohr⁻³.
        beside: What else libxc means by the name, as an expression: exact exchange, VV10.
    """

    energy_density: Callable[..., Float[Array, " npoint"]]
    threshold: float = 1e-15
    beside: str = ""


def component(part: str) -> Component:
    """The component of a name, such as "gga_x_b88" or "gga_x_wpbeh(0.4)"."""
    name, _, omega = part.rstrip(")").partition("(")
    found = COMPONENTS[name]
    if not omega:
        return found
    return found._replace(energy_density=partial(found.energy_density, omega=float(omega)))


COMPONENTS = {
    "lda_x": Component(lda_x),
    "lda_c_vwn": Component(lda_c_vwn),
    "lda_c_vwn_rpa": Component(lda_c_vwn_rpa),
    "lda_c_pw": Component(lda_c_pw),
    "lda_c_pw_mod": Component(lda_c_pw_mod),
    "lda_c_pz": Component(lda_c_pz),
    "gga_x_b88": Component(gga_x_b88),
    "gga_x_optx": Component(gga_x_optx),
    "gga_x_pw91": Component(gga_x_pw91),
    "gga_x_pbe": Component(gga_x_pbe),
    "gga_x_pbe_r": Component(gga_x_pbe_r),
    "gga_x_rpbe": Component(gga_x_rpbe),
    "gga_x_pbe_sol": Component(gga_x_pbe_sol),
    "gga_c_pbe": Component(gga_c_pbe, 1e-12),
    "gga_c_pbe_sol": Component(gga_c_pbe_sol, 1e-12),
    "gga_c_p86": Component(gga_c_p86),
    "gga_c_lyp": Component(gga_c_lyp, 1e-14),
    "gga_x_ityh": Component(gga_x_ityh, 1e-14),
    "gga_x_wpbeh": Component(gga_x_wpbeh, 1e-14),
    "gga_xc_b97_d": Component(gga_xc_b97_d, 1e-14),
    "hyb_gga_xc_b97": Component(hyb_gga_xc_b97, 1e-14, "0.1943*hf"),
    "hyb_gga_xc_b97_1": Component(hyb_gga_xc_b97_1, 1e-14, "0.21*hf"),
    "hyb_gga_xc_b97_2": Component(hyb_gga_xc_b97_2, 1e-14, "0.21*hf"),
    "hyb_gga_xc_b97_3": Component(hyb_gga_xc_b97_3, 1e-14, "0.269288*hf"),
    "hyb_gga_xc_wb97": Component(hyb_gga_xc_wb97, 1e-14, "lr_hf(0.4)"),
    "hyb_gga_xc_wb97x": Component(hyb_gga_xc_wb97x, 1e-14, "0.157706*sr_hf(0.3) + lr_hf(0.3)"),
    "hyb_gga_xc_wb97x_d": Component(hyb_gga_xc_wb97x_d, 1e-14, "0.222036*sr_hf(0.2) + lr_hf(0.2)"),
    "hyb_gga_xc_wb97x_d3": Component(
        hyb_gga_xc_wb97x_d3, 1e-14, "0.195728*sr_hf(0.25) + lr_hf(0.25)"
    ),
    "hyb_gga_xc_wb97x_v": Component(
        hyb_gga_xc_wb97x_v, 1e-14, "0.167*sr_hf(0.3) + lr_hf(0.3) + vv10(6; 0.01)"
    ),
    "gga_c_pw91": Component(gga_c_pw91, 1e-12),
    "mgga_x_tpss": Component(mgga_x_tpss),
    "mgga_x_revtpss": Component(mgga_x_revtpss),
    "mgga_x_scan": Component(mgga_x_scan),
    "mgga_x_r2scan": Component(mgga_x_r2scan, 1e-11),
    "mgga_x_m06_l": Component(mgga_x_m06_l),
    "hyb_mgga_x_m06": Component(hyb_mgga_x_m06, beside="0.27*hf"),
    "hyb_mgga_x_m06_2x": Component(hyb_mgga_x_m06_2x, beside="0.54*hf"),
    "mgga_c_tpss": Component(mgga_c_tpss),
    "mgga_c_revtpss": Component(mgga_c_revtpss, 1e-13),
    "mgga_c_scan": Component(mgga_c_scan),
    "mgga_c_r2scan": Component(mgga_c_r2scan),
    "mgga_c_m06_l": Component(mgga_c_m06_l, 1e-12),
    "mgga_c_m06": Component(mgga_c_m06, 1e-12),
    "mgga_c_m06_2x": Component(mgga_c_m06_2x, 1e-12),
    "hyb_mgga_xc_wb97m_v": Component(
        hyb_mgga_xc_wb97m_v, 1e-13, "0.15*sr_hf(0.3) + lr_hf(0.3) + vv10(6; 0.01)"
    ),
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
    "pw91": "gga_x_pw91 + gga_c_pw91",
    "tpss": "mgga_x_tpss + mgga_c_tpss",
    "revtpss": "mgga_x_revtpss + mgga_c_revtpss",
    "scan": "mgga_x_scan + mgga_c_scan",
    "r2scan": "mgga_x_r2scan + mgga_c_r2scan",
    "m06_l": "mgga_x_m06_l + mgga_c_m06_l",
    "tpssh": "0.1*hf + 0.9*mgga_x_tpss + mgga_c_tpss",
    "r2scan0": "0.25*hf + 0.75*mgga_x_r2scan + mgga_c_r2scan",
    "m06": "hyb_mgga_x_m06 + mgga_c_m06",
    "m06_2x": "hyb_mgga_x_m06_2x + mgga_c_m06_2x",
    "b97-d": "gga_xc_b97_d",
    "b97": "hyb_gga_xc_b97",
    "b97-1": "hyb_gga_xc_b97_1",
    "b97-2": "hyb_gga_xc_b97_2",
    "b97-3": "hyb_gga_xc_b97_3",
    "cam-b3lyp": "0.19*sr_hf(0.33) + 0.65*lr_hf(0.33) + 0.35*gga_x_b88 + 0.46*gga_x_ityh(0.33)"
    " + 0.19*lda_c_vwn + 0.81*gga_c_lyp",
    "lc-wpbe": "lr_hf(0.4) + gga_x_wpbeh(0.4) + gga_c_pbe",
    "hse06": "0.25*sr_hf(0.11) + gga_x_wpbeh - 0.25*gga_x_wpbeh(0.11) + gga_c_pbe",
    "wb97": "hyb_gga_xc_wb97",
    "wb97x": "hyb_gga_xc_wb97x",
    "wb97x-d": "hyb_gga_xc_wb97x_d",
    "wb97x-d3": "hyb_gga_xc_wb97x_d3",
    "wb97x-v": "hyb_gga_xc_wb97x_v",
    "wb97m-v": "hyb_mgga_xc_wb97m_v",
}
