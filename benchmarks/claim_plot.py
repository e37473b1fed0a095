"""The picture of `benchmarks/claim.py`: error against energy evaluations and against time."""

import json
from pathlib import Path

import numpy as np

from benchmarks.report import ROOT

AXES = (("evaluations", "energy evaluations"), ("time_s", "time, s"))
FRAMES = (("near", "at 500 K"), ("far", "far from equilibrium"))


PICTURE = ROOT / "docs" / "claim.png"


def draw(results: Path, path: Path = PICTURE) -> Path:
    """Draw a file of results; of rows that were measured twice, the last.

    A line is the median over seeds, a band reaches from the smallest to the largest. Curves of the
    seeds have their points at different places and are interpolated.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    rows = _curves(results)
    shape = (len(rows), len(AXES) * len(FRAMES))
    size = 3.4 * shape[1], 3.0 * shape[0] + 0.6
    figure, panels = pyplot.subplots(*shape, figsize=size, squeeze=False, sharey="row")
    for line, (family, arms) in zip(panels, rows.items()):
        columns = [(axis, frames) for frames in FRAMES for axis in AXES]
        for panel, (axis, frames) in zip(line, columns):
            for arm, curves in arms.items():
                _curve(panel, axis[0], f"{frames[0]}_error", arm, list(curves.values()))
            panel.set(xscale="log", yscale="log", xlabel=axis[1])
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_title(f"{family}\n{frames[1]}", fontsize=9)
        line[0].set_ylabel("mean error, hartree")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.45 / size[1], 1, 1))
    figure.savefig(path, dpi=110)
    return path


def tables(results: Path) -> str:
    """Errors of each arm in 1e-6 hartree, those of the seeds in ascending order: when its time is
    up, and at a number of energy evaluations that all arms have had."""
    lines = []
    for family, arms in _curves(results).items():
        ends = [curve[-1]["evaluations"] for curves in arms.values() for curve in curves.values()]
        at = f"at {min(ends)} evaluations"
        heading = f"| arm | steps | near | far | near, {at} | far, {at} |"
        lines += [family, "", heading, "|" + 6 * "---|"]
        for arm, curves in arms.items():
            steps = sorted(curve[-1]["steps"] for curve in curves.values())
            cells = [arm, f"{steps[0]}–{steps[-1]}"]
            for count in (None, min(ends)):
                for frames, _ in FRAMES:
                    name = f"{frames}_error"
                    found = sorted(_at(curve, name, count) for curve in curves.values())
                    cells.append(", ".join(f"{1e6 * x:.2g}" for x in found))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _at(curve, name, evaluations):
    """The last error, or that between two measured ones on a line in logarithms."""
    if evaluations is None:
        return curve[-1][name]
    points = [(r["evaluations"], r[name]) for r in curve if _shown(r, "evaluations", name)]
    x, y = np.log(np.array(points)).T
    return float(np.exp(np.interp(np.log(evaluations), x, y)))


def _curves(results):
    """Of each family, arm and seed; of rows that were measured twice, the last."""
    rows = {}
    for run in json.loads(results.read_text()):
        for row in run["rows"]:
            if "curve" in row:
                family = f"{row['molecule']}, {row['xc']}/{row['basis']}, {row['clock']} time"
                rows.setdefault(family, {}).setdefault(row["arm"], {})[row["seed"]] = row["curve"]
    return rows


def _curve(panel, axis, name, arm, curves):
    points = [
        np.array([(record[axis], record[name]) for record in curve if _shown(record, axis, name)])
        for curve in curves
    ]
    points = [p for p in points if len(p)]
    if not points:
        return
    low, high = max(p[0, 0] for p in points), min(p[-1, 0] for p in points)
    x = np.geomspace(low, max(high, low), 30)
    y = np.exp([np.interp(np.log(x), np.log(p[:, 0]), np.log(p[:, 1])) for p in points])
    (line,) = panel.plot(x, np.median(y, axis=0), label=arm, lw=1.5)
    panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)


def _shown(record, axis, name):
    """What a logarithm can show."""
    return record[axis] > 0 and record[name] is not None and record[name] > 0
