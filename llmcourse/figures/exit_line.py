"""The map of layers and tokens with the line of a rule, and below it what other thresholds come to.

The lower panel has a curve for each kind of rule over all its thresholds: how often a token leaves with what
the whole model says, against the layers that it takes. Its circle is the threshold that the line belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmcourse.early_exit import Curve
from llmcourse.early_exit.heat_map import Heat
from llmcourse.early_exit.threshold import Signal
from llmcourse.figures import style as look
from llmcourse.figures.exit_heat import HeatPlot

ROOM, PANEL = 1.95, 1.18  # inches below the map, and of it the panel's height
LINES = ("-", (0, (4, 2)), (0, (1.2, 1.6)))


class ExitLinePlot:
    """The figure of one text, made once and then redrawn for other rules.

    Args:
        data: of any rule.
        labels: how each token is written below its column.
        curves: of the same text, by the kind of rule; at most three.

    Raises:
        ValueError: not one label for each token, or more curves than can be told apart.
    """

    def __init__(self, data: Heat, labels: Sequence[str], curves: Mapping[Signal, Curve]):
        if not 1 <= len(curves) <= len(LINES):
            raise ValueError(f"curves must be 1 to {len(LINES)}, got {len(curves)}; draw fewer")
        self.heat = HeatPlot(data, labels, ROOM)
        self.figure, height = self.heat.figure, self.heat.figure.get_figheight()
        with look.style():
            self.panel = self.figure.add_axes((0.06, 0.50 / height, 0.60, PANEL / height))
            count = data.layers[-1]
            self.panel.set(xlim=(0.9, count + 0.1), ylim=(0, 1.08), xlabel="layers a token, on average")
            self.panel.set_xticks(range(1, count + 1))
            self.panel.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
            self.panel.grid(axis="y", color="#eceff2", linewidth=0.8)
            look.fix_label(self.panel)
            above = {"transform": self.panel.transAxes, "va": "bottom", "weight": "bold", "size": 10.5}
            self.panel.text(0, 1.06, "says what the whole model says, over all thresholds", **above)
            self._draw_curves(curves)
            ring = {"markersize": 10, "markeredgewidth": 2.2, "markerfacecolor": "none", "linestyle": "none"}
            self._here = self.panel.plot([], [], "o", markeredgecolor=look.ACCENT, zorder=5, **ring)[0]
        self.figure.moving += [self._here]

    def _draw_curves(self, curves: Mapping[Signal, Curve]) -> None:
        colors = (look.SERIES[0], look.SERIES[2], look.INK)
        for line, color, (name, curve) in zip(LINES, colors, curves.items(), strict=False):
            points = sorted(zip(curve.mean_layers.tolist(), curve.agreement.tolist(), strict=True))
            mark = {"marker": "D", "markersize": 4} if name == "patience" else {}
            self.panel.plot(
                *zip(*points, strict=True), linestyle=line, color=color, linewidth=1.6, label=name, **mark
            )
        place = {"loc": "upper left", "bbox_to_anchor": (1.03, 1.1), "handlelength": 3.0}
        self.panel.legend(fontsize=9.5, title="rule", alignment="left", **place)

    def update(self, data: Heat, title: str) -> look.Picture:
        """Shows where another rule leaves, in the same text."""
        self._here.set_data([data.mean_layers], [data.agreement])
        return self.heat.update(data, title)
