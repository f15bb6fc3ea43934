"""All attacks, graded by root behind landlock and seccomp."""

from llmcourse.grading.sandbox.policy import Tier
from tests.grading.attacks.suite import Suite


class TestAsRootBehindLandlock(Suite):
    tier = Tier.LANDLOCK
    ordinary = False
