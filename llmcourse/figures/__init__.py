"""Plots as pure functions of their data, and widgets as thin views over them.

    fonts, subset_font      a small Chinese font in the package, and how it was made
    language                English or Chinese, where figures and widgets are shown; `chinese.json`
    drawn_text              a canvas that keeps the texts it has drawn
    style                   one look for all; `Picture`, a figure that shows itself in a notebook
    distribution            one next-token distribution: kept, cut, mass, entropy
    temperature             one distribution at several temperatures; calibration
    beam_tree               what beam search considered, kept and cut
    contrast                expert, amateur and their difference
    diversity               strategies against measures, a mark for each kind of text
    roofline_data           ceilings, operations and runs on a roofline
    roofline_plot           their figure
    labels                  labels that do not lie on one another
    cost_table              the operations of a layer: symbols, the lecture's numbers, the exact ones
    memory_bars             weights, cache and activations against what there is
    growth                  how a cost grows, measured and predicted
    tiles, tiles_plot       FlashAttention tile by tile: SRAM, running softmax, bytes moved
    softmax_rows            the online softmax watched on one row
    against_length          memory and time against length, until the memory is full
    timeline, timeline_plot slots and steps of batching policies, as the lecture draws them
    step_tokens             what steps compute, and the gaps between the tokens of one answer
    load_curve              what is answered in time under more and more load
    kernel_bars             recorded kernels against their limits and peers
    speculation_trace       a speculative text taken apart: drafts, verdict, the target's own token
    speculation_strip       its text in the lecture's three colours
    speculation_plot        its figure: drafts with p and q, and what a correction is drawn from
    speculation_speed       speed-up, predicted and measured: by draft length, and recorded
    cascade_curve           cost against quality of cascades, and what they gain over mixing single models
    cascade_plot            its figure
    cascade_answers         recorded answers as a cascade meets them, stage by stage
    block_dial              quality against tokens of a forward pass, by block size and passes
    exit_heat               entropy by layer and token, and where a rule of early exit leaves
    number_lines            the lecture's worked example, on a line of multiples of its scale
    format_points           the values of number formats on one axis
    rounded_weight          a weight in few bits: levels, clipping, error, signal to noise
    levels_plot             its figure
    clip_trade_off          rounding and clipping against the range, and the range that loses least
    outlier_split           outlier columns apart, the rest in int8: what a layer's product loses
    outlier_plot            its figure
    outlier_growth          what activations lose by int8 as a few channels grow
    layer_errors            what rounding loses layer by layer, and what other methods leave of it
    low_bit_bars            recorded low-bit layers by the number of rows, in speed-ups over 16 bits
    bits_curve              quality by bits, and what is lost by the size of a model
    soft_labels             what soft labels ask for at one position: loss, and a push for each token
    soft_labels_plot        its figure
    layer_links             which layer learns from which, what it takes, how alike they are (CKA)
    layer_links_plot        its figure
    study_plot              recorded students by kind: loss, agreement, calibration, gain over twins
    draft_gain              a draft before and after distillation: acceptance and speed-up
    pipeline_steps          the course's methods one upon the other: tokens a second beside the roofline
    course_map              the chapters, what each needs and draws on, and their minutes
    findings_table          what was found on this machine, what is missing, and the remedy
    machines_plot           several machines on one roofline
    tours                   ways through the course: minutes, and six weeks
    text_strip              a text coloured by the probability of its tokens
    widgets                 the views

Every figure has a function that computes its data, which tests assert on, and one that draws it.
"""
