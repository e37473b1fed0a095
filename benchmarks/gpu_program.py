"""What does XLA make of our programs for a GPU? Kernels, bytes and memory; no GPU is needed.

JAX's CUDA plugin (`pip install ".[cuda13]"`) compiles for a device that is described to it. From
the optimized program each kernel's bytes are counted, what it reads and what it writes, times the
trips of the loops it is in; a lower bound of the time is that of moving them, or of launching it.
Simple kernels come near that bound on the device; those that concatenate or sum what differs from
thread to thread do not: they are the ones to look for among the largest. Branches of a condition
and loops of unknown length count once.

Tuning by trial, which needs the device, is left out, so that the device may get other kernels for
matrix products.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro

import qchem
from benchmarks.measure import configure_jax, program_bytes
from benchmarks.molecules import Name, geometries, molecule
from benchmarks.report import Report

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4814000000000 l2_cache_size: 62914560 device_memory_size: 150000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""
BANDWIDTH = 4.0e12  # bytes a second, of the 4.8e12 of the data sheet
LAUNCH = 2.5e-6  # seconds, assumed
PRINTED = "molecule program chunk compile_s temporary_gb kernels gb least_ms".split()
# Bytes; s8 is what a library has for its own use.
_SIZES = {"pred": 1, "s8": 0, "u8": 1, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f32": 4, "f64": 8}
_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


@dataclass(frozen=True)
class Options:
    """Which program."""

    molecule: Name = "ethanol"
    program: Literal["energy", "gradient", "converged"] = "gradient"
    """Energy, or energy with gradient, at given orbitals; converged energy with gradient."""
    chunk: int = 64
    """Geometries at once."""
    xc: str = "b3lyp"
    basis: str = "def2-svp"
    grid: int = 3
    largest: int = 20
    """Kernels to list."""
    out: Path | None = None
    """Append to this file instead of results/gpu_program.json."""


@dataclass
class Instruction:
    """A line of a program's text."""

    name: str
    type: str
    kind: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        depth, end = 0, len(self.rest)
        for place, character in enumerate(self.rest):
            depth += (character == "(") - (character == ")")
            if depth < 0:
                end = place
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    def called(self, key: str) -> list[str]:
        """Computations named after `key`."""
        return re.findall(rf"{key}=\{{?%?([\w.\-]+)", self.rest)


@dataclass
class Kernel:
    """One kernel of a program.

    Attributes:
        loops: Trips of the loops around it, the outermost first.
        bytes: Read and written at each run.
    """

    name: str
    type: str
    where: str
    bytes: int
    loops: tuple[int, ...] = ()

    @property
    def runs(self) -> int:
        """How often it is launched."""
        product = 1
        for trips in self.loops:
            product *= trips
        return product

    @property
    def least_s(self) -> float:
        """Time of all runs at the memory's rate."""
        return self.runs * max(LAUNCH, self.bytes / BANDWIDTH)


@dataclass
class Program:
    """Computations of an optimized program's text."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""

    @classmethod
    def parse(cls, text: str) -> "Program":
        """From what `compiled.as_text()` returns."""
        program, current = cls(), []
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if start := _COMPUTATION.match(line):
                current = program.computations.setdefault(start[2], [])
                program.entry = start[2] if start[1] else program.entry
            elif found := _INSTRUCTION.match(line):
                current.append(Instruction(*found.groups()[1:]))
        return program

    def kernels(self, computation: str | None = None, loops=()) -> Iterator[Kernel]:
        """All that are launched."""
        name = computation or self.entry
        types = {x.name: x.type for x in self.computations[name]}
        for x in self.computations[name]:
            if x.kind == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', x.rest)
                inner = (*loops, int(trips[1]) if trips else 1)
                yield from self.kernels(x.called("body")[0], inner)
            elif x.kind in ("call", "conditional", "async-start"):
                keys = "to_apply calls branch_computations true_computation false_computation"
                for called in (c for key in keys.split() for c in x.called(key)):
                    yield from self.kernels(called, loops)
            elif x.kind not in _NO_KERNELS:
                moved = sum(array_bytes(types.get(o, "")) for o in x.operands)
                moved += array_bytes(x.type)
                if x.kind == "fusion":
                    moved = self._moved(x)
                where = re.search(r'op_name="([^"]*)"', x.rest)
                yield Kernel(x.name, x.type, where[1] if where else "", moved, loops)

    def _moved(self, fusion):
        """Bytes that a fusion reads and writes: of what it slices or updates only that part."""
        inside = self.computations[fusion.called("calls")[0]]
        types = {x.name: x.type for x in inside}
        uses: dict[str, list[tuple[str, str, int]]] = {}
        for x in inside:
            for place, operand in enumerate(x.operands):
                uses.setdefault(operand, []).append((x.kind, x.type, place))
        moved, parameters = array_bytes(fusion.type), set()
        for x in (x for x in inside if x.kind == "parameter"):
            parameters.add(x.name)
            whole, kinds = array_bytes(x.type), {(u[0], u[2]) for u in uses.get(x.name, [])}
            if kinds and kinds <= {("dynamic-slice", 0), ("slice", 0), ("gather", 0)}:
                whole = min(whole, sum(array_bytes(u[1]) for u in uses[x.name]))
            elif kinds == {("dynamic-update-slice", 0)}:
                whole = 0
            moved += whole
        for x in inside:
            if x.kind == "dynamic-update-slice" and x.operands[0] in parameters:
                moved += array_bytes(types[x.operands[1]]) - array_bytes(x.type)
        return max(moved, 0)


def array_bytes(type: str) -> int:
    """Of an array, or a tuple of arrays, as the text has its type."""
    total = 0
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", type):
        size = _SIZES.get(dtype, 0)
        for n in filter(None, shape.split(",")):
            size *= int(n)
        total += size
    return total


def compiled_for(description: str, function, *args) -> tuple[Any, float]:
    """The program for a described device, and the seconds of its compilation."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(
        "", "cuda", topology="1x1x1", target_config=description
    ).devices
    place = jax.sharding.SingleDeviceSharding(devices[0])
    arrays, fixed = eqx.partition(args, eqx.is_array)
    abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
    start = perf_counter()
    traced = jax.jit(lambda arrays: function(*eqx.combine(arrays, fixed))).trace(
        jax.tree.map(abstract, arrays)
    )
    compiled = traced.lower(lowering_platforms=("cuda",)).compile(
        {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    )
    return compiled, perf_counter() - start


def program_of(options: Options) -> tuple[Any, tuple[Any, ...]]:
    """A function and its arguments."""
    numbers = molecule(options.molecule).numbers
    settings = {"basis": options.basis, "xc": options.xc, "two_electron": "df"}
    energy_fn = qchem.energy_fn(numbers, grid=options.grid, chunk=options.chunk, **settings)
    positions = jnp.asarray(geometries(options.molecule, options.chunk))
    if options.program == "converged":
        return lambda f, r: jax.vmap(jax.value_and_grad(f))(r), (energy_fn, positions)
    method = energy_fn.method
    factor = jnp.zeros((1, method.basis.nao, sum(numbers) // 2))
    both = options.program == "gradient"

    def of_batch(method, positions, factor):
        def one(shared, r):
            energy = jax.value_and_grad(shared[0].energy) if both else shared[0].energy
            return energy(r, shared[1])

        return qchem.map_geometries(one, (method, factor), positions, chunk=options.chunk)

    return of_batch, (method, positions, factor)


def main(options: Options) -> None:
    """Compile, count and report."""
    jax.config.update("jax_platforms", "cpu")  # or else the plugin wants to find a device
    configure_jax()
    with qchem.traced_for("cuda"):
        function, arguments = program_of(options)
        compiled, seconds = compiled_for(H200, function, *arguments)
    kernels = list(Program.parse(compiled.as_text()).kernels())
    report = Report("gpu_program", options.out, tuple(PRINTED))
    report.row(
        molecule=options.molecule,
        basis=options.basis,
        xc=options.xc,
        grid=options.grid,
        device="gpu: NVIDIA H200, described",
        program=options.program,
        chunk=options.chunk,
        compile_s=seconds,
        temporary_gb=program_bytes(compiled) / 1e9,
        kernels=sum(k.runs for k in kernels),
        gb=sum(k.runs * k.bytes for k in kernels) / 1e9,
        least_ms=1e3 * sum(k.least_s for k in kernels),
    )
    loops = Counter()
    for kernel in kernels:
        loops[kernel.loops] += kernel.least_s
    for trips, least in loops.most_common():
        print(f"{1e3 * least:9.2f} ms at least within loops of {trips or 'no'} trips")
    for kernel in sorted(kernels, key=lambda k: -k.least_s)[: options.largest]:
        size, where = kernel.bytes / 1e6, kernel.where[-60:]
        print(
            f"{1e3 * kernel.least_s:9.3f} ms  {kernel.runs:6d} x {size:9.1f} MB  "
            f"{kernel.name}  {kernel.type[:40]}  {where}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
