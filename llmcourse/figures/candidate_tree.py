"""A step of Medusa as a picture: the tree of candidates, the branch that stood, and what the text gained.

Columns are heads, from left to right; a candidate stands behind its parent, the likelier sibling above. A
line is as thick as its head was sure of the token, a box as blue as the backbone found it likely there, and
the number is that probability. The accepted branch is green, its boxes have a thick edge and bold letters. In
the row above the tree is what the text gained: the branch, and the backbone's own token behind it.
"""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.text import Text

from llmcourse.figures import language
from llmcourse.figures import style as look
from llmcourse.figures.candidate_trace import CandidateStep, CandidateTrace, TracedNode
from llmcourse.figures.fonts import readable
from llmcourse.figures.speculation_strip import ACCEPTED, ACCEPTED_EDGE, OWN
from llmcourse.speculative.medusa import MedusaTree
from llmcourse.speculative.tree import ROOT

MOST_ROWS, MOST_COLUMNS = 40, 5  # that can be read
ROOT_WIDTH = 0.96  # inches, of the text's last token
LEFT, RIGHT = 0.12, 8.52
TOP, GAINS, TREE = 0.86, 1.12, 1.66  # inches from the figure's top: of heads' names, gains and tree
FILL = LinearSegmentedColormap.from_list("likely", [look.PAPER, "#a9c8e2"])
LEAST_SHOWN = 0.005  # of p: what is less would read 0 %
THICKEST = 7.0  # points, of the line to a token that its head is certain of
WIDEST_COUNT = 1.8  # inches, of a line beside the tree
Box = list[tuple[int | float, int | float]]


def rows_of(tree: MedusaTree) -> tuple[int, ...]:
    """The row of each node: a first child beside its parent, every other one in a row of its own below."""
    children: dict[int, list[int]] = {node: [] for node in range(ROOT, len(tree))}
    for node, parent in enumerate(tree.tree.parents):
        children[parent].append(node)
    rows, free, waiting = [0] * len(tree), 0, children[ROOT][::-1]
    while waiting:  # depth first, elder siblings before younger ones
        node = waiting.pop()
        rows[node] = free
        waiting += children[node][::-1]
        free += not children[node]
    return tuple(rows)


class CandidatePlot:
    """The figure of one tree, made once and then redrawn for other steps: fast enough to follow a slider.

    Args:
        tree: at most `MOST_ROWS` branches, and at most `MOST_COLUMNS` heads deep.

    Raises:
        ValueError: a tree that is too large to be read, or has no node.
    """

    def __init__(self, tree: MedusaTree):
        branches, allowed = len(tree.tree.paths), f"of 1 to {MOST_ROWS} branches"
        if not 1 <= branches <= MOST_ROWS or tree.depth > MOST_COLUMNS:
            raise ValueError(
                f"tree must be {allowed}, at most {MOST_COLUMNS} deep, to be read as a picture, got "
                f"{branches} branches and depth {tree.depth}; show another, as sparse(4, 4)"
            )
        self.tree, self.rows = tree, rows_of(tree)
        self.pitch = 0.29 if branches <= 20 else 0.235
        self.column = (RIGHT - LEFT - ROOT_WIDTH) / (max(tree.depth, 3) + 1)
        self.box = (self.column - 0.26, self.pitch - 0.045)
        self.height = TREE + self.pitch * branches + 0.1
        with look.style():
            self.figure = look.Picture(look.WIDTH, self.height)
            self.title, self.subtitle = look.heading(self.figure, " ", " ")
            self.axes = self.figure.add_axes((0, 0, 1, 1))
            self.axes.set(xlim=(0, look.WIDTH), ylim=(self.height, 0))
            self.axes.set_axis_off()
            self._make_key()
            self._make_names()
            self._make_tree()
            self._make_gains()
        changing = (self._lines, self._plain, self._stood, self._gain_boxes, self._own_box)
        texts = (*self._labels, *self._numbers, *self._gains, self._before, self._own_name, self._counts)
        self.figure.moving = [*changing, *texts, self.subtitle]

    def _place(self, node: int) -> tuple[float, float]:
        """The left edge and the middle of a node's box, in inches from the upper left."""
        depth = len(self.tree.choices[node])
        return self._left(depth), TREE + self.pitch * (self.rows[node] + 0.5)

    def _left(self, depth: int) -> float:
        return LEFT + ROOT_WIDTH + self.column * (depth - 1) + 0.26

    def _make_key(self) -> None:
        y, word = 0.71, {"size": 9, "color": look.MUTED, "va": "center"}
        for place, width in enumerate((1, 3, 6)):
            x = LEFT + 0.22 * place
            line = {"color": look.MUTED, "solid_capstyle": "butt", "linewidth": width}
            self.axes.plot([x, x + 0.17], [y, y], **line)
        self.axes.text(LEFT + 0.70, y, "how sure the head is", **word)
        shades = {"facecolors": FILL(np.linspace(0, 1, 4)), "edgecolors": look.LINE, "linewidths": 0.7}
        boxes = [_box(2.30 + 0.2 * place, y, 0.2, 0.15) for place in range(4)]
        self.axes.add_collection(PolyCollection(boxes, **shades), autolim=False)
        self.axes.text(3.17, y, "%  the backbone's probability", **word)
        edge = {"edgecolors": ACCEPTED_EDGE, "linewidths": 2.0}
        accepted = PolyCollection([_box(5.32, y, 0.2, 0.15)], facecolors=ACCEPTED, **edge)
        self.axes.add_collection(accepted, autolim=False)
        self.axes.text(5.60, y, "accepted", **word)
        own = PolyCollection([_box(6.42, y, 0.2, 0.15)], facecolors=OWN)
        self.axes.add_collection(own, autolim=False)
        self.axes.text(6.69, y, "bonus: the backbone's own", **word)

    def _make_names(self) -> None:
        name = {"size": 9.5, "color": look.MUTED, "va": "center"}
        for depth in range(1, self.tree.depth + 1):
            middle = self._left(depth) + self.box[0] / 2
            self.axes.text(middle, TREE - 0.12, f"head {depth}", ha="center", **name)
        self.axes.text(LEFT, GAINS, "text gains", **name)
        self.axes.text(LEFT, TREE - 0.12, "text ends in", **name)

    def _make_tree(self) -> None:
        self._lines = LineCollection([], capstyle="butt", zorder=1)
        self._plain = PolyCollection([], edgecolors=look.LINE, linewidths=0.8, zorder=2)
        self._stood = PolyCollection(
            [], facecolors=ACCEPTED, edgecolors=ACCEPTED_EDGE, linewidths=2.0, zorder=3
        )
        for collection in (self._lines, self._plain, self._stood):
            self.axes.add_collection(collection, autolim=False)
        text = {"va": "center", "zorder": 4}
        size = 9 if self.pitch > 0.25 else 8
        self._labels, self._numbers = [], []
        for node in range(len(self.tree)):
            left, middle = self._place(node)
            self._labels.append(self.axes.text(left + 0.06, middle, "", size=size, **text))
            right = left + self.box[0] - 0.05
            self._numbers.append(self.axes.text(right, middle, "", size=size, ha="right", **text))
        left = self._left(self.tree.depth + 1)
        word = {"size": 9, "color": look.MUTED, "va": "top", "linespacing": 1.5}
        self._counts = self.axes.text(left, TREE, "", **word)
        self._before = self.axes.text(LEFT, TREE + self.pitch / 2, "", size=9.5, weight="bold", **text)

    def _make_gains(self) -> None:
        self._gain_boxes = PolyCollection([], facecolors=ACCEPTED, edgecolors=ACCEPTED_EDGE, linewidths=1.3)
        self._own_box = PolyCollection([], facecolors=OWN, edgecolors=OWN, linewidths=1.3)
        for boxes in (self._gain_boxes, self._own_box):
            self.axes.add_collection(boxes, autolim=False)
        text = {"size": 9.5, "va": "center", "ha": "center", "zorder": 4}
        depths = range(1, self.tree.depth + 2)
        self._gains = [self.axes.text(self._left(d) + self.box[0] / 2, GAINS, "", **text) for d in depths]
        self._own_name = self.axes.text(0, GAINS, "", size=9.5, color=OWN, va="center", weight="bold")

    def update(self, trace: CandidateTrace, at: int, title: str = "") -> look.Picture:
        """Shows another step; arguments and errors as `plot_candidates`."""
        step, title = trace.check(at), title or "Medusa, step by step"
        if trace.tree != self.tree:
            raise ValueError(
                f"trace must be of this figure's tree, got one of {len(trace.tree)} nodes; make another"
            )
        with look.style():
            self.title.set_text(readable(title))
            self.figure.still_key = title
            self.subtitle.set_text(readable(happens(trace, at)))
            self._before.set_text(look.token(step.before, 10))
            self._counts.set_text("\n".join(self._wrapped(counted(trace, at))))
            self._draw_tree(step)
            self._draw_gains(step)
        self.figure.alt = f"{title}, step {at + 1} of {len(trace.steps)}. {in_words(trace, at)}"
        return self.figure

    def _wrapped(self, lines: tuple[str, ...]) -> list[str]:
        """Lines that end before the figure does, beside a tree that is deep."""
        narrow = RIGHT - self._left(self.tree.depth + 1) < WIDEST_COUNT
        return [line.replace(" after", "\nafter") if narrow else line for line in lines]

    def _draw_tree(self, step: CandidateStep) -> None:
        nodes = step.nodes or (None,) * len(self.tree)
        for one, label, number in zip(nodes, self._labels, self._numbers, strict=True):
            self._write(one, label, number)
        lines, boxes, stood = [], [], []
        for node, one in enumerate(step.nodes):
            left, middle = self._place(node)
            lines.append(self._line(self.tree.tree.parents[node], left, middle))
            (stood if one.stands else boxes).append(_box(left, middle, *self.box))
        thick = [0.4 + (THICKEST - 0.4) * one.q for one in step.nodes]
        colors = [ACCEPTED_EDGE if one.stands else look.LINE for one in step.nodes]
        self._lines.set(segments=lines, linewidths=thick, colors=colors)
        self._plain.set_verts(boxes)
        self._plain.set_facecolors([FILL(one.p) for one in step.nodes if not one.stands])
        self._stood.set_verts(stood)

    def _write(self, one: TracedNode | None, label: Text, number: Text) -> None:
        """A node's token and the backbone's probability of it; nothing where there is no node."""
        letters = max(3, int((self.box[0] - 0.48) / 0.083))
        label.set_text(look.token(one.label, letters) if one else "")
        number.set_text(f"{one.p:.0%}" if one and one.p >= LEAST_SHOWN else "")
        if one:
            ink = look.INK if one.stands or one.p >= 0.05 else look.MUTED
            for text in (label, number):
                text.set(fontweight="bold" if one.stands else "normal", color=ink)

    def _line(self, parent: int, left: float, middle: float) -> np.ndarray:
        """From a parent's right edge to a node's left one, level at both ends."""
        if parent == ROOT:
            x, y = LEFT + ROOT_WIDTH, TREE + self.pitch / 2
        else:
            x, y = self._place(parent)
            x += self.box[0]
        t = np.linspace(0, 1, 15)
        return np.column_stack((x + (left - x) * t, y + (middle - y) * t * t * (3 - 2 * t)))

    def _draw_gains(self, step: CandidateStep) -> None:
        width, letters = self.box[0], max(3, int(self.box[0] / 0.092))
        gained, own_at = step.gained, len(step.accepted)
        for place, text in enumerate(self._gains):
            text.set_text(look.token(gained[place].label, letters) if place < len(gained) else "")
            text.set_color(look.PAPER if place == own_at else look.INK)
        boxes = [_box(self._left(place + 1), GAINS, width, 0.27) for place in range(len(gained))]
        self._gain_boxes.set_verts(boxes[:own_at])
        self._own_box.set_verts(boxes[own_at:])
        room = len(gained) <= self.tree.depth and step.own is not None
        name = "◂ bonus" if step.accepted else "◂ the backbone's own"
        self._own_name.set(text=name if room else "", x=self._left(len(gained) + 1) - 0.18)


def plot_candidates(trace: CandidateTrace, at: int, title: str = "") -> look.Picture:
    """One step of a trace.

    Args:
        at: of `trace.steps`, counted from 0.

    Raises:
        ValueError: there is no such step, or the tree is too large to be read.
    """
    return CandidatePlot(trace.tree).update(trace, at, title)


def happens(trace: CandidateTrace, at: int) -> str:
    """What the step does, in one line."""
    step = trace.check(at)
    own = "" if step.own is None else f"“{look.shorten(step.own.label, 14)}”"
    if not step.nodes:
        return f"The backbone reads the prompt and writes {own}. The heads have not spoken yet."
    stood = len(step.accepted)
    verdict = "none stands" if not stood else f"a branch of {stood} stands"
    end = f"then the backbone writes {own}" if own else "and the text ends on it"
    return f"{len(step.nodes)} candidates, read in one pass: {verdict}, {end}."


def counted(trace: CandidateTrace, at: int) -> tuple[str, ...]:
    """What has come of it so far: tokens, passes of the backbone, and tokens a pass after the prompt's."""
    trace.check(at)
    count, passes, rate = trace.num_tokens(at), at + 1, trace.rates[at]
    told = (_of(count, "token"), f"in {_of(passes, 'pass', 'passes')}")
    return told if rate is None else (*told, f"{rate:.2f} a pass after the first")


def _of(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def in_words(trace: CandidateTrace, at: int) -> str:
    """The picture in words: the step, the accepted branch, and the likeliest candidates of the first head."""
    step = trace.check(at)
    words = [happens(trace, at)]
    if step.nodes:
        path = [one for one in step.nodes if one.stands]
        if path:
            words.append(f"Accepted: {'; '.join(map(_told, path))}.")
        first = [one for one, choice in zip(step.nodes, trace.tree.choices, strict=True) if len(choice) == 1]
        words.append(f"The first head proposed {'; '.join(map(_told, first[:4]))}.")
    return " ".join([*words, f"So far {', '.join(counted(trace, at))}."])


def _told(node: TracedNode) -> str:
    return f"{language.own(node.label)}, head {look.percent(node.q)}, backbone {look.percent(node.p)}"


def _box(left: float, middle: float, width: float, height: float) -> Box:
    right, top, bottom = left + width, middle - height / 2, middle + height / 2
    return [(left, top), (right, top), (right, bottom), (left, bottom)]
