"""How the embedded models were made, from text files to checkpoints.

    text         files to documents; which documents are held out
    tokenizer    byte-level BPE over all domains
    tokens       documents to token arrays, arrays to batches in a fixed order
    recipes      shapes and hyperparameters of `draft`, `small` and `base`
    optimizer    Muon for matrices (`muon`: of one shape together), AdamW for the rest, one schedule
    pretrain     the loop: one GPU or several, resumable
    family       from text files to the whole family, one member after the other
    options      what all training programs ask on their command lines
    checkpoint   a run as one file, to go on from
    processes    how one of several processes begins and ends
    interrupts   signals that wait for the end of a step
    evaluate     nats per token and bits per character on held-out text
    export       Hugging Face layout and the model card

What is trained on a member of the family, which stays as it is if not said otherwise, each by its program:

    backbone     what these have in common
    paced        trainings that end by their steps or by the clock
    step_graph   one of their steps as a single launch on a GPU
    medusa       heads that guess further tokens, also with their backbone; `heads` is what they learn
                 with `own_text` on what their backbone writes
    exits        exit heads on every layer; `exit_loss` is what they learn
    layer_skip   the same with their backbone: LayerSkip, and a loss for self-speculation
    blocks       adapters that let it write in blocks

And apart from the family:

    classifier   the small encoder of the table of early exit, and all classifiers that are made of it

The family is one command; `python -m llmcourse.training --help` lists its options.
"""
