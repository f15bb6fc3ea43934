"""The rows of the table, in their order: the first is what speed-ups are measured against."""

from __future__ import annotations

from llmcourse.early_exit.classifier.methods.deebert import DEEBERT
from llmcourse.early_exit.classifier.methods.full import FULL
from llmcourse.early_exit.classifier.methods.half_depth import HALF_DEPTH
from llmcourse.early_exit.classifier.methods.method import Method
from llmcourse.early_exit.classifier.methods.pabee import PABEE
from llmcourse.early_exit.classifier.methods.past_future import PAST_FUTURE

# A method that starts from another's result stands below it.
METHODS: tuple[Method, ...] = (FULL, HALF_DEPTH, DEEBERT, PABEE, PAST_FUTURE)
