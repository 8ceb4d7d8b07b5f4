/* A stand-in for NVIDIA's libnvidia-ml.so.1 and libcuda.so.1 in one: two GPUs, "GPU-a" and "GPU-b", of 132 SMs each.
 *
 * So that `efserve serve` gives models shares of a GPU on a machine without one. cuInit makes the process a client of
 * the MPS daemon of its CUDA_MPS_PIPE_DIRECTORY, as `mps_machine.py` keeps them, and has the daemon start its server;
 * such a client sees its share of the SMs. Signatures: NVML API Reference, CUDA Driver API. Returns 0: success.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int u32;
typedef struct { unsigned long long total, free, used; } memory_t;

static char gpus[2];

int nvmlInitWithFlags(u32 flags) { return 0; }
int nvmlSystemGetDriverVersion(char *to, u32 size) { strncpy(to, "570.86.15", size); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = 12080; return 0; }
const char *nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetCount_v2(u32 *to) { *to = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **to) { *to = &gpus[index]; return index < 2 ? 0 : 6; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **to) {
    *to = &gpus[!strcmp(uuid, "GPU-b")];
    return strcmp(uuid, "GPU-a") && strcmp(uuid, "GPU-b") ? 6 : 0;
}
int nvmlDeviceGetName(void *it, char *to, u32 size) { strncpy(to, "GPU in C", size); return 0; }
int nvmlDeviceGetUUID(void *it, char *to, u32 size) { strncpy(to, it == gpus ? "GPU-a" : "GPU-b", size); return 0; }
int nvmlDeviceGetNumGpuCores(void *it, u32 *to) { *to = 132 * 128; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *it, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *it, memory_t *to) { *to = (memory_t){1000, 900, 100}; return 0; }

int cuInit(u32 flags) {
    char path[4096];
    const char *pipes = getenv("CUDA_MPS_PIPE_DIRECTORY");
    FILE *file;
    if (!pipes) return 0;
    if (system("echo start_server -uid $(id -u) | nvidia-cuda-mps-control")) return 805;
    snprintf(path, sizeof path, "%s/clients", pipes);
    if (!(file = fopen(path, "a"))) return 805; /* MPS_CONNECTION_FAILED */
    fprintf(file, "%d\n", getpid());
    return fclose(file) ? 805 : 0;
}
int cuDeviceGet(int *to, int index) { *to = index; return index ? 101 : 0; }
int cuDeviceGetAttribute(int *to, int attribute, int device) {
    const char *share = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    *to = share ? 132 * atof(share) / 100 : 132;
    return attribute == 16 ? 0 : 1;
}
int cuDevicePrimaryCtxRetain(void **to, int device) { *to = gpus; return device ? 101 : 0; }
int cuGetErrorString(int code, const char **to) { *to = "an error"; return 0; }
