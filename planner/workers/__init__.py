"""Real runs on other machines: orders in a queue beside the study, taken by workers.

    orders      a run as the queue holds it, and its outcome
    run_device  the device of a worker, and the orders that it can run
    real_run    runs an order for a few steps in the sandbox
    worker      takes orders until it is stopped
    run_pool    enqueues orders, waits for them, and runs them here if there are no workers
    slurm       starts workers through SLURM

The queue is ``planner.search.run_queue``.
"""
