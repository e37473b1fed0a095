"""Tables of long benchmarks: rows are appended as they come, and an interrupted run goes on."""

import csv
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import qchem
from benchmarks.measure import peak_rss
from benchmarks.report import commit, environment


def result_row(result: qchem.Result, start: float) -> dict[str, Any]:
    """What every table says of a calculation.

    Args:
        result: Of the calculation.
        start: When it started, as `perf_counter` has it.
    """
    return {
        "nao": result.nao,
        "energy": f"{result.energy:.9f}",
        "converged": result.converged,
        "cycles": result.cycles,
        "products": int(result.scf.products),
        "stages": "+".join(stage["method"] for stage in result.stages),
        "s2": f"{result.s2:.4f}",
        "seconds": f"{perf_counter() - start:.1f}",
        "peak_mib": peak_rss() // 2**20,
        "commit": commit(),
    }


@dataclass(frozen=True)
class Table:
    """A CSV file; lines that begin with # say what it was made with.

    Attributes:
        path: Made with the first row.
        columns: Names, in order.
    """

    path: Path
    columns: list[str]

    def rows(self) -> list[dict[str, str]]:
        """What the file has."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(line for line in file if not line.startswith("#")))

    def append(self, row: dict[str, Any]) -> None:
        """One more row; values that it has not are left empty."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            if new:
                about = environment()
                file.write("".join(f"# {key}: {about[key]}\n" for key in about))
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerow(row)
