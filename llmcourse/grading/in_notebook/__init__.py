"""An answer examined in the student's own notebook, and shown there.

source           what is read of an answer: its source, its helpers', and where what it uses comes from
call             puts a case to a function of this process
time_limit       ends a call that takes too long
printed          takes what a call prints off the page
box              a verdict to look at
"""
