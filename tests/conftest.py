"""Settings of every test: float64, strict promotion, and annotations checked at run time."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

install_import_hook(["qchem", "srdft"], "beartype.beartype")
