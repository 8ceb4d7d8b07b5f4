/* A stand-in for NVIDIA's libnvidia-ml.so.1: one GPU in MIG mode with one slice, and a client of MPS.
 *
 * So that pynvml and what is built on it run for real on a machine without a GPU. Signatures are those of the NVML API
 * Reference. It lacks some functions (power, PCI, graphics processes), as an older driver does. Returns 0: success,
 * 6: not found, 7: insufficient size.
 */
#include <string.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { u32 gpu, memory; } rates_t;
typedef struct { u32 pid; u64 used; u32 gpu_instance, compute_instance; } process_t;
typedef struct { u32 sms, others[7]; u64 memory_mb; } attributes_t;

static char gpu, slice;

static int text(char *to, u32 size, const char *from) { strncpy(to, from, size); return 0; }

int nvmlInitWithFlags(u32 flags) { return 0; }
int nvmlSystemGetDriverVersion(char *to, u32 size) { return text(to, size, "570.86.15"); }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = 12080; return 0; }
int nvmlSystemGetProcessName(u32 pid, char *to, u32 size) { return text(to, size, "/usr/bin/client"); }
const char *nvmlErrorString(int code) { return "an error"; }

int nvmlDeviceGetCount_v2(u32 *to) { *to = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **to) { *to = &gpu; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **to) { *to = &gpu; return strcmp(uuid, "GPU-in-c") ? 6 : 0; }
int nvmlDeviceGetName(void *it, char *to, u32 size) { return text(to, size, it == &gpu ? "GPU in C" : "Slice in C"); }
int nvmlDeviceGetUUID(void *it, char *to, u32 size) { return text(to, size, it == &gpu ? "GPU-in-c" : "MIG-in-c"); }
int nvmlDeviceGetNumGpuCores(void *it, u32 *to) { *to = 132 * 128; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *it, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetComputeMode(void *it, u32 *to) { *to = 3; return 0; }
int nvmlDeviceGetMemoryInfo(void *it, memory_t *to) { *to = (memory_t){1000, 900, 100}; return 0; }

int nvmlDeviceGetMigMode(void *it, u32 *now, u32 *later) { *now = *later = 1; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *it, u32 *to) { *to = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *it, u32 index, void **to) { *to = &slice; return index == 2 ? 0 : 6; }
int nvmlDeviceGetAttributes_v2(void *it, attributes_t *to) { *to = (attributes_t){.sms = 16}; return 0; }

int nvmlDeviceGetClockInfo(void *it, u32 kind, u32 *to) { *to = kind == 1 ? 1500 : 3201; return 0; }
int nvmlDeviceGetMaxClockInfo(void *it, u32 kind, u32 *to) { *to = kind == 1 ? 1980 : 3201; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *it, u64 *to) { *to = 0x24; return 0; }
int nvmlDeviceGetUtilizationRates(void *it, rates_t *to) { *to = (rates_t){37, 12}; return 0; }
int nvmlDeviceGetTemperature(void *it, u32 sensor, u32 *to) { *to = 41; return 0; }

static int processes(u32 *count, process_t *to, u64 used) {
    if (!to) { *count = 1; return 7; }
    *to = (process_t){.pid = 4242, .used = used};
    *count = 1;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *it, u32 *count, process_t *to) { return processes(count, to, 5000); }
int nvmlDeviceGetMPSComputeRunningProcesses_v2(void *it, u32 *count, process_t *to) { return processes(count, to, ~0ULL); }
