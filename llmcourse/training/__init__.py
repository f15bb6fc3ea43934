"""How the embedded models were made, from text files to checkpoints.

    text         files to documents; which documents are held out
    tokenizer    byte-level BPE over all domains
    tokens       documents to token arrays, arrays to batches in a fixed order
    recipes      shapes and hyperparameters of `draft`, `small` and `base`
    optimizer    Muon for matrices, AdamW for the rest, one schedule
    pretrain     the loop: one GPU or several, resumable
    evaluate     nats per token and bits per character on held-out text
    export       Hugging Face layout and the model card
    exit_loss    what exit heads learn from; LayerSkip, which trains the backbone too
    exits        exit heads for a backbone: `python -m llmcourse.training.exits`

One command runs it all; `python -m llmcourse.training --help` lists its options.
"""
