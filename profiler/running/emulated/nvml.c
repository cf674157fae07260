// NVML: one GPU as device.c has it, drawing 100 W; no fabric between GPUs, which torch asks for
// before it maps an expandable segment. EMULATED_NAME, EMULATED_CAPABILITY and EMULATED_MEMORY_BYTES as
// there. Types and codes are those of nvml.h, which no wheel has.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef enum { NVML_SUCCESS = 0, NVML_ERROR_INVALID_ARGUMENT = 2, NVML_ERROR_NOT_SUPPORTED = 3 } nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

nvmlReturn_t nvmlInit_v2(void) { return NVML_SUCCESS; }
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return NVML_SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t code) { return "not on a emulated device"; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return NVML_SUCCESS; }

static nvmlReturn_t the_device(nvmlDevice_t *device) {
  static int here;
  *device = &here;
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
  return index ? NVML_ERROR_INVALID_ARGUMENT : the_device(device);
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus, nvmlDevice_t *device) {
  return the_device(device);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int length) {
  snprintf(text, length, "%s", setting("EMULATED_NAME", "emulated device"));
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int length) {
  snprintf(text, length, "GPU-00000000-0000-0000-0000-000000000000");
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
  memory->total = memory->free = strtoull(setting("EMULATED_MEMORY_BYTES", "8589934592"), NULL, 10);
  memory->used = 0;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
  *major = 8, *minor = 6;
  sscanf(setting("EMULATED_CAPABILITY", "8.6"), "%d.%d", major, minor);
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
  *milliwatts = 100000;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  *millijoules = 100 * (now.tv_sec * 10 + now.tv_nsec / 100000000) * 100;  // moves every 100 ms
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NVML_ERROR_NOT_SUPPORTED; }
// for the message of a refused request; torch 2.10 ends in an internal error if this fails
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count) {
  *count = 0;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(void) { return NVML_ERROR_NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(void) { return NVML_ERROR_NOT_SUPPORTED; }
