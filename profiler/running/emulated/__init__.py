"""An emulated GPU: PyTorch's own CUDA code runs on a device whose kernels do nothing.

    device.c, nvml.c, nvrtc.c   stand-ins for the CUDA runtime, driver, cuBLAS, cuDNN, cuSOLVER,
                                NVML and NVRTC
    libraries                   compiles them with gcc, once for each installation of PyTorch
    gpu                         the environment of a process that runs on the emulated GPU

Everything on the host is real: dispatch, autograd, the memory that the host code of kernels
requests, and the caching allocator. Device memory is address space without pages.

Limitations: values are zeros, times mean nothing, and cuDNN and cuSOLVER request no workspace,
because the real libraries decide its size.
"""
