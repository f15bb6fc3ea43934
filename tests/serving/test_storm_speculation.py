"""The storms of `test_storm` and `test_storm_overlap`, in which some requests speculate and others do not."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from llmcourse.serving.speculation import Speculation
from tests.serving.fakes import Guess
from tests.serving.test_storm import Storm
from tests.serving.test_storm_overlap import OverlappingStorm


class Unreliable(Guess):
    """Fails at some texts, in one way or another."""

    def draft(self, text, most):
        tokens, q = super().draft(text, most)
        ways = [tokens, tokens, [*tokens, 1] * (most + 1), [self.vocab_size, *tokens[1:]], None]
        return ways[hash((8, *text)) % len(ways)], q


class Fickle(Guess):
    """Has nothing to say after most texts."""

    def draft(self, text, most):
        tokens, q = super().draft(text, most)
        return tokens if hash((9, *text)) % 3 == 0 else [], q


OPTIONS = [None, *map(Guess, (1, 2, 5, 20)), Unreliable(3), Fickle(3)]


class Speculating:
    """Part of a storm: requests take turns in the drawn options."""

    @initialize(options=st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=3))
    def choose_options(self, options):
        self.options = options

    def speculation(self) -> Speculation | None:
        return self.options[len(self.states) % len(self.options)]

    @invariant()
    def drafts_are_counted(self):
        for state in self.states:
            assert 0 <= state.num_accepted <= min(state.num_drafted, state.num_generated)
            assert state.num_drafted == 0 or state.request.speculation
            assert (state.speculator is None) == (state.status == "finished" or not state.request.speculation)
            if state.finish_reason == "error" and not isinstance(state.error, ArithmeticError):
                assert isinstance(state.request.speculation, Unreliable)


class SpeculatingStorm(Speculating, Storm):
    pass


class OverlappingSpeculatingStorm(Speculating, OverlappingStorm):
    def most_steps(self, longest: int) -> int:
        return 2 * longest  # it sits out every other one


SpeculatingStorm.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
OverlappingSpeculatingStorm.TestCase.settings = SpeculatingStorm.TestCase.settings
TestSpeculatingStorm = SpeculatingStorm.TestCase
TestOverlappingSpeculatingStorm = OverlappingSpeculatingStorm.TestCase
