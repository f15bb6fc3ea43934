"""All attacks, graded by an ordinary user with bubblewrap around the walls."""

from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.suite import Suite


class TestAsAnOrdinaryUserInANamespace(Suite):
    tier = Tier.NAMESPACE
    ordinary = True
