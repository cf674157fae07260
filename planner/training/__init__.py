"""Training by a plan, and every other real run: validation, probe, rehearsal.

Training (``budgetplan train``):

    training_run      start here: the stages of a training
    loop, session     steps, evaluations and checkpoints; the model in training
    choose_recipe, resolve_recipe    the default recipe; the plan's, with the caller's changes
    rate_schedule, parameter_groups  learning rate and weight decay
    zero_classifier   a new classifier begins with zeros
    checkpoints, history, run_files, output_folder, loggers   files of a training
    interrupt         Ctrl-C
    active_placement, oom_fallback, adaptive_rule   placement during a training
    run_options, training_device, plan_check        options and checks of a run
    images/           labelled images

Use of a trained model:

    trained_model, use_trained, input_transform     load, evaluate, classify
    evaluate, inference              accuracy; time, peak and power
    apply, own_loop   a plan in the user's own loop

Short runs of candidates:

    validation, validation_run, validation_messages, short_training   a few steps under the budget
    rehearsal, rehearsal_run         on an emulated GPU
    probe, probe_run, probe_process, probe_images   short trainings that compare methods
    probe_statistics, short_runs     accuracy expected after the whole training
    probe_records, probe_messages    their records
    find_rate         the learning-rate test
    features, frozen_units           frozen parts, computed once for each image
"""
