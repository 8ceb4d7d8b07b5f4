"""The library of the CUDA driver, made up."""

from collections.abc import Callable


class StandInDriver:
    """Functions of libcuda.so: notes every call; one of them may fail."""

    def __init__(self, fails: str = "", has_context: bool = False) -> None:
        self.calls: list[str] = []
        self._fails = fails
        self._has_context = has_context

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            if name == "cuGetErrorString":
                target = arguments[1]._obj  # type: ignore[attr-defined]  # what ctypes.byref refers to
                target.value = b"operation not permitted when stream is capturing"
                return 0
            self.calls.append(name)
            if name == "cuCtxGetCurrent" and self._has_context:
                arguments[0]._obj.value = 1  # type: ignore[attr-defined]
            return 900 if name == self._fails else 0

        return call
