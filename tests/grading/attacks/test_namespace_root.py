"""All attacks, graded by root with bubblewrap around the walls."""

from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.suite import Suite


class TestAsRootInANamespace(Suite):
    tier = Tier.NAMESPACE
    ordinary = False
