"""The main programs lower for accelerators that are not at hand."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import qchem
from srdft.family import MoleculeFamily, Orbitals
from srdft.kernels import kernel_from_name
from srdft.optimizers import FirstOrder
from srdft.orbitals import occupied_orbitals, orbitals
from srdft.potential import TotalDrift
from srdft.sampler import Sampler
from srdft.trainer import Plan, Trainer, _sampled, _updated
from tests.test_precision import POSITIONS, function_of, programs

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
    """On a CPU, R is what another function returns; elsewhere nothing is."""
    program, *arguments = programs(function_of("hf", "exact"), "float64")["hamiltonian"]

    def functions():
        return lowered_text().count('inlineable = "false"')

    def lowered_text():
        return export.export(jax.jit(program), platforms=["cuda"])(*arguments).mlir_module()

    on_cpu = functions()
    with qchem.traced_for("cuda"):
        assert qchem.platform() == "gpu"
        assert functions() == 0 < on_cpu
    assert functions() == on_cpu  # nothing of the other platform is left in JAX's caches
    assert qchem.platform() == jax.default_backend()


def test_chunks_are_those_of_the_platform():
    method = function_of("pbe", "exact").method

    def chunk():
        hamiltonian, _ = eqx.filter_eval_shape(method.hamiltonian, POSITIONS)
        return hamiltonian.xc.points.quadrature.shape[1]

    on_cpu = chunk()
    with qchem.traced_for("tpu"):
        assert chunk() > on_cpu


class Fock(eqx.Module):
    """A model: the orbitals of one Fock matrix, which is what it learns."""

    fock: jax.Array

    def orbitals(self, molecule):
        overlap, nocc = molecule.hamiltonian.overlap, molecule.family.nocc
        mo_coeff, mo_energy = orbitals(self.fock, overlap)
        factor = occupied_orbitals(self.fock, overlap, mo_coeff, mo_energy, nocc)
        return Orbitals(factor, mo_coeff)


@pytest.mark.parametrize("platform, dtype", [("cuda", "float64"), ("tpu", "float32")])
def test_training_and_sampling_steps_lower(platform, dtype):
    settings = {"basis": "sto-3g", "xc": "pbe", "two_electron": "df", "grid": (8, 26)}
    with qchem.traced_for(platform):
        family = MoleculeFamily.build((1, 1), **settings)
        drift, kernel = TotalDrift(family.energy_fn), kernel_from_name("mala")
        sampler = Sampler(drift, kernel, family.numbers, (500.0,), guard=4.0, warmup=1)
        plan = Plan(
            steps=4,
            pretrain_steps=1,
            reuse=1,
            keep_hot=False,
            batch=2,
            transitions=1,
            refresh_every=1,
            data_share=0.2,
            seed=1,
        )
        optimizer = FirstOrder.adam(plan.total, learning_rate=0.02, warmup_steps=1)
        trainer = Trainer([family], [sampler], optimizer, plan)
        model = Fock(-jnp.eye(2, dtype=dtype)[None])
        batch = jnp.asarray(np.stack([POSITIONS, POSITIONS]), dtype)
        updated = partial(_updated, optimizer, trainer.families, trainer.workers)
        update = model, optimizer.init(model), (batch,)
        assert lowered(*flattened(updated, *update), platform)
        chains = sampler.init(model, batch, 1e-2)
        sampled = partial(_sampled, sampler, trainer.workers, plan.transitions)
        sample = model, chains, jax.random.key(0), jnp.asarray(True)
        assert lowered(*flattened(sampled, *sample), platform)


def flattened(function, *arguments):
    """A function of arrays alone, and these."""
    arrays, rest = eqx.partition(arguments, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)

    def of_arrays(*leaves):
        done = function(*eqx.combine(jax.tree.unflatten(tree, leaves), rest))
        return [x for x in jax.tree.leaves(done) if x.dtype.kind in "fiub"]

    return of_arrays, leaves
