"""What the student's code may do: compute, and nothing else.

policy         what is allowed, and how much of it this system can enforce
enter          the irrevocable step of a process into its sandbox
landlock       which files
seccomp        which calls to the kernel, from the table in `syscalls`
privileges     as whom
limits         how much memory, disk, processor time, how many threads
held           what of the disk a confined process takes that no folder shows
bubblewrap     the second wall, around all of these
probes         proof: tries what must not work, from the list in `attempts`
kernel         calls that Python has no name for

Nothing is imported here: each part is needed by another process.
"""
