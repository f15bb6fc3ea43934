"""The table of early exit: a small encoder, and classifiers with exits that are fine-tuned from it.

    texts         what is pre-trained on, and the tasks that are made of the same files
    masked        pre-training: the encoder fills in masked tokens
    next_passage  what else it learns: which passages follow each other
    fine_tune     one method on one task
    setting       how large the encoder is, and how long all of it is trained
    run           pre-training, all methods on all tasks, the results; what was trained before is kept

`python -m llmcourse.training.classifier` is the command; `early_exit.classifier` is what it trains.
"""
