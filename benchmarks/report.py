"""Rows of results: printed as a table, and kept as JSON with all that they depend on."""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qchem.command import version, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass
class Report:
    """Collects the rows of one run of a benchmark.

    Attributes:
        name: Of the benchmark, and of its file in `results`.
        out: Another file instead.
        columns: Those to print, as far as a row has them; all by default. The file has all.
    """

    name: str
    out: Path | None = None
    columns: tuple[str, ...] | None = None
    _run: dict[str, Any] = field(default_factory=lambda: environment() | {"rows": []})
    _widths: dict[str, int] = field(default_factory=dict)

    def row(self, **values: Any) -> None:
        """Print one row and write the file anew with it: an interrupted run keeps its rows."""
        self._run["rows"].append({key: _rounded(value) for key, value in values.items()})
        if not self._widths:
            columns = [key for key in self.columns or values if key in values]
            self._widths = {key: max(len(key), len(_cell(key, values[key])), 8) for key in columns}
            print("  ".join(key.rjust(width) for key, width in self._widths.items()))
        cells = (_cell(key, values.get(key)).rjust(n) for key, n in self._widths.items())
        print("  ".join(cells), flush=True)
        path = self.out or RESULTS / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        runs = json.loads(path.read_text()) if path.exists() else []
        if runs and _identity(runs[-1]) == _identity(self._run):
            runs.pop()
        path.write_text(_text([*runs, self._run]))


def environment() -> dict[str, Any]:
    """Command, commit, date, hardware, threads, versions, and how busy the machine was before."""
    return {
        "command": shlex.join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "threads": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": versions() | {"pyscf": version("pyscf")},
    }


def _identity(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key != "rows"}


def commit() -> str:
    """Commit of the checkout, marked where `qchem` has changed since; BENCHMARK_COMMIT goes first,
    for copies without a repository."""
    if given := os.environ.get("BENCHMARK_COMMIT"):
        return given
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "qchem"])
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip()[:12] + ("-changed" if changed.returncode else "")


def _hardware() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        known = {key.strip(): value.strip() for key, _, value in lines}
        model = known.get("model name", model)
        if "cpu family" in known:  # names such as "AMD EPYC" stand for machines of different speed
            model += f" {known['cpu family']}/{known.get('model')}"
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} processors, {gibibytes:.0f} GiB"


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.endswith("_bytes"):
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _text(runs: list[dict[str, Any]]) -> str:
    """JSON with a line for each row, so that differences are readable."""
    parts = []
    for run in runs:
        head = json.dumps(_identity(run))
        rows = ",\n".join(json.dumps(row) for row in run["rows"])
        parts.append(f'{head[:-1]}, "rows": [\n{rows}\n]}}')
    return "[\n" + ",\n".join(parts) + "\n]\n"
