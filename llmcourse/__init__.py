"""Deploying large language models: the package behind the course's notebooks and labs.

The order of the parts is the order of dependence; each imports only from those above it.

    arguments               how the command lines refuse what they cannot read
    progress                bars with the time left
    timing, hardware        how to time, and what the machine at hand can do
    attention, kv_cache     how tokens look at each other, by whole rows and by tiles; what is kept of it
    model, tokenizer        one decoder (Llama, Qwen2, Qwen3), text to tokens and back
    prompts                 openings of texts in the three domains
    pretrained              loading: `load("base")`, a folder, or a hub name
    decoding                from logits to text: processors, sampling, search, contrastive
    training                how the embedded weights were made
    pipeline                the whole course on one model, step by step
    figures                 plots as pure functions, widgets as thin views over them
    doctor, cli             `python -m llmcourse doctor | generate`
"""
