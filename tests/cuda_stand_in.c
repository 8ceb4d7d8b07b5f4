/* Stands in for libcuda.so.1: a device of 132 SMs whose green contexts have multiples of 8.

   Checks what it is given as cuda.h of CUDA 13.0 declares it: handles that it gave out before, resources of 144 bytes
   with the type first and the SM count at byte 96. A function named by STAND_IN_FAILS answers error 801. */
#include <stdlib.h>
#include <string.h>

typedef struct {
    int type;
    unsigned char padding[92];
    unsigned int sm_count, smallest, step;
    unsigned char rest[36];
} resource;

_Static_assert(sizeof(resource) == 144, "CUdevResource has 144 bytes");

static int device_0 = 7; /* any handle but the index */
static resource described, primary_resource;
static char green_handle, context_handle, description_handle;
static void *current;

#define ENTER                                                                                  \
    const char *failing = getenv("STAND_IN_FAILS");                                            \
    if (failing && strcmp(failing, __func__) == 0) return 801;

static resource all(void) {
    resource found = {.type = 1, .sm_count = 132, .smallest = 8, .step = 8};
    return found;
}

int cuInit(unsigned int flags) { ENTER return flags ? 1 : 0; }

int cuDeviceGet(int *device, int ordinal) {
    ENTER
    *device = device_0;
    return ordinal ? 101 : 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER
    *value = 132;
    return attribute == 16 && device == device_0 ? 0 : 1;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER
    *context = &primary_resource;
    return device == device_0 ? 0 : 1;
}

int cuCtxGetCurrent(void **context) {
    ENTER
    *context = current;
    return 0;
}

int cuCtxSetCurrent(void *context) {
    ENTER
    current = context;
    return context == &context_handle ? 0 : 1;
}

int cuCtxGetDevResource(void *context, resource *found, int type) {
    ENTER
    if (context != &context_handle || type != 1) return 1;
    *found = described;
    return 0;
}

int cuDeviceGetDevResource(int device, resource *found, int type) {
    ENTER
    if (device != device_0 || type != 1) return 1;
    *found = all();
    return 0;
}

int cuDevSmResourceSplitByCount(resource *result, unsigned int *groups, const resource *input, resource *remaining,
                                unsigned int flags, unsigned int least) {
    ENTER
    if (!result || *groups != 1 || input->type != 1 || input->sm_count != 132 || flags) return 1;
    unsigned int count = (least + 7) / 8 * 8;
    if (count > 132) {
        *groups = 0;
        return 0;
    }
    *result = all();
    result->sm_count = count;
    *remaining = all();
    remaining->sm_count = 132 - count;
    return 0;
}

int cuDevResourceGenerateDesc(void **description, resource *resources, unsigned int count) {
    ENTER
    if (count != 1 || resources->type != 1) return 1;
    described = *resources;
    *description = &description_handle;
    return 0;
}

int cuGreenCtxCreate(void **green, void *description, int device, unsigned int flags) {
    ENTER
    *green = &green_handle;
    return description == &description_handle && device == device_0 && flags == 1 ? 0 : 1;
}

int cuCtxFromGreenCtx(void **context, void *green) {
    ENTER
    *context = &context_handle;
    return green == &green_handle ? 0 : 1;
}

int cuGetErrorString(int error, const char **text) {
    *text = error == 801 ? "made to fail" : "invalid argument";
    return 0;
}
