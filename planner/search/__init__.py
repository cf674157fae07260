"""The multi-objective search over methods, batches, precisions, optimizers and placements.

    study             start here: the search
    problem, space    objectives, constraint and trials; the points
    evaluation        composed estimate of a point
    exhaustive        evaluates every point of a small space
    sampling          proposes points with a sampler
    pareto            front, hypervolume, stop rule

Storage:

    storage, backends, storage_url   the database of a study
    changed_problem   why a study is not continued
    study_lock, patience             several processes, and servers that do not answer
    trial_records, insert_trials     trials that are stored
    probe_storage     short trainings of a probe
    run_queue         queue of real runs (``planner.workers``)
    study_notes, dashboard           a study in optuna-dashboard
"""
