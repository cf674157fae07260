"""Devices: the sourced table of GPUs, and the GPU of this machine through NVML."""
