"""The routes about shared memory that clients register: system segments, and memory of GPUs."""

from base64 import b64decode
from typing import Annotated

import msgspec

from efserve.codec.v2_json import parse_as
from efserve.errors import InvalidRequest
from efserve.frontend.admin import Methods, Names
from efserve.frontend.responses import Response, json_response
from efserve.inference import Body
from efserve.transport.regions import CUDA, ClientRegions

Count = Annotated[int, msgspec.Meta(ge=0)]


class RegisterRequest(msgspec.Struct):
    """Body of the registration of a system segment."""

    key: str
    byte_size: Count
    offset: Count = 0


class RawHandle(msgspec.Struct):
    """What `cudaIpcGetMemHandle` gave, in base64."""

    b64: str


class CudaRegisterRequest(msgspec.Struct):
    """Body of the registration of a GPU's memory."""

    raw_handle: RawHandle
    byte_size: Count
    device_id: Count = 0


class MemoryRoutes:
    """Routes over one table of regions."""

    def __init__(self, regions: ClientRegions) -> None:
        self._regions = regions

    def routes(self) -> dict[str, Methods]:
        """Path -> method -> route."""
        table: dict[str, Methods] = {}
        for kind, status, register, unregister in (
            ("system", self._status, self._register, self._unregister),
            ("cuda", self._cuda_status, self._cuda_register, self._cuda_unregister),
        ):
            base = f"v2/{kind}sharedmemory"
            for path in (base, f"{base}/region/R"):
                table[f"{path}/status"] = {"GET": status}
                table[f"{path}/unregister"] = {"POST": unregister}
            table[f"{base}/region/R/register"] = {"POST": register}
        return table

    def _status(self, names: Names, body: Body) -> Response:
        found = self._regions.regions(names.get("R", ""))
        return json_response(
            [{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.size_bytes} for r in found]
        )

    def _register(self, names: Names, body: Body) -> Response:
        self._regions.check_allowed()
        request = parse_as(RegisterRequest, body, "the shared memory register request")
        self._regions.register(names["R"], request.key, request.offset, request.byte_size)
        return Response()

    def _unregister(self, names: Names, body: Body) -> Response:
        self._regions.unregister(names.get("R", ""))
        return Response()

    def _cuda_status(self, names: Names, body: Body) -> Response:
        found = self._regions.regions(names.get("R", ""), CUDA)
        return json_response([{"name": r.name, "device_id": r.device_id, "byte_size": r.size_bytes} for r in found])

    def _cuda_register(self, names: Names, body: Body) -> Response:
        self._regions.check_allowed()
        request = parse_as(CudaRegisterRequest, body, "the CUDA shared memory register request")
        try:
            handle = b64decode(request.raw_handle.b64, validate=True)
        except ValueError as exc:
            raise InvalidRequest(
                f"raw_handle of CUDA shared memory region '{names['R']}' is not base64: {exc}"
            ) from exc
        self._regions.register_cuda(names["R"], handle, request.device_id, request.byte_size)
        return Response()

    def _cuda_unregister(self, names: Names, body: Body) -> Response:
        self._regions.unregister(names.get("R", ""), CUDA)
        return Response()
