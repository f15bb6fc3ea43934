"""The lecture's picture comes out of the schedulers, cell for cell."""

import pytest

from llmcourse.serving.lecture_grid import grid, lecture_trace
from llmcourse.serving.policies import ChunkedPrefill, ContinuousBatching, TraditionalBatching

TRADITIONAL = """
S1 S1 S1 S1 S1  END .   .
S2 S2 S2 S2 S2  S2  S2  END
S3 S3 S3 S3 END .   .   .
S4 S4 S4 S4 S4  S4  END .
"""
CONTINUOUS = """
S1 S1 S1 S1 S1  END S6  S6
S2 S2 S2 S2 S2  S2  S2  END
S3 S3 S3 S3 END S5  S5  S5
S4 S4 S4 S4 S4  S4  END S7
"""


def cells(picture: str) -> list[list[str]]:
    return [["" if cell == "." else cell for cell in row.split()] for row in picture.strip().splitlines()]


@pytest.mark.parametrize(
    ("policy", "picture"),
    [
        (TraditionalBatching(), TRADITIONAL),
        (ContinuousBatching(), CONTINUOUS),
        (ChunkedPrefill(), CONTINUOUS),  # prompts of one token leave nothing to cut
    ],
)
def test_the_picture_comes_out(policy, picture):
    assert grid(lecture_trace(policy)) == cells(picture)


def test_the_next_traditional_batch_begins_at_step_nine():
    rows = grid(lecture_trace(TraditionalBatching()), steps=9)
    assert [row[8] for row in rows] == ["S5", "S6", "S7", ""]


def test_other_lengths_and_slots_give_other_pictures():
    trace = lecture_trace(ContinuousBatching(), {"a": 1, "b": 2, "c": 1}, slots=2)
    assert grid(trace, 2, 3) == [["END", "END", ""], ["b", "END", ""]]
