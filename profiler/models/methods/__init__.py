"""Fine-tuning methods: ``get_method("lora").apply(model, workload)``.

Importing this package imports neither torch nor peft; ``get_method`` and ``all_methods`` do.
"""

from profiler.models.methods.base import Method, MethodInfo, backbone_of
from profiler.models.methods.registry import (
    all_methods,
    check_method_name,
    get_method,
    method_infos,
    method_names,
    with_rank_in_name,
)

__all__ = [
    "Method",
    "MethodInfo",
    "all_methods",
    "backbone_of",
    "check_method_name",
    "get_method",
    "method_infos",
    "method_names",
    "with_rank_in_name",
]
