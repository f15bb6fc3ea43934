"""Exercises, and grades that can be trusted: the judge outside, the student's code inside.

exercise, compare, rules, question, answer     what an exercise is, and how one answer to it is examined
exercises/                                     the exercises of every lab
names_used                                     what an answer needs from outside, by text and by objects
slips                                          failures that no hint fits, and what is said of them
selfcheck, lab_view, in_notebook/              what a student runs and sees
labs                                           labs made from solutions
intake/                                        what was handed in, and by whom, read with suspicion
cells/                                         which cells of a notebook answer what
process/                                       processes that run a student's code
sandbox/                                       what that code may do: nothing but compute
sitting, judge, results, batch                 from questions to a submission's points, and many of them
records/                                       points that are kept, and points that are shown
assembly, commands                             `llmcourse grade`, `llmcourse gradebook` and `llmcourse labs`
printable                                      text of strangers, wherever it is shown

Nothing is imported here: the process that runs a student's code must not hold the exercises.
"""
