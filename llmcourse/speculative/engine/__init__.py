"""The speculative loop where no step waits for the host: drafts, verdict and rollback stay on the device.

drafting    γ tokens of a smaller model, drawn on the device
lookups     γ tokens that the host looks up in the text
reports     what steps report, while the next one runs
stepping    what engines have in common: steps that are launched ahead, and read later
engine      `SpeculativeEngine`: draft, verify and settle as one recorded step, and one round trip a step
"""

from llmcourse.speculative.engine.engine import SpeculativeEngine
from llmcourse.speculative.engine.stepping import Speculated

__all__ = ["Speculated", "SpeculativeEngine"]
