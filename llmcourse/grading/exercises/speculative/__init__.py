"""The exercises of lab 4 about drafts and cascades, a module each, named as the exercise is.

accept_drafts       how many drafts of each row stand
residual            what a draft that fell is replaced from
speed_up            what drafting gains, from how often drafts stand and what they cost
look_up             drafts without a model: what followed the same tokens before
speculative_loop    draft, verify, keep what stands, roll the cache back
cascade_threshold   when a small model's answer is enough, chosen on held-out questions
"""
