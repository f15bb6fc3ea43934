import pytest

from llmcourse.serving.http.token_rate import TokenRate


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_tokens_of_the_last_seconds_count():
    clock = Clock()
    rate = TokenRate(window_s=4, clock=clock)
    assert rate.per_s() == 0
    for _ in range(12):
        rate.add(1)
    assert rate.per_s() == 0  # the running second is not over
    clock.now = 101.5
    assert rate.per_s() == 3
    rate.add(8)
    clock.now = 103.9
    assert rate.per_s() == 5
    clock.now = 105.0
    assert rate.per_s() == 2
    clock.now = 200.0
    assert rate.per_s() == 0 and rate.total == 20


def test_a_window_of_no_seconds_is_refused():
    with pytest.raises(ValueError, match="window_s must be an integer of at least 1, got 0; use 10"):
        TokenRate(0)
