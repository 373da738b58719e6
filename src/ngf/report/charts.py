"""Charts as SVG text that stands inside a page: one drawing for light and dark.

Drawn by matplotlib in the sentinel colour INK, which becomes the page's own text colour; data have
colours of Okabe and Ito (2008) that keep apart for all eyes and on both grounds. A chart is a list
of panels, which a page lays side by side or, on a phone, below each other.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ngf.report.select import BEFORE_AND_AFTER, Matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # text, ticks and frames: the page's colour takes its place
GREEN, ORANGE, BLUE, PINK, SKY = "#009e73", "#e07b00", "#3b86d0", "#cc79a7", "#56b4e9"
COLOURS = {"reference": GREEN, "victim": ORANGE, "model": BLUE}
MEASURES = {"acc": (BLUE, "o", "ACC"), "asr": (ORANGE, "s", "ASR"), "ra": (GREEN, "^", "RA")}
KINDS = {"conv": BLUE, "norm": ORANGE, "linear": GREEN, "other": PINK}
OWN = "own-id-"  # what ids of a chart begin with until a page numbers its charts
WIDTH, HEIGHT = 4.3, 3.3  # inches of a panel; an inch is 72 units of the drawing
LEAST_DENSITY = 1e-6  # shown, of the largest
MOST_POINTS = 2000  # drawn one by one; more become a picture
LEVELS = 14
MOST_LAYERS = 48

Draw = Callable[["Axes"], None]


def along(points: Sequence[tuple[str, Mapping[str, float | None]]]) -> list[str]:
    """ACC, ASR and RA in per cent at each named point of purification."""

    def draw(axes: Axes) -> None:
        places = range(len(points))
        for key, (colour, marker, name) in MEASURES.items():
            values = [values[key] for _, values in points]
            if None not in values:
                shown = [100 * float(v) for v in values if v is not None]
                axes.plot(places, shown, color=colour, marker=marker, markersize=5, label=name)
        axes.set_xticks(list(places), [name for name, _ in points])
        axes.set(ylim=(-3, 103), ylabel="% of test images", xlabel="step of purification")
        axes.legend(loc="center right", fontsize=9)

    ends = "; ".join(
        f"{name} from {100 * start:.1f} to {100 * end:.1f}%"
        for key, (_, _, name) in MEASURES.items()
        if (start := points[0][1][key]) is not None and (end := points[-1][1][key]) is not None
    )
    return [_panel(draw, f"Along purification: {ends}", width=1.1 * WIDTH)]


def confusion(matrices: Mapping[str, Matrix]) -> list[str]:
    """Shares of each true class's images, one panel a matrix; `BEFORE_AND_AFTER` names them."""

    def one(matrix: Matrix, who: str) -> str:
        def draw(axes: Axes) -> None:
            from matplotlib.colors import LinearSegmentedColormap, PowerNorm

            fading = LinearSegmentedColormap.from_list("fading", [f"{BLUE}00", f"{BLUE}ff"])
            picture = axes.imshow(
                100 * matrix.shares_KK, cmap=fading, norm=PowerNorm(0.5, 0, 100),
                interpolation="none", aspect="equal",
            )  # fmt: skip
            size = 8 if len(matrix.names) <= 20 else 4
            places = range(len(matrix.names))
            names = [_plain(name) for name in matrix.names]
            axes.set_xticks(places, names, rotation=90, fontsize=size)
            axes.set_yticks(places, names, fontsize=size)
            axes.set(xlabel="answer", ylabel="class", title=BEFORE_AND_AFTER[who])
            axes.grid(False)
            _bar(axes, picture, "% of the class's images", [0, 1, 5, 20, 50, 100])

        text = f"Confusion matrix {who}: {100 * matrix.right:.1f}% of clean images on the diagonal"
        return _panel(draw, text, width=1.1 * WIDTH, height=WIDTH)

    return [one(matrix, who) for who, matrix in matrices.items()]


def features(found: Mapping[str, Any]) -> list[str]:
    """Clean images coloured by class and triggered ones as crosses, before and after."""
    import matplotlib

    triggered_N = np.array(found["triggered"], bool)
    y_N = np.array(found["y"], int)
    colours = matplotlib.colormaps["turbo"](np.linspace(0.06, 0.94, len(found["classes"])))

    def one(who: str) -> str:
        xy_N2 = np.array(found[who], float).reshape(-1, 2)

        def draw(axes: Axes) -> None:
            clean_M2, labels_M = xy_N2[~triggered_N], y_N[~triggered_N]
            many = len(xy_N2) > MOST_POINTS
            x_M, y_M = clean_M2.T
            axes.scatter(x_M, y_M, s=12, c=colours[labels_M], linewidths=0, rasterized=many)
            if triggered_N.any():
                x_M, y_M = xy_N2[triggered_N].T
                axes.scatter(x_M, y_M, s=16, c=INK, marker="x", linewidths=0.8, label="triggered")
                axes.legend(loc="upper right", fontsize=8)
            for label in np.unique(labels_M) if len(found["classes"]) <= 20 else ():
                x, y = np.median(clean_M2[labels_M == label], 0)
                axes.annotate(
                    _plain(found["classes"][label]), (x, y), (0, 6),
                    textcoords="offset points", ha="center", fontsize=7,
                )  # fmt: skip
            axes.set(title=BEFORE_AND_AFTER[who], xlabel="t-SNE 1", ylabel="t-SNE 2")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)

        count = f"{(~triggered_N).sum()} clean and {triggered_N.sum()} triggered images"
        return _panel(draw, f"Feature map {BEFORE_AND_AFTER[who]}: {count}", height=WIDTH)

    return [one(who) for who in BEFORE_AND_AFTER]


def surface(found: Mapping[str, Any]) -> list[str]:
    """Loss around victim and model, each along its own two leading directions, in equal levels."""
    grids = {who: np.array(found[who]["loss"], float) for who in BEFORE_AND_AFTER}
    finite = np.concatenate([grid[np.isfinite(grid) & (grid > 0)] for grid in grids.values()])
    if not finite.size:
        return []
    low, high = finite.min(), max(finite.max(), 1.001 * finite.min())
    levels = np.geomspace(low, high, LEVELS)

    def one(who: str) -> str:
        def draw(axes: Axes) -> None:
            from matplotlib.colors import LogNorm

            alpha = np.array(found[who]["alpha"], float)
            grid_KK = np.ma.masked_invalid(grids[who].T)  # x runs along the first direction
            filled = axes.contourf(
                alpha, alpha, np.clip(grid_KK, low, high), levels, cmap="viridis",
                norm=LogNorm(low, high), extend="both",
            )  # fmt: skip
            axes.plot(0, 0, marker="+", color="white", markersize=9)
            first, second = found[who]["lambda"]
            axes.set(
                title=BEFORE_AND_AFTER[who], xlabel=f"along u₁ (λ₁ = {first:.3g}), norm of step",
                ylabel=f"along u₂ (λ₂ = {second:.3g})", aspect="equal",
            )  # fmt: skip
            axes.grid(False)
            ticks = [float(f"{level:.2g}") for level in levels[:: LEVELS // 4]]
            _bar(axes, filled, "cross-entropy, nats", ticks)

        known = grids[who][np.isfinite(grids[who])]
        ends = f"{known.min():.3g} to {known.max():.3g} nats" if known.size else "not finite"
        return _panel(draw, f"Loss surface {BEFORE_AND_AFTER[who]}: {ends}", width=1.1 * WIDTH)

    return [one(who) for who in BEFORE_AND_AFTER]


def density(found: Mapping[str, Any]) -> list[str]:
    """Spectral densities of the Hessians of reference, victim and model; [] where none has one."""
    known = {who: found[who]["density"] for who in COLOURS if found[who].get("density")}
    if not known:
        return []
    names = {"reference": "clean reference", **BEFORE_AND_AFTER}
    styles = {"reference": "--", "victim": "-", "model": "-"}

    def draw(axes: Axes) -> None:
        most = max(max(curve["density"]) for curve in known.values())
        for who, curve in known.items():
            values = np.maximum(np.array(curve["density"], float), LEAST_DENSITY * most)
            axes.plot(curve["grid"], values, styles[who], color=COLOURS[who], label=names[who])
        axes.set_yscale("log")
        axes.set_ylim(LEAST_DENSITY * most, 3 * most)
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set(xlabel="eigenvalue of the Hessian, nats (linear to ±1)", ylabel="density")
        axes.legend(fontsize=9)

    ends = "; ".join(f"{names[who]} to {curve['grid'][-1]:.3g}" for who, curve in known.items())
    return [_panel(draw, f"Spectral density of the Hessian: {ends}", width=1.1 * WIDTH)]


def movement(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Change of each layer over its norm before, in the order of the network."""
    known = [layer for layer in layers if layer["moved"] is not None]
    if not known:
        return []
    least = sorted((layer["moved"] for layer in known), reverse=True)[:MOST_LAYERS][-1]
    shown = [layer for layer in known if layer["moved"] >= least][:MOST_LAYERS]

    def draw(axes: Axes) -> None:
        kinds = [_kind(layer["kind"]) for layer in shown]
        places = np.arange(len(shown))
        for kind, colour in KINDS.items():
            rows = [i for i, k in enumerate(kinds) if k == kind]
            if rows:
                values = [100 * shown[i]["moved"] for i in rows]
                axes.barh(places[rows], values, color=colour, label=kind, height=0.75)
        axes.set_yticks(places, [_plain(layer["layer"]) for layer in shown], fontsize=7)
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel="change, % of the norm before")
        axes.legend(fontsize=9)

    most = max(known, key=lambda layer: layer["moved"])
    text = f"Movement by layer: most in {most['layer']}, by {100 * most['moved']:.1f}%"
    height = max(HEIGHT / 2, 0.9 + 0.15 * len(shown))
    return [_panel(draw, text, width=1.1 * WIDTH, height=height)]


def _kind(kind: str) -> str:
    words = {"Conv": "conv", "Norm": "norm", "Linear": "linear"}
    return next((name for word, name in words.items() if word in kind), "other")


def _plain(text: object) -> str:
    """A foreign name as it is: matplotlib reads what stands between two dollars as TeX."""
    return str(text).replace("$", r"\$")


def _bar(axes: Axes, drawn: Any, label: str, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.75, label=label, ticks=list(ticks))
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_linewidth(0.5)


def _panel(draw: Draw, text: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """One drawing as SVG; `text` says what it shows to who cannot see it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": text}
    with matplotlib.rc_context(style):
        figure = Figure((width, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        for legend in filter(None, [axes.get_legend()]):
            legend.get_frame().set(alpha=0, linewidth=0)
        stream = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return _inline(stream.getvalue(), text)


STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.titlesize": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.5,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.facecolor": "none",
    "savefig.facecolor": "none",
    "image.composite_image": False,
    "svg.image_inline": True,
}


def _inline(svg: str, text: str) -> str:
    """An SVG file as a part of a page: scales, takes the page's colour and font, is short."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"(\d\.\d{3})\d+", r"\1", svg)
    svg = _own_ids(svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    assert size
    points, said = float(size[1]), html.escape(text)
    head = (
        f'<svg role="img" aria-label="{said}" viewBox="{_view(svg)}" '
        f'style="max-width: {points * 4 / 3:.0f}px" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{said}</title>'
    )
    return head + svg[svg.index(">") + 1 :].strip()


def _view(svg: str) -> str:
    found = re.search(r'viewBox="([\d. ]+)"', svg)
    assert found
    return found[1]


def _own_ids(svg: str) -> str:
    """Ids that something refers to begin with OWN, for a page to number; all others go."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{OWN}{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\1{OWN}", svg)
