"""One training step on fake tensors, with the birth and death of every storage recorded.

    step_replay       start here: replays the step of a candidate
    module_replay, inference_replay   the same of a module of the user, and of an inference
    event_log         the result: births and deaths, marks, operations
    unit_spans        phases and units in a log

Recording:

    recorder          dispatch mode that follows every storage and operation
    storages          births and deaths of storages
    step_clock, unit_marks   position in the step: tick, phase, unit
    operation_counter, flops, kernel_shapes   FLOPs, bytes, launches and kernel of an operation
    fake_model        model, optimizer and batch on fake tensors
    in_place          in-place operations that fake tensors run differently

Speed:

    repeated_units    equal units run once, and the log is expanded
    known_results     results of operations with equal arguments
    reused_models     models that several replays share
"""
