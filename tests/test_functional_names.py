"""Names and expressions give the functionals that PySCF means by them."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from pyscf.dft import libxc

from qchem.errors import FunctionalNotFoundError
from qchem.xc.functional import FUNCTIONALS, Functional

RTOL = 1e-9  # DESIGN section 4
RHO = np.array([[1e-4, 0.02, 0.3, 5.0], [2e-5, 0.01, 0.1, 3.0]])
SLOPE = np.array([2e-5, 0.02, 0.2, 4.0])
SAME_IN_PYSCF = [
    *FUNCTIONALS,
    "B3LYPG",
    "pbe1pbe",
    "lda",
    "lda,vwn",
    "slater,vwn5",
    "LDA, VWN_RPA",
    "lda,pw",
    "b88,lyp",
    "pbe,",
    ",lyp",
    "pbe,lyp",
    "0.5*hf + 0.5*b88, lyp",
    "0.3*hf+.5*slater+.2*b88,0.5*lyp+0.5*vwn",
    "gga_x_pbe + gga_c_lyp",
    "hyb_gga_xc_b3lyp5",
]


@pytest.mark.parametrize("name", SAME_IN_PYSCF)
def test_name_means_what_pyscf_means(name):
    functional = Functional.from_name(name)
    assert_allclose(functional.exchange_fraction, libxc.hybrid_coeff(name), rtol=1e-15)
    kind = {"HF": "none", "LDA": "lda", "GGA": "gga"}[libxc.xc_type(name)]
    assert functional.ingredients == kind
    if kind == "none":
        assert np.all(functional.energy_density(jnp.asarray(RHO)) == 0)
        return
    given = np.zeros((2, 4, RHO.shape[1]))
    given[:, 0] = RHO
    given[0, 1], given[1, 2] = SLOPE, SLOPE / 2
    exc = libxc.eval_xc(name, given if kind == "gga" else given[:, 0], spin=1)[0]
    sigma = jnp.asarray(np.stack([SLOPE**2, 0 * SLOPE, SLOPE**2 / 4]))
    energy = functional.energy_density(jnp.asarray(RHO), sigma)
    assert_allclose(energy, RHO.sum(axis=0) * exc, rtol=RTOL)


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
    ],
)
def test_unknown_name_offers_what_would_do(name, hint):
    with pytest.raises(FunctionalNotFoundError, match=hint):
        Functional.from_name(name)


def test_functionals_are_equal_by_value():
    assert Functional.from_name("pbe") == Functional.from_name("pbe")
    assert hash(Functional.from_name("pbe")) == hash(Functional.from_name("pbe"))
