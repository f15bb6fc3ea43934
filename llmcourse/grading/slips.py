"""Slips: failures that say nothing of the idea behind an answer, each with a line that names it.

No hint fits them, so none is given, and none is used up.
"""

from __future__ import annotations

import re

from llmcourse.grading.answer import Failure
from llmcourse.grading.compare import Difference

FORM = "the form of what is returned is wrong; its values were not compared yet"
RULE = "the values are right; only this is against the rules of the exercise"
ERROR = "an error ends the program before it has any answer"
STOPPED = "the program ended before it had an answer"
BY_KIND = {
    "time limit": "an endless loop, or far more work than inputs of this size need",
    "memory limit": "far more memory than inputs of this size need",
    "reply too large": "far more is returned than was asked for",
    "malformed reply": FORM,
}
NO_NAME = "a name that has no value there: misspelt, or from a cell that has not run?"
NO_MODULE = "something that cannot be imported"
BY_ERROR = {
    "NameError": NO_NAME,
    "UnboundLocalError": NO_NAME,
    "AttributeError": "an attribute that is not there: misspelt, or of another type than you think?",
    "TypeError": "a call or an operation with arguments of a wrong kind or number",
    "ImportError": NO_MODULE,
    "ModuleNotFoundError": NO_MODULE,
    "NotImplementedError": "a part that is not written yet, or that PyTorch has not for this dtype",
}


# What Python says when the function does not have the parameters that it is called with, each by its name.
OTHER_NAMES = re.compile(
    r"TypeError: ([\w.<>]+\.)?(?P<function>\w+|<lambda>)\(\) "
    r"(got an unexpected keyword argument|missing \d+ required positional|got some positional-only arguments)"
)


def of_failure(failure: Failure, first: bool, hinted: bool, signature: str) -> str:
    """What kind of slip made a call give no value; empty where it may be the idea that is wrong.

    Args:
        first: whether it was the first case. An answer that gives values, and then raises at one case,
            may have met what that case is about.
        hinted: whether there is a hint for this very case.
        signature: of the function that was called, `top_p_filter(logits, p)`.
    """
    if failure.kind != "raised":
        return BY_KIND.get(failure.kind, STOPPED)
    refused = OTHER_NAMES.match(failure.message)
    if refused and refused["function"] in (signature.split("(")[0], "<lambda>"):
        return f"keep the parameter names: {signature}"
    name = re.match(r"\w*", failure.message)[0]
    return BY_ERROR.get(name) or (ERROR if first and not hinted else "")


def of_difference(difference: Difference, broke_a_rule: bool, hinted: bool) -> str:
    """What kind of slip made a value wrong, or a call with a right one; empty where it is none.

    Args:
        hinted: whether there is a hint for the check that failed.
    """
    if difference.form:
        return FORM
    return RULE if broke_a_rule and not hinted else ""
