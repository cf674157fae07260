"""Seconds and power of operations on a device.

Rates of a device, and the numbers computed from them:

    rates             start here: fitted kernels, a timed GPU, or timed operations of a CPU
    roofline          rates, and the seconds and the power of operations
    step_load         sums over operations, from which a step's seconds follow
    predicted_cost    seconds and joules of a report, with origins and intervals

GPUs:

    kernel_terms      quantities of a kernel: FLOPs, bytes, launches
    size_curves       factors of matrix products by their sizes
    kernel_rates      seconds for a unit of each quantity: coefficients and the data sheet
    lever_factors     factors of levers (channels-last, TF32) on them
    power             power while it trains
    gpu_rates         rates of a GPU that the device table lacks

CPUs:

    cpu_rates         each kind of operation, timed here
    cpu_spread        intervals of times on a processor, from the studies
    recompute_python  Python code of recomputation, timed here
    operation_tally   counts the operations of these timings
    processor_wait    time in which other programs had the processor

Correction of predicted seconds by real runs of this machine:

    measured_runs     the runs that are kept
    calibration_cells short steps that ``budgetplan calibrate`` adds to them
    corrections       the fit
    kept_corrections  its result in the store
"""
