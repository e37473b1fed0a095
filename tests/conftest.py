"""Settings of every test: float64, strict promotion, and annotations checked at run time."""

import gc
import os
from importlib.metadata import version

# The compiler's options that `qchem.program` chooses: half of the time of all tests. Before JAX is
# imported; processes that tests start have them too. A flag that XLA does not know ends Python.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_disable_hlo_passes=cpu-parallel-task-assigner", os.environ.get("XLA_FLAGS", "")]
    + ["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10.")
)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

install_import_hook(["qchem", "srdft"], "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drop compiled programs after each module: all of them together need more memory mappings
    than Linux gives a process (65530), and then XLA crashes. Garbage is collected then, and not
    while functions are traced: a tenth of the time of all tests."""
    gc.disable()
    yield
    jax.clear_caches()
    gc.enable()
    gc.collect()
