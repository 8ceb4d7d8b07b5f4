"""The routes about shared memory that clients register: system segments, and CUDA memory, which needs a GPU."""

from typing import Annotated

import msgspec

from efserve.codec.v2_json import parse_as
from efserve.errors import InvalidRequest, NotFound
from efserve.frontend.admin import Methods, Names
from efserve.frontend.responses import Response, json_response
from efserve.inference import Body
from efserve.transport.regions import ClientRegions

Count = Annotated[int, msgspec.Meta(ge=0)]


class RegisterRequest(msgspec.Struct):
    """Body of the registration of a system segment."""

    key: str
    byte_size: Count
    offset: Count = 0


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
        if "R" in names:
            raise NotFound(f"Unable to find cuda shared memory region: '{names['R']}'")
        return json_response([])

    def _cuda_register(self, names: Names, body: Body) -> Response:
        self._regions.check_allowed()
        raise InvalidRequest(f"failed to register CUDA shared memory region: '{names['R']}', GPUs not supported")

    def _cuda_unregister(self, names: Names, body: Body) -> Response:
        self._regions.check_allowed()
        return Response()
