"""Facts about a fine-tuning workload on a machine: memory, FLOPs, time, without needing a GPU."""
