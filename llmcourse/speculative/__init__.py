"""Several tokens for one pass of the model: a cheap drafter proposes, the target verifies, the text is its own.

verify         which drafts stand, and the target's token after them: no distribution is changed
arguments      what verification refuses
distributions  p and q as tokens are drawn from them, after penalties, temperature and truncation
theory         expected tokens and speed-up from α, γ and c; the best γ
drafter        what proposes drafts, behind one interface
lookup         a drafter without a model: what followed the last tokens before
draft_length   how many to ask for: fixed, or by the acceptance seen
"""
