"""The recommendation: from a request to an answer with plan files.

    pipeline          start here: the stages in their order

Request:

    build_request, request           checked arguments
    several_backbones, shortlist     several backbones in one request; those of ``auto``
    data_facts, image_size, objective, lever_choice   single arguments

Stages:

    search_backbones  the search, for each backbone
    replay_front      rows of the answer, replayed whole
    levers            levers that a row takes
    probe_front, probe_run_order, after_probe   short trainings, and the rows chosen by them
    rehearse_front    rows on an emulated GPU
    real_runs         rows for a few steps under the budget
    tested_rate       learning rate of the recommended plan
    run_limits        time limits of these runs
    checks            records between the stages

Choice:

    ranking           rules between candidates within the budget
    named_rows        rows of the answer: recommended, fastest, smallest, safest
    choose, method_reason            the recommended row and the reason
    choose_by_probe   the same after a probe
    limits            limits of accuracy, duration and energy
    ranking_accuracy  accuracies that can rank candidates

Answer:

    answer            the record
    build_entry, recipes, provenance   a row's plan
    alternatives, smaller_images     rows to compare with the recommended one
    baselines         defaults of the paper
    without_training  published models that need no fine-tuning
    notes, study_note, run_totals    sentences and totals
    infeasible        advice when nothing fits

Of plans that exist:

    explain           memory and choices of a plan
    compare_scores, score_inputs     scores of several plans
"""
