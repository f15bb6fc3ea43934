"""Tasks for a classifier, made of real text: one text or a pair, a class, and a split by document.

task        what a task is, and which side of the split a document belongs to
pairs       pairs that belong together, and strangers
docstrings  does this docstring belong to this function: rebuilt offline from any Python
copies      files that hold what is asked about
books       running text cut into books
following   does this paragraph follow that one
variants    poems that are one poem, handed down in several ways
authors     who of four poets wrote these lines
"""

from llmcourse.early_exit.classifier.tasks.authors import author_task
from llmcourse.early_exit.classifier.tasks.books import book_name, books
from llmcourse.early_exit.classifier.tasks.copies import HeldOut
from llmcourse.early_exit.classifier.tasks.docstrings import docstring_task
from llmcourse.early_exit.classifier.tasks.following import following_task
from llmcourse.early_exit.classifier.tasks.task import SIDES, Example, Side, Task, by_side, side_of
from llmcourse.early_exit.classifier.tasks.variants import opening

__all__ = [
    "SIDES",
    "Example",
    "HeldOut",
    "Side",
    "Task",
    "author_task",
    "book_name",
    "books",
    "by_side",
    "docstring_task",
    "following_task",
    "opening",
    "side_of",
]
