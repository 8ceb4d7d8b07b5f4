/* Stand-in for the CUDA driver's library: one GPU of 132 SMs, memory that is always page-locked, and no graphs.
 * Names and arguments as in cuda.h of CUDA 12; only what efserve calls. */
#include <stddef.h>

static void *current;
static int locked;

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return number ? 101 : 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 132; return 0; }
int cuCtxGetCurrent(void **context) { *context = current; return 0; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &current; return 0; }
int cuCtxGetDevResource(void *context, void *resource, int type) { return 801; }
int cuMemHostRegister_v2(void *address, size_t size, unsigned flags)
{
    if ((size_t)address % 4096 || !size) return 1;
    locked++;
    return 0;
}
int cuMemHostUnregister(void *address) { return locked-- > 0 ? 0 : 713; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return 900; }
int cuStreamEndCapture(void *stream, void **graph) { return 901; }
int cuGetErrorString(int code, const char **text)
{
    *text = code == 900 ? "operation not permitted when stream is capturing" : "an error of the stand-in";
    return 0;
}
