"""Labels that do not lie on one another: points that coincide share one, the others keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Where a label is tried, in steps of half its size from the point: the best first, upwards.
PLACES = (
    (0, 1),
    (-1, 0.9),
    (-1, 0.1),
    (-0.6, 2),
    (0, 2.4),
    (-1.6, 1.6),
    (0.8, 1),
    (-1, 3.4),
    (0, 4),
    (1, 2.6),
)
GAP = 9.0  # pixels between a point and the edge of its label
Rows = Sequence | np.ndarray  # points (x, y), or boxes (left, bottom, right, top)


@dataclass(frozen=True)
class Label:
    """A text of a width and height in pixels, and the point (x, y) that it belongs to.

    Attributes:
        up: looks for room above and to the left first, else below and to the right.
    """

    point: tuple[int | float, int | float]
    width: int | float
    height: int | float
    up: bool = True


def clusters(points: Rows, distance: int | float) -> list[list[int]]:
    """Indices of points that hang together, neighbours from left to right being at most `distance` apart.

    Within a cluster indices keep their order.
    """
    found: list[list[int]] = []
    last = None
    for index in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if last is not None and np.hypot(*np.subtract(points[index], points[last])) <= distance:
            found[-1].append(index)
        else:
            found.append([index])
        last = index
    return [sorted(group) for group in found]


def place(labels: Sequence[Label], obstacles: Rows, bounds: Rows) -> np.ndarray:
    """The centre `(x, y)` of each label: the first place where it covers nothing.

    Boxes are `(left, bottom, right, top)` in pixels.

    Args:
        obstacles: boxes that must not be covered; labels that are placed join them.
        bounds: the box that labels must not leave.

    Returns:
        centres, one a row; of a label that finds no room, where it covers least.
    """
    taken = [*obstacles]
    centres = []
    for label in labels:
        boxes = _candidates(label)
        inside = overlaps(boxes, [bounds])
        whole = label.width * label.height
        covered = overlaps(boxes, taken) + (whole - inside) * 2
        best = (
            int(np.argmax(covered < 1e-6 * whole))
            if (covered < 1e-6 * whole).any()
            else int(covered.argmin())
        )
        taken.append(boxes[best])
        centres.append((boxes[best][:2] + boxes[best][2:]) / 2)
    return np.array(centres).reshape(-1, 2)


def overlaps(boxes: Rows, others: Rows) -> np.ndarray:
    """For each box the area that it shares with all others, added up."""
    a = np.reshape(boxes, (-1, 1, 4)).astype(float)
    b = np.reshape(others, (1, -1, 4)).astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return sides.clip(0).prod(-1).sum(-1)


def _candidates(label: Label) -> np.ndarray:
    steps = np.array(PLACES) * (1 if label.up else -1)
    mirrored = steps * (-1, 1)
    half = np.array([label.width, label.height]) / 2
    centres = np.array(label.point) + np.concatenate([steps, mirrored, -steps]) * (half + GAP)
    return np.concatenate([centres - half, centres + half], axis=1)
