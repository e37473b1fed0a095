"""Tables of long benchmarks: rows are appended as they come, and an interrupted run goes on."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import environment


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
