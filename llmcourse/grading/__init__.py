"""Exercises, and grades that can be trusted: the judge outside, the student's code inside.

exercise, compare, rules, question     what an exercise is, and how one answer to it is examined
exercises/, selfcheck, lab_view        the exercises of every lab; what a student runs and sees
labs                                   labs made from solutions
files, archive, identity, companions, intake    what was handed in, and by whom, read with suspicion
notebook, cell_text, lab_text, locked_cells, matching    which cells of a notebook answer what
sandbox/                               what the student's code may do: nothing but compute
wire, frames, answer                   the judge's questions and the worker's answers
worker, replay, operations             in the process that runs a student's code
nursery, scratch, uids                 the fork server that these processes come from
workers, fork_server, allowance        the judge's handle on both
judge, results, batch, assembly        from a submission to its points, and many of them
gradebook, adjustments, folder         points that are kept
reports, feedback, overview, summary, progress, printable    points that are shown
commands                               `llmcourse grade`, `llmcourse gradebook` and `llmcourse labs`

Nothing is imported here: the process that runs a student's code must not hold the exercises.
"""
