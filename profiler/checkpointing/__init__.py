"""Activation checkpointing: drop saved tensors in forward and recompute them in backward.

apply.py             start here: replaces the forwards of a model's units by a placement
forwards.py          the replaced forwards, one class per decision
recompute.py         where and when one call is recomputed
module_call.py       recomputable call of a whole unit or branch
function_call.py     recomputable call of a torch function
cheap_ops.py         which calls inside a unit are recomputed (selective recomputation)
cheap_functions.py   torch functions that are cheap to recompute
output_table.py      recognises the output of a recomputable call among saved tensors
host_memory.py       tensors of a unit that wait in the host's memory
host_optimizer.py    optimizer whose state waits in the host's memory
forward_state.py     random generators, autocast and BatchNorm as they were in forward
"""
