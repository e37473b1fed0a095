"""Names and expressions give the functionals that PySCF means by them."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf.dft import libxc, numint

from qchem.errors import FunctionalNotFoundError
from qchem.xc.functional import COMPONENTS, FUNCTIONALS, Functional
from qchem.xc.names import IDENTIFIERS

RTOL = 1e-9  # DESIGN section 4
RHO = np.array([[1e-4, 0.02, 0.3, 5.0], [2e-5, 0.01, 0.1, 3.0]])
SLOPE = np.array([2e-5, 0.02, 0.2, 4.0])
TAU = np.array([[1e-5, 0.03, 0.5, 30.0], [2e-6, 0.02, 0.2, 20.0]])
SAME_IN_PYSCF = [
    *FUNCTIONALS,
    *(str(number) for number in IDENTIFIERS),
    *(name.upper() for name in IDENTIFIERS.values()),
    "B3LYPG",
    "pbe1pbe",
    "camb3lyp",
    "CAM-B3LYP",
    "wb97x-d",
    "M06-2X",
    "b97-2",
    "lda",
    "lda,vwn",
    "slater,vwn5",
    "LDA, VWN_RPA",
    "lda,pw",
    "b88,lyp",
    "106,131",
    "pbe,",
    ",lyp",
    "pbe,lyp",
    "0.5*hf + 0.5*b88, lyp",
    "0.3*hf+.5*slater+.2*b88,0.5*lyp+0.5*vwn",
    "gga_x_pbe + gga_c_lyp",
    "blyp - gga_c_lyp",
    "blyp-gga_c_lyp",
    "hf - 0.5*lr_hf(0.3) + gga_c_lyp",
    "0.2*sr_hf(0.25) + 0.7*lr_hf(0.25), pbe",
    "rsh(0.65; -0.46; 0.33) + pbe",
]


@pytest.mark.parametrize("name", SAME_IN_PYSCF)
def test_name_means_what_pyscf_means(name):
    functional = Functional.from_name(name)
    # PySCF takes the first for a difference, the second for a dispersion correction.
    theirs = name.replace("lc-", "lc_").replace("-d3", "_d3")
    omega, alpha, hyb = numint.NumInt().rsh_and_hybrid_coeff(theirs)
    # Fractions of full and of attenuated exchange as PySCF builds them
    if omega == 0 or alpha == hyb == 0:
        exchange = hyb, 0, 0
    elif alpha == 0:
        exchange = 0, hyb, -omega
    else:
        exchange = hyb, alpha - hyb, omega
    measured = functional.exchange_fraction, functional.attenuated_fraction, functional.omega
    assert_allclose(measured, exchange, rtol=1e-14, atol=1e-15)
    nonlocal_terms = [(weight, *pars) for pars, weight in libxc.nlc_coeff(theirs)]
    assert list(functional.nonlocal_correlation) == nonlocal_terms
    kind = {"HF": "none", "LDA": "lda", "GGA": "gga", "MGGA": "mgga"}[libxc.xc_type(theirs)]
    assert functional.ingredients == kind
    if kind == "none":
        assert np.all(functional.energy_density(jnp.asarray(RHO)) == 0)
        return
    given = np.zeros((2, 5, RHO.shape[1]))
    given[:, 0], given[:, 4] = RHO, TAU
    given[0, 1], given[1, 2] = SLOPE, SLOPE / 2
    given = {"lda": given[:, 0], "gga": given[:, :4], "mgga": given}[kind]
    exc = libxc.eval_xc(theirs, given, spin=1)[0]
    sigma = jnp.asarray(np.stack([SLOPE**2, 0 * SLOPE, SLOPE**2 / 4]))
    energy = functional.energy_density(jnp.asarray(RHO), sigma, jnp.asarray(TAU))
    assert_allclose(energy, RHO.sum(axis=0) * exc, rtol=RTOL)


def test_every_component_has_its_number():
    assert set(COMPONENTS) <= set(IDENTIFIERS.values())
    for number, name in IDENTIFIERS.items():
        assert libxc.XC_CODES[name.upper()] == number


@pytest.mark.parametrize("name", ["lc-wpbe", "LC_WPBE", "lcwpbe", "hyb_gga_xc_lc_wpbe"])
def test_dashes_and_underscores_do_not_count(name):
    functional = Functional.from_name(name)
    assert functional.components == Functional.from_name("lc-wpbe").components


def test_tuned_range_separation():
    functional = Functional.from_name("lr_hf(0.27) + gga_x_wpbeh(0.27) + gga_c_pbe")
    assert functional.attenuated_fraction == 1
    assert functional.omega == 0.27
    assert (1.0, "gga_x_wpbeh(0.27)") in functional.components
    assert Functional.from_name("ωb97x-v").nonlocal_correlation == ((1.0, 6.0, 0.01),)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("b3lpy", "b3lyp"),
        ("pbe,lpy", "lyp"),
        ("gga_x_pbee", "gga_x_pbe"),
        ("nonsense", "Whole functionals: hf, svwn"),
        ("", "write one name"),
        (",", "write one name"),
        ("a,b,c", "write one name"),
        ("0.5pbe", "write sums"),
        ("pbe+", "write sums"),
        ("b3lyp,lyp", "b3lyp"),
        ("b97-5", "b97-2"),
        ("99999", "is not known"),
        ("M06-HF", "nearest: m06.*'m06 - hf'.*'m06,hf'"),
        ("b88-lyp", "'b88,lyp'"),
        ("pbe-1", "'pbe - 1'"),
        ("pbe - pbe", "adds up to nothing"),
        ("1e400*pbe", "factor of 1e400"),
        ("lr_hf", "lr_hf\\(omega\\)"),
        ("sr_hf(-0.1)", "must be positive"),
        ("lr_hf(nan)", "must be positive"),
        ("gga_x_wpbeh(inf)", "must be positive"),
        ("vv10(nan; 1)", "vv10\\(b; C\\)"),
        ("vv10(6)", "vv10\\(b; C\\)"),
        ("lda_x(0.3)", "takes no argument"),
        ("gga_x_wpbeh(a)", "takes omega alone"),
        ("sr_hf(0.1) + lr_hf(0.2)", "one value is supported"),
    ],
)
def test_unknown_name_offers_what_would_do(name, hint):
    with pytest.raises(FunctionalNotFoundError, match=hint):
        Functional.from_name(name)


def test_functionals_are_equal_by_value():
    assert Functional.from_name("pbe") == Functional.from_name("pbe")
    assert hash(Functional.from_name("pbe")) == hash(Functional.from_name("pbe"))
