"""What a replay on fake tensors cannot see of a device: allocator, kernels, workspaces."""
