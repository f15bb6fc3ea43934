"""Through the kernels, models in packed codes write what they write through PyTorch's operations.

Run beside `contract.py`, whose remarks on interpreter and GPU hold here too; on a GPU steps are CUDA graphs.
"""

import pytest

from llmcourse.decoding.engine import DecodeEngine
from llmcourse.speculative.engine import SpeculativeEngine
from tests.kernels.contract import DEVICE, seeded  # noqa: F401
from tests.kernels.contract_of_serving import test_the_same_tokens_as_by_the_reference as served
from tests.kernels.contract_of_serving import tiny
from tests.packed_model import packed_model

PROMPTS = [[5, 6, 7], [8, 9, 1]]


@pytest.mark.parametrize(("bits", "group_size", "rows"), [(4, 16, 1), (8, None, 2)])
def test_engines_write_what_they_write_by_the_reference(bits, group_size, rows):
    model = packed_model(tiny(), bits=bits, group_size=group_size)
    answers = []
    for backend in ("reference", "triton"):
        engine = DecodeEngine(model, backend=backend)
        engine.start(PROMPTS[:rows], 12)
        answers.append(engine.decode(4).tolist())
    assert answers[0] == answers[1] and len({*answers[0][0]}) > 1
    drafting = SpeculativeEngine(
        model, packed_model(tiny(), bits=3, group_size=16), draft_length=2, backend="triton"
    )
    assert drafting.generate(PROMPTS[:rows], 4).tokens == answers[0]


def test_they_are_served(monkeypatch):
    from llmcourse.serving import ContinuousBatching

    monkeypatch.setattr("tests.kernels.contract_of_serving.tiny", lambda: packed_model(tiny(), group_size=16))
    served(ContinuousBatching())
