"""An answer examined in the student's own notebook, and shown there.

source           which names an answer needs, from its objects and the cells that they are from
call             puts a case to a function of this process
time_limit       ends a call that takes too long
printed          takes what a call prints off the page
box              a verdict to look at
"""
