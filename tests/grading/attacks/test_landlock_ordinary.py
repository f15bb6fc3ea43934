"""All attacks, graded by an ordinary user behind landlock and seccomp."""

from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.suite import Suite


class TestAsAnOrdinaryUserBehindLandlock(Suite):
    tier = Tier.LANDLOCK
    ordinary = True
