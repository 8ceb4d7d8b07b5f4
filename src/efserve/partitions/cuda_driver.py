"""The few calls of the CUDA driver that partitions need, by ctypes, so that they need neither torch nor pycuda.

Structures, constants and signatures: cuda.h of CUDA 12.4 to 13.0 ("Green Contexts", "Device Management"). Never run on
a GPU by this project.
"""

import ctypes
from functools import cache

from efserve.errors import LoadFailed
from efserve.libcuda import Libcuda

_MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_SM_RESOURCE = 1  # CU_DEV_RESOURCE_TYPE_SM
_DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM, which is required


class _SmResource(ctypes.Structure):
    """CUdevSmResource of CUDA 13; CUDA 12 fills in the first field only."""

    _fields_ = (
        ("sm_count", ctypes.c_uint),
        ("min_partition_size", ctypes.c_uint),
        ("coscheduled_alignment", ctypes.c_uint),
    )


class _Payload(ctypes.Union):
    _fields_ = (("sm", _SmResource), ("oversize", ctypes.c_ubyte * 48))


class DeviceResource(ctypes.Structure):
    """CUdevResource, version 1: 144 bytes."""

    _fields_ = (("type", ctypes.c_int), ("padding", ctypes.c_ubyte * 92), ("payload", _Payload))


class CudaDriver:
    """The driver in a process that sees one GPU, which is device 0."""

    def __init__(self, libcuda: Libcuda) -> None:
        """Raises LoadFailed where it has no GPU for this process."""
        self._libcuda = libcuda
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)

    @classmethod
    def open(cls, name: str = "libcuda.so.1") -> "CudaDriver | None":
        """The driver, initialised, with the GPU; None where there is no driver. Raises LoadFailed as all calls do."""
        return _opened(name)

    def sm_count(self) -> int:
        """SMs that this process may use, as device attribute: under MPS those of its share."""
        count = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(count), _MULTIPROCESSOR_COUNT, self._device)
        return count.value

    def context_sm_count(self) -> int:
        """SMs of the current thread's context; 0: it has none."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if not context.value:
            return 0
        resource = DeviceResource()
        self._call("cuCtxGetDevResource", context, ctypes.byref(resource), _SM_RESOURCE)
        return int(resource.payload.sm.sm_count)

    def hold_context(self) -> None:
        """Have the device's primary context exist for as long as the process; nothing that is current changes."""
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(ctypes.c_void_p()), self._device)

    def green_granularity(self) -> tuple[int, int]:
        """Fewest SMs of a green context, and the step from there."""
        sm = self._resource().payload.sm
        if sm.min_partition_size and sm.coscheduled_alignment:
            return sm.min_partition_size, sm.coscheduled_alignment
        return 8, 8  # what CUDA 12 documents for compute capability 9.0; older GPUs can have less

    def make_green_context(self, sm_count: int) -> int:
        """Make a green context with at least so many SMs the current thread's; answers how many it got."""
        whole, part, rest = self._resource(), DeviceResource(), DeviceResource()
        groups = ctypes.c_uint(1)
        split = (ctypes.byref(part), ctypes.byref(groups), ctypes.byref(whole), ctypes.byref(rest), 0, sm_count)
        self._call("cuDevSmResourceSplitByCount", *split)
        if groups.value < 1:
            raise LoadFailed(f"the GPU cannot be split so that a green context has {sm_count} SMs; use another share")
        description, green, context = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevResourceGenerateDesc", ctypes.byref(description), ctypes.byref(part), 1)
        self._call("cuGreenCtxCreate", ctypes.byref(green), description, self._device, _DEFAULT_STREAM)
        self._call("cuCtxFromGreenCtx", ctypes.byref(context), green)
        self._call("cuCtxSetCurrent", context)
        return int(part.payload.sm.sm_count)

    def _resource(self) -> DeviceResource:
        resource = DeviceResource()
        self._call("cuDeviceGetDevResource", self._device, ctypes.byref(resource), _SM_RESOURCE)
        return resource

    def _call(self, name: str, *arguments: object) -> None:
        try:
            function = self._libcuda.function(name)
        except OSError as exc:
            raise LoadFailed(f"{exc}: green contexts need a driver for CUDA 12.4 or newer, or use MPS") from exc
        try:
            self._libcuda.check(name, function(*arguments))
        except OSError as exc:
            raise LoadFailed(f"the CUDA driver refuses {exc}") from exc


@cache
def _opened(name: str) -> CudaDriver | None:
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    try:
        return CudaDriver(Libcuda(library))
    except OSError as exc:
        raise LoadFailed(f"the CUDA driver refuses {exc}") from exc
