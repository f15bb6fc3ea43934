"""Early exit in a classifier: the lecture's table, on a small encoder of our own.

encoder     the family's layers, where every token sees the whole text; `draft`'s embedding table
tasks       three tasks from real text, split by document
encoded     a side of a task as token rows
exits       a classifier that reads a state after each layer, and may stop there
methods     full, half the layers, DeeBERT, PABEE, past and future
taken       which exit a rule takes
equal_speed the rule that brings a method to a speed, so that all are compared at one
overlap     what counting the words that two texts share reaches
intervals   how sure a mean is whose examples come in few documents
table       score and both speed-ups, and how sure a difference is
recorded    what the exits said, read back: any speed can be tried

`llmcourse.training.classifier` trains it all.
"""
