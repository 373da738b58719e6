"""What each defense trades: ACC for ASR, in how many seconds; drawn by matplotlib."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from ngf.bench.table import Cell, measured

LEAST_DROP = 0.1  # points: where a logarithmic axis ends


def trade_off(cells: Sequence[Cell], file: Path) -> None:
    """PNG: mean ACC drop across, mean ASR that is gone up, a dot's area as log of its seconds.

    A dot is a mean over the victims whose attack took; top left is best.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [one for one in measured(cells) if one.counts]
    before = {cell_key(c): float(c["victim"]["asr"]["value"]) for c in cells if _attacked(c)}
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure((7.2, 4.6), dpi=130, layout="constrained")
        axes = figure.subplots()
        for name in sorted({one.defense for one in found}):
            own = [one for one in found if one.defense == name]
            drop = 100 * statistics.fmean(one.acc_drop for one in own)
            gone = 100 * statistics.fmean(before[one.key] - (one.asr or 0) for one in own)
            seconds = statistics.fmean(one.seconds for one in own)
            size = 15 + 45 * max(0.0, math.log10(seconds + 0.1) + 1)
            first = name == "ngf"
            axes.scatter(
                max(drop, LEAST_DROP), gone, s=size, alpha=0.8,
                color="#e07b00" if first else "#3b86d0",
            )  # fmt: skip
            label = f"{name} {seconds:.0f} s" if seconds >= 1 else f"{name} <1 s"
            axes.annotate(
                label, (max(drop, LEAST_DROP), gone), xytext=(5, 4), textcoords="offset points",
                fontsize=8, weight="bold" if first else "normal",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(
            xlabel="ACC drop, points (logarithmic; no drop stands at 0.1)",
            ylabel="ASR that is gone, points",
        )
        axes.grid(alpha=0.2)
        FigureCanvasAgg(figure).print_png(file)


def cell_key(cell: Cell) -> tuple[str, str, int]:
    return cell["dataset"], cell["attack"], cell["seed"]


def _attacked(cell: Cell) -> bool:
    return "error" not in cell and cell["victim"]["asr"] is not None
