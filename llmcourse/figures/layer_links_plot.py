"""Layers of student and teacher with the links between them, on a map of how much each two are alike.

To the left each layer is a box, the first at the bottom; to the right a row is a layer of the student, a
column one of the teacher, the darker the more alike, and frames are the pairs that learn from each other.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.layer_links import COMPARED, LayerLinks, layer_links
from llmcourse.model import DecoderConfig

SHADES = LinearSegmentedColormap.from_list("likeness", [look.PAPER, "#9fc0dc", look.SERIES[0]])
MOST_LAYERS = 64
MOST_NUMBERS = 12  # layers of either side whose cells can hold a number
HEAD, FOOT = 1.02, 0.52  # inches
BOX = 0.30  # of the ladder's width


class LayerLinksPlot:
    """The figure of one student and teacher, made once and then redrawn for other maps.

    Args:
        student, teacher: their shapes.
        likeness: `layer_likeness` of both; None leaves the cells empty.
        names: of student and teacher.

    Raises:
        ValueError: more layers than can be drawn, or likeness of other numbers of layers.
    """

    def __init__(
        self,
        student: DecoderConfig,
        teacher: DecoderConfig,
        likeness: Float[Tensor, "student_layers teacher_layers"] | None = None,
        names: tuple[str, str] = ("student", "teacher"),
    ):
        self.depths, self.likeness = (student.num_layers, teacher.num_layers), likeness
        if max(self.depths) > MOST_LAYERS:
            raise ValueError(
                f"layers must be at most {MOST_LAYERS}, got {max(self.depths)}; draw a smaller one"
            )
        if likeness is not None and tuple(likeness.shape) != self.depths:
            raise ValueError(f"likeness must be {self.depths}, layers of both, got {tuple(likeness.shape)}")
        high = max(1.5, min(4.2, 0.34 * max(self.depths)))
        height = HEAD + high + FOOT
        with look.style():
            self.figure = look.Picture(look.WIDTH, height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            place = FOOT / height, high / height
            self.ladder = self.figure.add_axes((0.02, place[0], 0.40, place[1]))
            self.map = self.figure.add_axes((0.52, place[0], 0.455, place[1]))
            widths = student.hidden_size, teacher.hidden_size
            self._make_ladder(names, widths)
            self._make_map(names)
        self.figure.moving = [self._links, self._ends, self._frames, self.title, self.subtitle]
        self.figure.still_key = "layers"

    def _make_ladder(self, names: tuple[str, str], widths: tuple[int, int]) -> None:
        axes = self.ladder
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        look.bare(axes, "left", "bottom")
        for side, (name, width, depth) in enumerate(zip(names, widths, self.depths, strict=True)):
            left, high = side * (1 - BOX), 0.74 / depth
            color = (look.SERIES[3], look.SERIES[0])[side]
            for layer in range(1, depth + 1):
                y = self._y(side, layer)
                box = {"facecolor": color, "edgecolor": look.PAPER, "alpha": 0.28}
                axes.add_patch(Rectangle((left, y - high / 2), BOX, high, **box))
                if depth <= 24 or layer in (1, depth):
                    size = {"size": 9.5 if depth <= 12 else 7, "ha": "center", "va": "center"}
                    axes.text(left + BOX / 2, y, f"{layer}", **size)
            words = {"ha": "center", "va": "bottom", "size": 10, "weight": "bold"}
            axes.text(left + BOX / 2, 1.02, look.shorten(readable(name), 14), **words)
            words = {"ha": "center", "va": "top", "size": 9.5, "color": look.MUTED}
            axes.text(left + BOX / 2, -0.02, f"width {width:,}", **words)
        self._links = LineCollection([], colors=look.ACCENT, linewidths=1.8)
        axes.add_collection(self._links, autolim=False)
        self._ends = axes.plot([], [], "o", color=look.ACCENT, markersize=5)[0]

    def _y(self, side: int, layer: int) -> float:
        return (layer - 0.5) / self.depths[side]

    def _make_map(self, names: tuple[str, str]) -> None:
        axes, (rows, columns) = self.map, self.depths
        if self.likeness is not None:
            cells = self.likeness.double().numpy()
            options = {"vmin": 0, "vmax": 1, "aspect": "auto", "origin": "lower", "interpolation": "nearest"}
            axes.imshow(cells, cmap=SHADES, extent=(0.5, columns + 0.5, 0.5, rows + 0.5), **options)
            if max(rows, columns) <= MOST_NUMBERS:
                for (row, column), value in np.ndenumerate(cells):
                    color = look.PAPER if value > 0.72 else look.INK
                    text = {"size": 9.5, "ha": "center", "va": "center", "color": color}
                    axes.text(column + 1, row + 1, f"{max(value, 0):.2f}", **text)
            note = {
                "transform": axes.transAxes,
                "size": 9.5,
                "color": look.MUTED,
                "ha": "right",
                "va": "bottom",
            }
            axes.text(1, 1.02, "linear CKA of hidden states", **note)
        axes.set(xlim=(0.5, columns + 0.5), ylim=(0.5, rows + 0.5))
        for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
            step = -(-count // 16)
            axis.set_ticks(range(step, count + 1, step))
        axes.tick_params(left=False, bottom=False, labelsize=9.5)
        axes.set_xlabel(f"layer of {readable(look.shorten(names[1], 20))}")
        axes.set_ylabel(f"layer of {readable(look.shorten(names[0], 20))}")
        look.fix_label(axes)
        self._frames = PatchCollection([], facecolor="none", edgecolor=look.ACCENT, linewidth=2.4)
        self._frames.set_clip_on(False)
        axes.add_collection(self._frames, autolim=False)

    def update(self, links: LayerLinks, title: str = "Which layer learns from which") -> look.Picture:
        """Shows another map.

        Raises:
            ValueError: a map of other models.
        """
        if (links.student.num_layers, links.teacher.num_layers) != self.depths:
            raise ValueError(f"links must be of {self.depths} layers; make a figure for these models")
        ends = [[(BOX, self._y(0, mine)), (1 - BOX, self._y(1, its))] for mine, its in links.pairs]
        with look.style():
            self.title.set_text(readable(title))
            self.subtitle.set_text(in_words(links, self.likeness))
            drawn = [] if links.reason else ends
            self._links.set_segments(drawn)
            self._ends.set_data(
                [x for pair in drawn for x, _ in pair], [y for pair in drawn for _, y in pair]
            )
            pairs = () if links.reason else links.pairs
            self._frames.set_paths([Rectangle((its - 0.5, mine - 0.5), 1, 1) for mine, its in pairs])
        told = ", ".join(f"{mine} from {its}{self._told(mine, its)}" for mine, its in links.pairs)
        self.figure.alt = f"{title}: {in_words(links, self.likeness)}. Layers of the student: {told}."
        return self.figure

    def _told(self, mine: int, its: int) -> str:
        return "" if self.likeness is None else f" (CKA {self.likeness[mine - 1, its - 1]:.2f})"


def plot_layer_links(
    student: DecoderConfig,
    teacher: DecoderConfig,
    likeness: Float[Tensor, "student_layers teacher_layers"] | None = None,
    *,
    strategy: str = "uniform",
    compared: str = "hidden",
    names: tuple[str, str] = ("student", "teacher"),
    title: str = "Which layer learns from which",
) -> look.Picture:
    """The figure once; arguments as those of `LayerLinksPlot` and `layer_links`."""
    links = layer_links(student, teacher, strategy, compared)
    return LayerLinksPlot(student, teacher, likeness, names).update(links, title)


def mean_likeness(
    links: LayerLinks, likeness: Float[Tensor, "student_layers teacher_layers"] | None
) -> float | None:
    """Of the pairs that learn from each other."""
    if likeness is None:
        return None
    return sum(likeness[mine - 1, its - 1].item() for mine, its in links.pairs) / len(links.pairs)


def in_words(links: LayerLinks, likeness: Float[Tensor, "student_layers teacher_layers"] | None) -> str:
    """The comparison, what it takes, and how much its pairs are alike before."""
    count = len(links.pairs)
    pairs = f"{count} pair{'s' if count > 1 else ''}"
    mean = mean_likeness(links, likeness)
    # Of hidden states, whatever is compared; of pairs that cannot learn from each other it says nothing.
    alike = ""
    if mean is not None and not links.reason:
        alike = f" · CKA {mean:.2f} on average"
        if links.compared != "hidden":
            alike = f" · CKA of hidden states {mean:.2f} on average"
    return f"{COMPARED[links.compared]}, {links.strategy}: {pairs} · {links.takes}{alike}"
