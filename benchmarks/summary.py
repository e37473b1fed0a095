"""What is asked of the speed, and what was measured: the tables and the picture of the docs.

Measures nothing: takes the newest row of each kind from `results/`, and writes the tables between
the marks in README.md and docs/performance.md, and docs/performance.png. `--check` writes nothing
and fails where a table is not what the results say.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.report import RESULTS, ROOT
from benchmarks.scaling import exponents

PICTURE = ROOT / "docs" / "performance.png"
Row = dict[str, Any]
GIB = 2**30


@dataclass(frozen=True)
class Options:
    """What to do with the tables."""

    check: bool = False
    """Compare them with the files instead of writing."""


@dataclass(frozen=True)
class Target:
    """One thing that is asked.

    Attributes:
        what: For the table.
        limit: The number that must be reached.
        unit: Of limit and value.
        file: Of `results`, without its ending.
        where: What the row has.
        value: Of the row.
        error: Key of the deviation from the peer's result.
        more: Whether more is better.
    """

    what: str
    limit: float
    unit: str
    file: str
    where: Row
    value: Callable[[Row], float | None]
    error: str | None = "energy_error"
    more: bool = False

    def share(self, value: float) -> float:
        """Measured over asked, so that 1 or less is what was asked."""
        return self.limit / value if self.more else value / self.limit


def ratio(row: Row) -> float | None:
    """Our time over the peer's, or our throughput over its."""
    return row.get("ratio")


def column(name: str, unit: float = 1.0) -> Callable[[Row], float | None]:
    """A value of the row, in other units."""
    return lambda row: None if row.get(name) is None else row[name] / unit


def _integrals(molecule: str, basis: str, limit: float, integrals: str = "(ab|cd)") -> Target:
    what = f"{integrals}, {molecule}, {basis}"
    where = {"integrals": integrals, "molecule": molecule, "basis": basis}
    return Target(what, limit, "× libcint", "integrals", where, ratio, "error")


def _energies(molecule: str, xc: str, basis: str, limit: float) -> Target:
    what = f"energy and forces, {molecule} {xc}/{basis}, fitted"
    where = {"molecule": molecule, "xc": xc, "basis": basis, "two_electron": "df"}
    return Target(what, limit, "× PySCF", "energies", where, ratio)


def _cold(molecule: str, cache: str, limit: float) -> Target:
    forces = molecule == "ethanol"
    what = f"`qchem energy`, {molecule}{' with forces' if forces else ''}, {cache} cache"
    where = {"molecule": molecule, "cache": cache, "forces": forces}
    return Target(what, limit, "s", "cold_start", where, column("wall_s"))


ONE = {"how": "one program", "xc": "b3lyp", "basis": "def2-svp", "grid": 3}
GPU = {"device": "gpu: NVIDIA H200"}
TARGETS = (
    _integrals("ethanol", "def2-svp", 2.0),
    _integrals("ethanol", "def2-tzvp", 2.5),
    _integrals("aspirin", "def2-svp", 3.0),
    _integrals("aspirin", "def2-svp", 1.5, "fitted (ab|P)"),
    _energies("ethanol", "b3lyp", "def2-svp", 0.7),
    _energies("aspirin", "b3lyp", "def2-svp", 0.8),
    _energies("aspirin", "pbe", "def2-tzvp", 0.8),
    Target(
        "forces after the SCF, ethanol b3lyp/def2-svp, fitted",
        2.0,
        "× an energy at its orbitals",
        "energies",
        {"molecule": "ethanol", "xc": "b3lyp", "basis": "def2-svp", "two_electron": "df"},
        column("gradient_ratio"),
    ),
    Target(
        "energy with gradient, at given orbitals, ethanol",
        2.0,
        "× the energy alone",
        "given_orbitals",
        ONE | {"molecule": "ethanol"},
        column("gradient_ratio"),
    ),
    _cold("water", "empty", 20.0),
    _cold("water", "warm", 5.0),
    _cold("ethanol", "empty", 60.0),
    _cold("ethanol", "warm", 10.0),
    Target(
        "memory, aspirin b3lyp/def2-tzvp, energy and forces",
        6.0,
        "GB",
        "energies",
        {"molecule": "aspirin", "xc": "b3lyp", "basis": "def2-tzvp", "two_electron": "df"},
        column("peak_bytes", 1e9),
    ),
    Target(
        "energies with gradients at given orbitals, ethanol",
        20.0,
        "× PySCF's integrals",
        "given_orbitals",
        ONE | {"molecule": "ethanol"},
        ratio,
        more=True,
    ),
    *(
        Target(
            f"batch of 32 over single geometries, {molecule}, two devices",
            limit,
            "×",
            "devices",
            {"molecule": molecule, "shared": "geometry", "batch": 32, "devices": 2},
            column("gain"),
            "reference_error",
            more=True,
        )
        for molecule, limit in (("water", 1.5), ("ethanol", 1.0))
    ),
    Target(
        "H200: energies with gradients at given orbitals, ethanol, a second",
        1000.0,
        "1/s",
        "given_orbitals",
        ONE | {"molecule": "ethanol"} | GPU,
        column("geometries_per_s"),
        more=True,
    ),
    Target(
        "H200: converged energy with forces, ethanol, batch of 128",
        3.0,
        "ms",
        "batch",
        {"molecule": "ethanol", "batch": 128} | GPU,
        lambda row: 1e3 / row["geometries_per_s"] if row.get("geometries_per_s") else None,
    ),
    Target(
        "H200: aspirin b3lyp/def2-tzvp, energy and forces",
        3.0,
        "s",
        "energies",
        {"molecule": "aspirin", "xc": "b3lyp", "basis": "def2-tzvp"} | GPU,
        column("run_s"),
    ),
)


# Columns of the table of cost against size; PySCF's energy is the last.
_STAGES = ("integrals_s", "scf_s", "cycles", "energy_s", "forces_s", "pyscf_energy_s")


def runs(file: str) -> list[Row]:
    """Of a file of results, the oldest first."""
    path = RESULTS / f"{file}.json"
    return json.loads(path.read_text()) if path.exists() else []


def newest(file: str, where: Row) -> Row | None:
    """The last row that has these values, with what its run says of machine and commit."""
    where = {"device": "cpu"} | where
    for run in reversed(runs(file)):
        about = {key: value for key, value in run.items() if key != "rows"}
        for row in reversed(run["rows"]):
            row = {"device": "cpu"} | row
            if all(row.get(key) == value for key, value in where.items()):
                return about | row
    return None


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [head, ("---",) * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def targets() -> str:
    """The table of what is asked."""
    rows = []
    for target in TARGETS:
        row = newest(target.file, target.where)
        value = None if row is None else target.value(row)
        sign = "≥" if target.more else "≤"
        asked = f"{sign} {target.limit:g} {target.unit}"
        if value is None:
            rows.append((target.what, asked, "not measured", "", "", "", ""))
            continue
        met = "yes" if target.share(value) <= 1 else "**no**"
        error = row.get(target.error) if target.error else None
        error = "" if error is None else f"{error:.1e}"
        script = f"`{target.file}`"
        rows.append((target.what, asked, f"{value:.3g}", met, error, script, _machine(row)))
    head = ("", "asked", "measured", "met", "error", "benchmark", "machine, commit")
    return table(head, rows)


ENERGIES = (
    ("water", "b3lyp", "df", "def2-svp"),
    ("water", "b3lyp", "exact", "def2-svp"),
    ("ethanol", "pbe", "df", "def2-svp"),
    ("ethanol", "b3lyp", "df", "def2-svp"),
    ("ethanol", "b3lyp", "exact", "def2-svp"),
    ("aspirin", "pbe", "df", "def2-svp"),
    ("aspirin", "b3lyp", "df", "def2-svp"),
    ("aspirin", "pbe", "df", "def2-tzvp"),
    ("aspirin", "b3lyp", "df", "def2-tzvp"),
)


def energies() -> str:
    """The table of energies and forces beside PySCF's."""
    rows = []
    for key in ENERGIES:
        where = dict(zip(("molecule", "xc", "two_electron", "basis"), key, strict=True))
        row = newest("energies", where)
        if row is None:
            continue
        fitted = "fitted" if key[2] == "df" else "exact"
        rows.append(
            (
                f"{key[0]}, {key[1]}/{key[3]}, {fitted}",
                f"{row['energy_error']:.1e}",
                f"{row['forces_error']:.1e}",
                f"{row['run_s']:.3g}",
                f"{row['pyscf_s']:.3g}",
                f"{row['compile_s']:.3g}",
                f"{row['peak_bytes'] / GIB:.1f} GiB",
                _machine(row),
            )
        )
    head = ("", "error, energy", "error, forces", "time", "PySCF", "compilation", "peak memory")
    return table((*head, "machine, commit"), rows)


def precision() -> str:
    """The table of deviations of the shorter modes from float64."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for run in runs("precision"):
        for row in run["rows"]:
            same = {key: run[key] for key in ("hardware", "commit")} | row
            found.setdefault((row["molecule"], row["xc"]), {})[row["mode"]] = same
    rows = []
    for (name, xc), modes in found.items():
        cells = []
        for mode in ("mixed", "single"):
            row = modes.get(mode, {})
            keys = ("energy_error", "forces_error")
            cells += ["" if row.get(key) is None else f"{row[key]:.1e}" for key in keys]
        rows.append((f"{name}, {xc}", *cells, _machine(modes["double"])))
    head = ("", "mixed: energy", "mixed: gradient", "single: energy", "single: gradient")
    return table((*head, "machine, commit"), rows)


def clusters() -> list[Row]:
    """The newest row of each water cluster and functional, by functional and size."""
    found: dict[tuple[str, int], Row] = {}
    for run in runs("scaling"):
        for row in run["rows"]:
            if row.get("nao"):
                about = {key: run[key] for key in ("hardware", "commit")}
                found[row["xc"], row["nao"]] = about | row
    return [found[key] for key in sorted(found)]


def scaling() -> str:
    """The table of cost against size, with the exponents of the three largest sizes."""
    rows = []
    for xc in ("pbe", "b3lyp"):
        ours = [row for row in clusters() if row["xc"] == xc]
        for row in ours:
            cells = [row.get(key) for key in _STAGES]
            shown = ["" if value is None else f"{value:.3g}" for value in cells]
            error = row.get("energy_error")
            shown.insert(-1, f"{row['peak_bytes'] / GIB:.1f} GiB")
            shown.append("" if error is None else f"{error:.1e}")
            rows.append((f"{row['waters']} waters, {xc}", str(row["nao"]), *shown, _machine(row)))
        if len(ours) > 2:
            powers = exponents(ours)
            shown = ["" if powers.get(k) is None else f"{powers[k]:.2g}" for k in _STAGES]
            shown.insert(-1, "")
            rows.append((f"exponent, {xc}", "", *shown, "", ""))
    head = ("", "AOs", "integrals", "a cycle", "cycles", "energy", "forces", "peak memory")
    head = (*head, "PySCF, energy", "error", "machine, commit")
    return table(head, rows or [("not measured yet", *[""] * (len(head) - 1))])


def _machine(row: Row) -> str:
    processor = row["hardware"].split(",")[0].replace("(R)", "").replace(" Processor", "")
    where = processor if row["device"] == "cpu" else row["device"]
    return f"{where}, {row['commit'][:7]}"


TABLES = (
    (ROOT / "README.md", "energies", energies),
    (ROOT / "docs" / "performance.md", "targets", targets),
    (ROOT / "docs" / "performance.md", "scaling", scaling),
    (ROOT / "docs" / "precision.md", "precision", precision),
)


def with_table(text: str, name: str, made: str) -> str:
    """The text with the table between its marks replaced.

    Raises:
        ValueError: The text has no such marks.
    """
    begin, end = f"<!-- {name}: made by benchmarks.summary -->\n", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"there is no place for the table {name!r}: {begin.strip()} ... {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}{made}\n{end}{rest.split(end, 1)[1]}"


def draw(path: Path = PICTURE) -> Path:
    """Draws the targets, and cost against size where that was measured."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = [(target, newest(target.file, target.where)) for target in TARGETS]
    measured = [(t, t.value(row)) for t, row in found if row is not None]
    shares = [(t.what.replace("`", ""), t.share(v)) for t, v in measured if v is not None]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), width_ratios=(1, 1))
    names, values = zip(*reversed(shares), strict=True)
    colors = ["tab:green" if value <= 1 else "tab:red" for value in values]
    left.barh(names, values, color=colors)
    left.axvline(1, color="black", lw=1)
    left.set(xscale="log", xlabel="measured over asked (1 or less is what was asked)")
    left.tick_params(axis="y", labelsize=8)
    sizes = clusters()
    for xc, color in (("pbe", "tab:blue"), ("b3lyp", "tab:orange")):
        for key, style, label in (("energy_s", "o-", "qchem"), ("pyscf_energy_s", "s--", "PySCF")):
            points = [(r["nao"], r[key]) for r in sizes if r["xc"] == xc and r.get(key)]
            if points:
                right.plot(*zip(*points, strict=True), style, color=color, label=f"{xc}, {label}")
    if sizes:
        right.set(xscale="log", yscale="log", xlabel="AOs", ylabel="converged energy, s")
        right.set_title("water clusters, def2-SVP, fitted", fontsize=9)
        right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path


def main(options: Options) -> None:
    """Write tables and picture, or compare the tables."""
    for path, name, make in TABLES:
        text = path.read_text()
        new = with_table(text, name, make())
        if options.check and new != text:
            raise SystemExit(f"the table in {path.name} is old: python -m benchmarks.summary")
        if not options.check:
            path.write_text(new)
            print(path)
    if not options.check:
        print(draw())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
