// An emulated CUDA device: enough of the CUDA runtime, the driver, cuBLAS, cuDNN and cuSOLVER for
// torch's own CUDA code to run to the end of a training step. Kernels do nothing. Device memory is
// address space without pages: whatever would read it on the host stops the process. What is real
// is everything on the host's side: torch's dispatch, autograd, kernels' scratch as their host code
// asks for it, and the caching allocator, whose requests end here.
//
// Loaded by LD_PRELOAD, so that these symbols are found before those of NVIDIA's libraries; and as
// libcuda.so.1. Every other function torch imports from them is a stub that returns success
// (stubs.c, written by libraries.py).
//
// Environment: EMULATED_CAPABILITY ("8.6"), EMULATED_SMS, EMULATED_THREADS (of one of
// them), EMULATED_MEMORY_BYTES, EMULATED_NAME.

#define _GNU_SOURCE
#define __CUDA_FP16_H__  // the half types are not needed, and their headers want a CUDA toolkit
#define __CUDA_BF16_H__
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <cusolverDn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <sys/mman.h>

#define ADDRESS_SPACE ((size_t)1 << 45)
#define PAGE ((size_t)2 << 20)
#define MAX_BLOCKS 65536

static char *base;             // of the address space
static size_t next_offset;     // addresses ascend and are never used again
static size_t used_bytes, total_bytes;
static struct { size_t offset, bytes; } blocks[MAX_BLOCKS];
static int block_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

__attribute__((constructor)) static void make_device(void) {
  total_bytes = strtoull(setting("EMULATED_MEMORY_BYTES", "8589934592"), NULL, 10);
  base = mmap(NULL, ADDRESS_SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) abort();
  base = (char *)(((uintptr_t)base + PAGE - 1) / PAGE * PAGE);
}

static int on_device(const void *pointer) {
  return (char *)pointer >= base && (char *)pointer < base + ADDRESS_SPACE;
}

static void *reserve(size_t bytes) {
  void *address = base + next_offset;
  next_offset += (bytes + PAGE - 1) / PAGE * PAGE;
  if (next_offset > ADDRESS_SPACE - PAGE) abort();
  return address;
}

// --- memory ---------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  pthread_mutex_lock(&lock);
  cudaError_t status = cudaErrorMemoryAllocation;
  if (used_bytes + bytes <= total_bytes && block_count < MAX_BLOCKS) {
    *pointer = reserve(bytes);
    blocks[block_count].offset = (char *)*pointer - base;
    blocks[block_count++].bytes = bytes;
    used_bytes += bytes;
    status = cudaSuccess;
  }
  pthread_mutex_unlock(&lock);
  return status;
}

cudaError_t cudaFree(void *pointer) {
  if (!pointer) return cudaSuccess;
  pthread_mutex_lock(&lock);
  cudaError_t status = cudaErrorInvalidValue;
  for (int i = block_count - 1; i >= 0; i--) {
    if (base + blocks[i].offset != (char *)pointer) continue;
    used_bytes -= blocks[i].bytes;
    blocks[i] = blocks[--block_count];
    status = cudaSuccess;
    break;
  }
  pthread_mutex_unlock(&lock);
  return status;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *free_bytes = total_bytes - used_bytes;
  *total = total_bytes;
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned int flags) {
  *pointer = malloc(bytes ? bytes : 1);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *pointer) {
  free(pointer);
  return cudaSuccess;
}

// A copy to the host brings zeros: what is "on the device" has no value.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (!on_device(to)) {
    if (on_device(from)) memset(to, 0, bytes);
    else memcpy(to, from, bytes);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
  memset(found, 0, sizeof *found);
  found->type = on_device(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  found->devicePointer = on_device(pointer) ? (void *)pointer : NULL;
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) {
  *pointer = base + ADDRESS_SPACE - 2 * PAGE;
  return cudaSuccess;
}

// --- the device -----------------------------------------------------------------------------------

static int capability(int part) {
  int major = 8, minor = 6;
  sscanf(setting("EMULATED_CAPABILITY", "8.6"), "%d.%d", &major, &minor);
  return part ? minor : major;
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": most shared memory of
// a block, in KiB. A multiprocessor has 1 KiB more from 8.0 on.
static int shared_kib(void) {
  switch (10 * capability(0) + capability(1)) {
    case 70: return 96;
    case 75: return 64;
    case 80: case 87: return 163;
    case 90: case 100: case 103: case 110: return 227;
    default: return 99;
  }
}

static int sm_count(void) { return atoi(setting("EMULATED_SMS", "28")); }

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
const char *cudaGetErrorName(cudaError_t error) { return "emulated device"; }
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "emulated device";
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  snprintf(found->name, sizeof found->name, "%s", setting("EMULATED_NAME", "emulated device"));
  found->totalGlobalMem = total_bytes;
  found->major = capability(0);
  found->minor = capability(1);
  found->multiProcessorCount = sm_count();
  found->warpSize = 32;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsPerMultiProcessor = atoi(setting("EMULATED_THREADS", "1536"));
  found->maxBlocksPerMultiProcessor = 16;
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerBlockOptin = shared_kib() << 10;
  found->sharedMemPerMultiprocessor = (shared_kib() + (capability(0) >= 8)) << 10;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->l2CacheSize = 4 << 20;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->textureAlignment = 512;
  found->unifiedAddressing = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp known;
  cudaGetDeviceProperties(&known, device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = known.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = known.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = known.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = known.sharedMemPerMultiprocessor; break;
    case cudaDevAttrWarpSize: *value = known.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = known.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = known.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = known.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMaxGridDimX: *value = known.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = known.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = known.maxGridSize[2]; break;
    case cudaDevAttrComputeCapabilityMajor: *value = known.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = known.minor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = known.regsPerBlock; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
  snprintf(text, length, "0000:00:00.0");
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}

// --- streams, events, kernels ---------------------------------------------------------------------

static char handles[1 << 16];  // what handles point at; never read
static size_t next_handle;
static void *handle(void) { return handles + (__sync_add_and_fetch(&next_handle, 16) & 0xfff0); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = handle(); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = handle(); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { *priority = 0; return cudaSuccess; }

void **__cudaRegisterFatBinary(void *binary) { return (void **)handle(); }

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 32;
  found->ptxVersion = found->binaryVersion = atoi(setting("EMULATED_KERNELS", "86"));
  found->maxDynamicSharedSizeBytes = 48 << 10;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks_per_sm, const void *kernel,
                                                                   int threads, size_t shared, unsigned f) {
  *blocks_per_sm = threads > 0 && threads <= 1024 ? 2048 / threads : 1;
  return cudaSuccess;
}

// --- the driver, for expandable segments ----------------------------------------------------------

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags) {
  pthread_mutex_lock(&lock);
  *pointer = (CUdeviceptr)reserve(bytes);
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *made, size_t bytes, const CUmemAllocationProp *p,
                     unsigned long long flags) {
  pthread_mutex_lock(&lock);
  int fits = used_bytes + bytes <= total_bytes;
  if (fits) used_bytes += bytes;
  pthread_mutex_unlock(&lock);
  *made = bytes;  // so that its release knows
  return fits ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle made) {
  pthread_mutex_lock(&lock);
  used_bytes -= made;
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "emulated device";
  return CUDA_SUCCESS;
}

// Triton reads these after it has loaded a kernel.
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
           : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 32
                                                                : 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 0; return CUDA_SUCCESS; }
// The driver's attributes have the numbers of the runtime's.
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device);
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)handles;
  return CUDA_SUCCESS;
}

static CUresult succeed(void) { return CUDA_SUCCESS; }

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *status) {
  static const struct { const char *name; void *function; } table[] = {
      {"cuMemAddressReserve", cuMemAddressReserve}, {"cuMemCreate", cuMemCreate},
      {"cuMemRelease", cuMemRelease}, {"cuGetErrorString", cuGetErrorString},
      {"cuDeviceGet", cuDeviceGet}, {"cuDeviceGetAttribute", cuDeviceGetAttribute},
      {"cuDevicePrimaryCtxGetState", cuDevicePrimaryCtxGetState},
      {"cuFuncGetAttribute", cuFuncGetAttribute},
  };
  *found = succeed;
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (!strcmp(name, table[i].name)) *found = table[i].function;
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// --- cuBLAS ---------------------------------------------------------------------------------------

cublasStatus_t cublasCreate_v2(cublasHandle_t *made) { *made = handle(); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasGetMathMode(cublasHandle_t h, cublasMath_t *mode) { *mode = CUBLAS_DEFAULT_MATH; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t h, cublasPointerMode_t *mode) { *mode = CUBLAS_POINTER_MODE_HOST; return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, cublasComputeType_t c, cudaDataType_t t) { *made = handle(); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made) { *made = handle(); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, cudaDataType t, uint64_t r, uint64_t c, int64_t ld) { *made = handle(); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t e, cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t found[], int *count) {
  memset(found, 0, sizeof *found);
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

// --- cuSOLVER -------------------------------------------------------------------------------------
// A workspace of one number: what the real library takes is not known.

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *made) { *made = handle(); return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnCreateGesvdjInfo(gesvdjInfo_t *made) { *made = handle(); return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *made) { *made = handle(); return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnXgesvdjGetSweeps(cusolverDnHandle_t h, gesvdjInfo_t i, int *sweeps) { *sweeps = 1; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnXgesvdjGetResidual(cusolverDnHandle_t h, gesvdjInfo_t i, double *left) { *left = 0; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnSgesvd_bufferSize(cusolverDnHandle_t h, int m, int n, int *lwork) { *lwork = 1; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnSgesvdj_bufferSize(cusolverDnHandle_t h, cusolverEigMode_t j, int econ, int m, int n,
                                              const float *a, int lda, const float *s, const float *u, int ldu,
                                              const float *v, int ldv, int *lwork, gesvdjInfo_t i) {
  *lwork = 1;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSgesvdjBatched_bufferSize(cusolverDnHandle_t h, cusolverEigMode_t j, int m, int n,
                                                     const float *a, int lda, const float *s, const float *u,
                                                     int ldu, const float *v, int ldv, int *lwork,
                                                     gesvdjInfo_t i, int batch) {
  *lwork = 1;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSgesvdaStridedBatched_bufferSize(
    cusolverDnHandle_t h, cusolverEigMode_t j, int rank, int m, int n, const float *a, int lda, long long sa,
    const float *s, long long ss, const float *u, int ldu, long long su, const float *v, int ldv, long long sv,
    int *lwork, int batch) { *lwork = 1; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnSgeqrf_bufferSize(cusolverDnHandle_t h, int m, int n, float *a, int lda, int *lwork) { *lwork = 1; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnSorgqr_bufferSize(cusolverDnHandle_t h, int m, int n, int k, const float *a, int lda,
                                             const float *tau, int *lwork) { *lwork = 1; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnXgeqrf_bufferSize(cusolverDnHandle_t h, cusolverDnParams_t p, int64_t m, int64_t n,
                                             cudaDataType ta, const void *a, int64_t lda, cudaDataType tt,
                                             const void *tau, cudaDataType tc, size_t *device, size_t *host) {
  *device = *host = 1;
  return CUSOLVER_STATUS_SUCCESS;
}

#define INT_WORKSPACE(name, ...) \
  cusolverStatus_t cusolverDnS##name##_bufferSize(__VA_ARGS__) { *lwork = 1; return CUSOLVER_STATUS_SUCCESS; }
#define SIZE_WORKSPACE(name, ...) \
  cusolverStatus_t cusolverDnX##name##_bufferSize(cusolverDnHandle_t h, __VA_ARGS__) { *device = *host = 1; return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnCreateSyevjInfo(syevjInfo_t *made) { *made = handle(); return CUSOLVER_STATUS_SUCCESS; }
INT_WORKSPACE(getrf, cusolverDnHandle_t h, int m, int n, float *a, int lda, int *lwork)
INT_WORKSPACE(ormqr, cusolverDnHandle_t h, cublasSideMode_t side, cublasOperation_t op, int m, int n, int k,
              const float *a, int lda, const float *tau, const float *c, int ldc, int *lwork)
INT_WORKSPACE(potrf, cusolverDnHandle_t h, cublasFillMode_t fill, int n, float *a, int lda, int *lwork)
INT_WORKSPACE(syevd, cusolverDnHandle_t h, cusolverEigMode_t j, cublasFillMode_t fill, int n, const float *a, int lda,
              const float *w, int *lwork)
INT_WORKSPACE(syevjBatched, cusolverDnHandle_t h, cusolverEigMode_t j, cublasFillMode_t fill, int n, const float *a,
              int lda, const float *w, int *lwork, syevjInfo_t i, int batch)
INT_WORKSPACE(sytrf, cusolverDnHandle_t h, int n, float *a, int lda, int *lwork)
SIZE_WORKSPACE(potrf, cusolverDnParams_t p, cublasFillMode_t fill, int64_t n, cudaDataType ta, const void *a,
               int64_t lda, cudaDataType tc, size_t *device, size_t *host)
SIZE_WORKSPACE(syevd, cusolverDnParams_t p, cusolverEigMode_t j, cublasFillMode_t fill, int64_t n, cudaDataType ta,
               const void *a, int64_t lda, cudaDataType tw, const void *w, cudaDataType tc, size_t *device,
               size_t *host)
SIZE_WORKSPACE(syevBatched, cusolverDnParams_t p, cusolverEigMode_t j, cublasFillMode_t fill, int64_t n,
               cudaDataType ta, const void *a, int64_t lda, cudaDataType tw, const void *w, cudaDataType tc,
               size_t *device, size_t *host, int64_t batch)
SIZE_WORKSPACE(geev, cusolverDnParams_t p, cusolverEigMode_t left, cusolverEigMode_t right, int64_t n,
               cudaDataType ta, const void *a, int64_t lda, cudaDataType tw, const void *w, cudaDataType tl,
               const void *vl, int64_t ldl, cudaDataType tr, const void *vr, int64_t ldr, cudaDataType tc,
               size_t *device, size_t *host)
SIZE_WORKSPACE(sytrs, cublasFillMode_t fill, int64_t n, int64_t right, cudaDataType ta, const void *a, int64_t lda,
               const int64_t *pivots, cudaDataType tb, void *b, int64_t ldb, size_t *device, size_t *host)

// --- cuDNN ----------------------------------------------------------------------------------------
// Every engine it offers wants no workspace: what a real one takes depends on the engine it chooses.

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
const char *cudnnGetErrorString(cudnnStatus_t status) { return "emulated device"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t *made) { *made = handle(); return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *made) { *made = handle(); return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateActivationDescriptor(cudnnActivationDescriptor_t *made) { *made = handle(); return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetProperty(libraryPropertyType kind, int *value) {
  *value = kind == MAJOR_VERSION ? CUDNN_MAJOR : kind == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t h, cudnnBatchNormMode_t m, cudnnBatchNormOps_t o, const cudnnTensorDescriptor_t x,
    const cudnnTensorDescriptor_t z, const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t d,
    const cudnnActivationDescriptor_t a, size_t *bytes) { *bytes = 0; return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t h, cudnnBatchNormMode_t m, cudnnBatchNormOps_t o, const cudnnTensorDescriptor_t x,
    const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t dy, const cudnnTensorDescriptor_t dz,
    const cudnnTensorDescriptor_t dx, const cudnnTensorDescriptor_t d, const cudnnActivationDescriptor_t a,
    size_t *bytes) { *bytes = 0; return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t h, cudnnBatchNormMode_t m, cudnnBatchNormOps_t o, const cudnnActivationDescriptor_t a,
    const cudnnTensorDescriptor_t x, size_t *bytes) { *bytes = 0; return CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *made) {
  *made = handle();
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count,
                                       void *values) {
  int64_t found = 0;
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: found = 1; break;  // one engine configuration
    case CUDNN_ATTR_ENGINECFG_ENGINE: found = 1; break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
      if (values && wanted > 0) *(int64_t *)values = name == CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT;
      found = 1;
      break;
    case CUDNN_ATTR_ENGINECFG_SHARED_MEMORY_USED:
      if (values && wanted > 0) *(int32_t *)values = 0;
      found = 1;
      break;
    default: break;
  }
  if (count) *count = found;
  return CUDNN_STATUS_SUCCESS;
}
