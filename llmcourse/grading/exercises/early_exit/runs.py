"""What the cases of 04.patience_exit are drawn from: favourites that stay for some layers, and a patience."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Runs:
    """Rows of favourites in runs whose lengths are drawn, and a patience that fits them.

    How many layers and rows there are does not say where a row leaves. Token 0 is a favourite in cases of
    its own, and in those behind them.
    """

    rng: random.Random
    vocab: int

    def a_streak(self):
        """The first favourite that comes twice in a row; none comes again."""
        patience = self.rng.randint(2, 4)
        lengths = [1] * self._up_to(3) + [patience + self.rng.randint(3, 4), self._up_to(2), self._up_to(2)]
        favourites = self.rng.sample(range(1, self.vocab), len(lengths))
        runs = zip(favourites, lengths, strict=True)
        return [[token for token, length in runs for _ in range(length)]], patience

    def a_break(self):
        """Two favourites in turn."""
        patience = self.rng.randint(3, 4)
        short = [self.rng.randint(2, patience), self.rng.randint(2, patience), self._up_to(2)]
        lengths = [*short, patience + self._up_to(2), self._up_to(2)]
        two = self.rng.sample(range(1, self.vocab), 2)
        return [[two[n % 2] for n, length in enumerate(lengths) for _ in range(length)]], patience

    def a_blink(self):
        """Another favourite for a single layer, and the first one again for long enough."""
        patience = self.rng.randint(2, 4)
        lengths = [self._up_to(patience), 1, patience + self.rng.randint(2, 4), self._up_to(3)]
        one, other, last = self.rng.sample(range(1, self.vocab), 3)
        runs = zip((one, other, one, last), lengths, strict=True)
        return [[token for token, length in runs for _ in range(length)]], patience

    def first_0(self):
        """Token 0, a layer less often than it takes to leave, and then another for long enough."""
        patience = self.rng.randint(2, 4)
        lengths = [patience, *self._lengths(self._up_to(3), 2), patience + self._up_to(3), self._up_to(2)]
        return [self._with(0, 0, lengths)], patience

    def answer_0(self):
        """Token 0 for long enough and longer, behind some that are not."""
        patience = self.rng.randint(2, 4)
        before = self._lengths(self._up_to(4), 2)
        lengths = [*before, patience + self.rng.randint(2, 4), self._up_to(patience)]
        return [self._with(0, len(before), lengths)], patience

    def a_long_patience(self):
        """More than 4; one less than it takes, and then enough."""
        patience = self.rng.randint(5, 6)
        lengths = [self._up_to(3), self.rng.randint(5, patience), patience + self._up_to(2), self._up_to(2)]
        return [self._row(*lengths)], patience

    def several(self):
        return self.rows(self.rng.randint(6, 9), 5, end=(2,)), self.rng.randint(2, 3)

    def too_few(self):
        layers = self.rng.randint(3, 7)
        return self.rows(layers, layers), layers + self.rng.randint(0, 2)

    def a_late_change(self):
        """Nothing is confirmed often enough before it."""
        layers, patience = self.rng.randint(6, 9), self.rng.randint(2, 4)
        return self.rows(layers - 1, patience, end=(1,)), patience

    def one_change(self):
        """A row with a favourite of one layer in front of the one that stays."""
        patience = self.rng.randint(2, 3)
        return [self._row(self._up_to(2), 1, patience + 2, self._up_to(2))], patience

    def rows(self, layers, longest, end=()):
        """Two to four rows of so many layers, of runs that are no longer than this, and an end."""
        return [self._row(*self._lengths(layers, longest), *end) for _ in range(self.rng.randint(2, 4))]

    def _lengths(self, layers, longest):
        lengths = []
        while left := layers - sum(lengths):
            lengths.append(self._up_to(min(longest, left)))
        return lengths

    def _up_to(self, most):
        return self.rng.randint(1, most)

    def _with(self, token, place, lengths):
        """Runs of these lengths, one of them of this token, which is in no other."""
        row = []
        for n, length in enumerate(lengths):
            others = [other for other in range(self.vocab) if other != token and row[-1:] != [other]]
            row += [token if n == place else self.rng.choice(others)] * length
        return row

    def _row(self, *lengths):
        """Favourites in runs of these lengths, no two neighbours alike."""
        row = []
        for length in lengths:
            row += [self.rng.choice([token for token in range(self.vocab) if row[-1:] != [token]])] * length
        return row
