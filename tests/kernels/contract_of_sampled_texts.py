"""Texts that the engine samples on a GPU follow the law of the target, as those on the CPU do.

Thousands of texts would take the interpreter hours; `test_kernels` runs this file where there is a GPU.
"""

import pytest

from llmcourse.speculative import LookupDrafter
from tests.chi_square import p_value
from tests.kernels.contract import DEVICE, seeded  # noqa: F401
from tests.speculative.engine.test_engine import FALSE_ALARM_RATE, SMALL, law, sampled
from tests.speculative.tiny import near, tiny_decoder


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("drafter", ["model", "lookup"])
def test_texts_that_the_engine_samples_follow_the_law_of_the_target(drafter, temperature):
    """An honest engine fails once in ten thousand fresh seeds; the seed is fixed."""
    model = tiny_decoder(vocab_size=SMALL)
    wanted = law(model, temperature)
    drafting = LookupDrafter(SMALL) if drafter == "lookup" else near(model, 0.08).to(DEVICE)
    found = sampled(model.to(DEVICE), temperature, drafting)
    assert p_value(found, wanted) > FALSE_ALARM_RATE
