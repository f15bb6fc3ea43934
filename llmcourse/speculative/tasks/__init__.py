"""Questions with answers that can be checked, for cascades to be judged and chosen on.

question    what a question is, and which side of a split its document belongs to
code_lines  complete a line of Python, from the running Python's own source
quatrains   close a Chinese quatrain with its rhyme
rhyme       how a character sounds: its rhyme and tone
"""

from llmcourse.speculative.tasks.code_lines import CodeLine, code_lines, standard_library
from llmcourse.speculative.tasks.quatrains import Quatrain, quatrains, write_openings
from llmcourse.speculative.tasks.question import Question, split, split_of

__all__ = [
    "CodeLine",
    "Quatrain",
    "Question",
    "code_lines",
    "quatrains",
    "split",
    "split_of",
    "standard_library",
    "write_openings",
]
