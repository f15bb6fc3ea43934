"""Processes that run a student's code, and how the judge speaks with them.

nursery, fork_client, uids      in the judge's process: starts workers and asks them, under deadlines
fork_server, scratch            the process that workers are copies of; watches and ends them
worker, replay                  in a worker, beside the student's code
observe, operations, aliasing   one call of that code, here or in a student's own notebook
origins                         which objects an answer reaches, and the modules that they are from
wire, frames, deadline          messages, and by when
allowance                       how much a worker may use, which all of them know

Nothing is imported here. What stands below the first line is in the memory that a student's code shares,
so it imports nothing of the exercises or of the judge.
"""
