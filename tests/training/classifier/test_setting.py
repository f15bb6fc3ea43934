"""Sizes and lengths that cannot be."""

import pytest

from llmcourse.training.classifier.setting import Setting


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 0},
        {"num_layers": 3},
        {"length": 7},
        {"share": 1.0},
        {"share": 0.0},
        {"steps": 0},
        {"tuning_steps": 0},
    ],
)
def test_what_is_no_setting(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        Setting(**change)
