"""The rows of the table, each a module with its paper.

method       what a method consists of
full         all layers
half_depth   half of the layers, for every text
deebert      exits on a frozen model, taken by entropy
pabee        exits and layers trained together, taken by patience
past_future  exits that read all states so far and guess those to come, taken by entropy
rows         all of these, in the table's order
"""

from llmcourse.early_exit.classifier.methods.deebert import DEEBERT
from llmcourse.early_exit.classifier.methods.full import FULL
from llmcourse.early_exit.classifier.methods.half_depth import HALF_DEPTH
from llmcourse.early_exit.classifier.methods.method import Method, Stage
from llmcourse.early_exit.classifier.methods.pabee import PABEE
from llmcourse.early_exit.classifier.methods.past_future import PAST_FUTURE
from llmcourse.early_exit.classifier.methods.rows import METHODS

__all__ = ["DEEBERT", "FULL", "HALF_DEPTH", "METHODS", "PABEE", "PAST_FUTURE", "Method", "Stage"]
