"""Rules of a device that a replay on fake tensors does not show: kernels and allocators."""
