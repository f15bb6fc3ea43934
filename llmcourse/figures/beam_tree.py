"""Beam search as a picture: at every step a ranking, of which the best few go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from matplotlib.patches import FancyBboxPatch

from llmcourse.decoding.beam import BeamNode, BeamSearch
from llmcourse.figures import style as look

Fate = Literal["kept", "finished", "cut"]
COLUMNS = 6  # steps that fit side by side


@dataclass(frozen=True)
class TreeBox:
    """One candidate where it stands: its column is the step, its row the rank among that step's."""

    node: int
    parent: int | None
    step: int
    row: int
    label: str
    log_prob: float
    probability: float  # of this token after its parent
    fate: Fate
    best: bool  # on the path of the best hypothesis so far


@dataclass(frozen=True)
class BeamTree:
    """The boxes of steps `first_step` to `last_step`, and the best text up to there."""

    boxes: tuple[TreeBox, ...]
    first_step: int
    last_step: int
    columns: int  # that the figure keeps room for, so that it does not grow from step to step
    rows: int
    best_tokens: tuple[int, ...]
    best_log_prob: float

    @property
    def considered(self) -> int:
        return len(self.boxes)


def beam_tree(
    search: BeamSearch,
    label: Callable[[int], str],
    last_step: int | None = None,
    columns: int = COLUMNS,
) -> BeamTree:
    """The last `columns` steps up to `last_step`, ready to draw.

    The best path leads to the best hypothesis when the search is over, before that to the
    likeliest candidate of the step that went on or ended.

    Args:
        search: what `llmcourse.decoding.beam.beam_search` returns.
        label: a token's text for readers, such as `tokenizer.label`.
        last_step: counted from 0; None for the end of the search.

    Raises:
        ValueError: the search has no such step.
    """
    final = max(node.step for node in search.nodes)
    last = final if last_step is None else last_step
    if not 0 <= last <= final:
        raise ValueError(f"last_step must be in [0, {final}], got {last}; None shows the whole search")
    first = max(0, last - columns + 1)
    leader = _leader(search, last, final)
    path = search.path(leader)
    best = {node.id for node in path}
    boxes, ranks = [], {}
    for node in search.nodes:
        row = ranks[node.step] = ranks.get(node.step, -1) + 1
        if first <= node.step <= last:
            boxes.append(_box(node, row, label, node.id in best))
    rows = 1 + max(ranks.values())
    tokens = tuple(node.token for node in path)
    return BeamTree(
        tuple(boxes), first, last, min(columns, final + 1), rows, tokens, search.nodes[leader].log_prob
    )


def _leader(search: BeamSearch, last: int, final: int) -> int:
    if last == final and search.hypotheses:
        return search.hypotheses[0].node
    alive = [node for node in search.nodes if node.step == last and (node.kept or node.finished)]
    return max(alive or [node for node in search.nodes if node.step == last], key=lambda n: n.log_prob).id


def _box(node: BeamNode, row: int, label: Callable[[int], str], best: bool) -> TreeBox:
    fate: Fate = "finished" if node.finished else "kept" if node.kept else "cut"
    text, probability = label(node.token), math.exp(node.token_log_prob)
    return TreeBox(node.id, node.parent, node.step, row, text, node.log_prob, probability, fate, best)


HALF_WIDTH, HALF_HEIGHT = 0.36, 0.37
LOOKS = {
    "kept": {"facecolor": "#e3eef7", "edgecolor": look.KEPT, "linewidth": 1.3},
    "finished": {"facecolor": look.SERIES[0], "edgecolor": look.SERIES[0], "linewidth": 1.3},
    "cut": {"facecolor": look.PAPER, "edgecolor": "#e2d3c2", "hatch": look.CUT_HATCH, "linewidth": 0.8},
}
NAMES = {"kept": "goes on", "finished": "ends", "cut": "cut"}


def plot_beam_tree(tree: BeamTree, title: str = "Beam search") -> look.Picture:
    """Boxes by step and rank; cut ones pale and hatched, the best path in orange.

    In a box stand its token, the log-probability of the text up to it, and the probability of
    the token alone.
    """
    with look.style():
        height = 1.3 + 0.47 * tree.rows
        picture = look.Picture(max(8.0, look.WIDTH * (tree.columns + 0.3) / (COLUMNS + 0.3)), height)
        joined = look.token("".join(_best_labels(tree)), 48)
        subtitle = f"best so far: {joined} · log-probability {_minus(tree.best_log_prob)}"
        look.heading(picture, title, subtitle)
        axes = picture.add_axes((0.012, 0.01, 0.976, 1 - 0.80 / height))
        axes.set(xlim=(-0.78, tree.columns - 0.6), ylim=(tree.rows - 0.45, -1.0))
        axes.set_axis_off()
        _draw_key(picture)
        places = {box.node: (box.step - tree.first_step, box.row) for box in tree.boxes}
        for column in range(tree.last_step - tree.first_step + 1):
            name = f"step {tree.first_step + column + 1}"
            axes.text(column, -0.72, name, ha="center", size=9.5, color=look.MUTED)
        for box in tree.boxes:
            _draw_edge(axes, box, places, from_prompt=not tree.first_step)
            _draw_box(axes, box, places[box.node])
        root = {"size": 9.5, "color": look.MUTED, "va": "center", "ha": "center"}
        axes.text(-0.69, 0, "…" if tree.first_step else "prompt", rotation=90, **root)
        picture.alt = f"{title}, step {tree.last_step + 1}: {tree.considered} candidates; {subtitle}."
    return picture


def _best_labels(tree: BeamTree) -> list[str]:
    start = ["…"] if tree.first_step else []
    return start + [box.label for box in sorted(tree.boxes, key=lambda box: box.step) if box.best]


def _minus(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _draw_key(picture: look.Picture) -> None:
    """What the looks of a box mean, at the upper right; places are inches from the corner."""
    width, height = picture.get_size_inches()
    for place, (fate, name) in enumerate(NAMES.items()):
        x, y = width - 2.35 + 0.85 * place, height - 0.19
        corner, sizes = (x / width, (y - 0.06) / height), {"width": 0.2 / width, "height": 0.12 / height}
        patch = FancyBboxPatch(corner, boxstyle="square,pad=0", **sizes, **LOOKS[fate])
        patch.set_transform(picture.transFigure)
        picture.add_artist(patch)
        picture.text((x + 0.27) / width, y / height, name, size=9.5, color=look.MUTED, va="center")


def _draw_edge(axes, box: TreeBox, places: dict, from_prompt: bool) -> None:
    x, y = places[box.node]
    start, from_y = -0.58, 0 if from_prompt else y
    if box.parent in places:
        start, from_y = places[box.parent][0] + HALF_WIDTH, places[box.parent][1]
    end, steps = x - HALF_WIDTH, [i / 20 for i in range(21)]
    xs = [start + (end - start) * t for t in steps]
    ys = [from_y + (y - from_y) * t * t * (3 - 2 * t) for t in steps]  # level at both ends
    color = look.ACCENT if box.best else look.LINE if box.fate == "cut" else look.KEPT
    width = 2.4 if box.best else 0.8 if box.fate == "cut" else 1.2
    axes.plot(xs, ys, color=color, linewidth=width, zorder=2 if box.best else 1, solid_capstyle="butt")


def _draw_box(axes, box: TreeBox, place: tuple[int, int]) -> None:
    x, y = place
    best = {"edgecolor": look.ACCENT, "linewidth": 2.2} if box.best else {}
    shape = "round,pad=0,rounding_size=0.07"
    corner = (x - HALF_WIDTH, y - HALF_HEIGHT)
    sizes = {"width": 2 * HALF_WIDTH, "height": 2 * HALF_HEIGHT, "boxstyle": shape, "mutation_aspect": 2}
    axes.add_patch(FancyBboxPatch(corner, zorder=3, **sizes, **(LOOKS[box.fate] | best)))
    ink = {"kept": look.INK, "finished": look.PAPER, "cut": look.MUTED}[box.fate]
    text = {"color": ink, "ha": "center", "va": "center", "zorder": 4}
    weight = "bold" if box.best else "normal"
    axes.text(x, y - 0.14, look.token(box.label, 10), size=10, weight=weight, **text)
    axes.text(x, y + 0.18, f"{_minus(box.log_prob)} · {look.percent(box.probability)}", size=9, **text)
