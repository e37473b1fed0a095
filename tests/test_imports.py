"""Who may import whom: every module of qchem depends downwards only, and srdft on qchem alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPENDS_ON = {  # directly; what these depend on is allowed too
    "errors": (),
    "units": (),
    "chunking": (),
    "derivatives": (),
    "fingerprint": (),
    "linear_algebra": (),
    "compilation": ("fingerprint", "linear_algebra"),
    "data": (),
    "precision": ("errors",),
    "devices": ("errors", "compilation", "derivatives"),
    "molecule": ("errors", "units"),
    "basis": ("molecule", "chunking", "compilation", "derivatives"),
    "atomic_grid": ("molecule",),
    "becke": ("atomic_grid", "compilation"),
    "grids": ("becke", "chunking", "devices"),
    "integrals": ("basis", "devices"),
    "xc": ("basis", "grids"),
    "jk": ("integrals",),
    "dispersion": ("xc",),
    "metric": ("devices",),
    "fitted_jk": ("jk", "metric"),
    "fitted_energy": ("fitted_jk",),
    "coulomb_fitting": ("fitted_jk",),
    "scf": ("coulomb_fitting", "fitted_energy", "dispersion", "compilation", "precision"),
    "properties": ("scf",),
    "padding": ("properties",),
    "memory": ("scf",),
    "result": ("padding", "memory"),
    "energy_function": ("properties",),
    "calculation": ("result", "energy_function"),
    "batches": ("calculation",),
    "__init__": ("batches", "compilation"),
    "ase": ("calculation",),
    "validate": ("__init__", "data"),
    "command": ("errors", "compilation"),
    "cli": ("validate", "command"),
    "__main__": ("cli", "command"),
}
MATHEMATICS = ("xc/functionals",) + tuple(
    f"integrals/{name}" for name in ("gather", "boys", "hermite", "coulomb")
)
FILES = [
    path.relative_to(ROOT)
    for package in ("qchem", "srdft")
    for path in (ROOT / package).rglob("*.py")
]


def below(module: str) -> set[str]:
    """The module itself and everything that it may import."""
    return {module}.union(*(below(other) for other in DEPENDS_ON[module]))


def is_mathematics(path: str) -> bool:
    return path.removeprefix("qchem/").startswith(MATHEMATICS)


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in the file."""
    package = path.parent.parts
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *(node.module or "").split("."))).strip(".")
            names = [alias.name for alias in node.names]
            found |= {base} if base not in ("qchem", "srdft") else {f"{base}.{n}" for n in names}
    return found


def part(name: str) -> str:
    """The entry of DEPENDS_ON for a dotted name or path; names of the package itself are public."""
    second = [*name.removesuffix(".py").replace("/", ".").split("."), "__init__"][1]
    return second if second in DEPENDS_ON else "__init__"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    names = imports(path)
    assert not {name for name in names if name.split(".")[0] == "pyscf"}
    ours = {name for name in names if name.split(".")[0] in ("qchem", "srdft")}
    if path.parts[0] == "srdft":
        commands = path.name in ("__main__.py", "cli.py")
        public = {"__init__", "command", "errors"} if commands else {"__init__"}
        assert all(name.startswith("srdft") or part(name) in public for name in ours)
        return
    assert path.parts[1].removesuffix(".py") in DEPENDS_ON, "a new module: give it a place here"
    assert not {name for name in ours if name.startswith("srdft")}
    allowed = below(part(str(path)))
    assert {part(name) for name in ours} <= allowed
    if is_mathematics(str(path)) and path.name != "__init__.py":
        others = {name for name in ours if not is_mathematics(name.replace(".", "/"))}
        assert not others, "mathematics imports JAX and nothing else of ours"
