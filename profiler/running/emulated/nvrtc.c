// NVRTC, with which torch makes some of its kernels when they are first called: here it makes nothing.
// A library of its own, under NVRTC's name, because torch asks that library and no other.

#include <cuda_runtime_api.h>
#include <nvrtc.h>

nvrtcResult nvrtcVersion(int *major, int *minor) {
  *major = CUDART_VERSION / 1000;
  *minor = CUDART_VERSION % 1000 / 10;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetPTXSize(nvrtcProgram p, size_t *bytes) { *bytes = 1; return NVRTC_SUCCESS; }
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram p, size_t *bytes) { *bytes = 1; return NVRTC_SUCCESS; }
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram p, size_t *bytes) { *bytes = 1; return NVRTC_SUCCESS; }
nvrtcResult nvrtcGetLoweredName(nvrtcProgram p, const char *const name, const char **found) {
  *found = "kernel";
  return NVRTC_SUCCESS;
}
const char *nvrtcGetErrorString(nvrtcResult error) { return "emulated device"; }
