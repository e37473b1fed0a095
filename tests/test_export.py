"""The main programs lower for accelerators that are not at hand."""

import jax
import numpy as np
import pytest
from jax import export

import qchem
from tests.test_precision import function_of, programs

SHORT = ("energy and gradient of orbitals", "solve")


def lowered(program, arguments, platform):
    with qchem.traced_for(platform):
        exported = export.export(jax.jit(program), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    return exported.mlir_module()


@pytest.mark.parametrize(
    "platform, dtype, precision",
    [
        ("cuda", "float64", "double"),
        ("cuda", "float64", "mixed"),
        ("cuda", "float32", "double"),
        ("tpu", "float32", "double"),
        ("tpu", "float64", "mixed"),
    ],
)
def test_main_programs_lower(platform, dtype, precision):
    with qchem.traced_for(platform):
        function = function_of("pbe", "df", precision=precision)
    for name in SHORT:
        program, *arguments = programs(function, dtype)[name]
        text = lowered(program, arguments, platform)
        assert ("cusolver" in text) == (platform == "cuda"), name


def test_hartree_fock_with_exact_integrals_lowers():
    program, *arguments = programs(function_of("hf", "exact"), "float32")["solve"]
    for platform in ("cuda", "tpu"):
        assert lowered(program, arguments, platform)


def test_no_double_is_left_without_64_bits():
    function = function_of("hf", "exact")
    with jax.enable_x64(False):
        program, *arguments = programs(function, "float32")["energy and gradient of orbitals"]
        assert "f64" not in lowered(program, arguments, "tpu")


def test_what_is_lowered_is_the_form_of_the_accelerator():
    """On a CPU, R stands behind a branch that is always taken; elsewhere nothing does."""
    program, *arguments = programs(function_of("hf", "exact"), "float64")["hamiltonian"]

    def branches():
        return lowered_text().count("stablehlo.case")

    def lowered_text():
        return export.export(jax.jit(program), platforms=["cuda"])(*arguments).mlir_module()

    on_cpu = branches()
    with qchem.traced_for("cuda"):
        assert qchem.platform() == "gpu"
        assert branches() < on_cpu
    assert branches() == on_cpu  # nothing of the other platform is left in JAX's caches
    assert qchem.platform() == jax.default_backend()


def test_chunks_are_those_of_the_platform():
    numbers = np.array([1, 1])
    basis = qchem.Basis.from_name(numbers, "sto-3g")
    build = lambda: qchem.Method.build((1, 1), basis, qchem.Functional.from_name("pbe"))  # noqa: E731
    with qchem.traced_for("tpu"):
        there = build().chunk
    with qchem.traced_for("cpu"):
        assert build().chunk < there
