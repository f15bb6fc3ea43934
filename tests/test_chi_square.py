"""The statistics that tests rely on, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.chi_square import holm, p_value


def test_pearsons_test_on_a_coin():
    # 60 heads of 100: (10² + 10²) / 50 = 4, one degree of freedom
    assert p_value([0] * 60 + [1] * 40, np.array([0.5, 0.5])) == pytest.approx(0.0455, abs=1e-4)


def test_cells_too_small_are_pooled():
    # expected 90, 4, 3, 3: the last three are one cell of 10
    tokens = [0] * 80 + [1] * 15 + [2] * 5
    assert p_value(tokens, np.array([0.9, 0.04, 0.03, 0.03])) == pytest.approx(0.00086, abs=1e-5)


def test_an_impossible_token_is_seen():
    assert p_value([0] * 50 + [1] * 50 + [2], np.array([0.5, 0.5, 0.0])) == 0


def test_a_certain_token_leaves_nothing_to_test():
    assert p_value([1] * 50, np.array([0.0, 1.0])) == 1


def test_holms_correction():
    # four tests: 0.01 · 4, 0.02 · 3, 0.03 · 2, which may not fall below the one before, and 0.5
    assert holm([0.5, 0.02, 0.01, 0.03]).tolist() == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([0.9, 0.8]).tolist() == pytest.approx([1, 1])
