// NVML, which torch asks for a fabric between GPUs before it maps an expandable segment: none.

int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(void) { return 0; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return 3; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return 3; }
int nvmlDeviceGetComputeRunningProcesses(void) { return 3; }
int nvmlSystemGetCudaDriverVersion_v2(void) { return 3; }
int nvmlDeviceGetGpuFabricInfoV(void) { return 3; }  // NVML_ERROR_NOT_SUPPORTED
