"""Every error that efserve raises on purpose.

The tree has two halves: what the caller did (`ClientError`) and what we did (`ServerError`). `http_status` is the
answer on the v2 port, `exit_code` the end of a command. A message says what, which value, what was expected, what next.
"""

INTERRUPTED = 130  # exit code after Ctrl-C, as shells give it for SIGINT


class EfserveError(Exception):
    """Root of the tree; its text is shown to users as it is."""

    http_status = 500
    exit_code = 1


class ClientError(EfserveError):
    """The caller asked for something that cannot be done."""

    http_status = 400


class UsageError(ClientError):
    """A command line, an option or a file given to a command is wrong."""

    exit_code = 2


class ConfigError(ClientError):
    """A model repository, a `config.pbtxt` or a file in it is wrong."""


class InvalidRequest(ClientError):
    """An inference or control request breaks the protocol or does not fit the model."""


class WrongJson(InvalidRequest):
    """JSON of a request has a value of another type than the protocol's; Triton tells it so, as a fault of its own."""

    http_status = 500


class HeadTooLarge(InvalidRequest):
    """The head of an HTTP request is longer than the server accepts."""

    http_status = 431


class Unauthorized(ClientError):
    """The request lacks the token that it needs."""

    http_status = 401


class Forbidden(ClientError):
    """Not from there: the request is allowed only on the server's own machine."""

    http_status = 403


class NotFound(ClientError):
    """No such model, version or route."""

    http_status = 404


class Unsupported(ClientError):
    """The protocol knows it, efserve does not."""

    http_status = 501


class Cancelled(ClientError):
    """The client went away before its request ran; nobody reads this."""


class ServerError(EfserveError):
    """Something on our side failed."""


class Unavailable(ServerError):
    """Not now: the queue is full, the request waited too long, or the model is not ready."""

    http_status = 503


class WorkerDied(Unavailable):
    """The workers that ran this request died; another may be up soon, but it may be the request that kills them."""


class LoadFailed(ServerError):
    """An engine could not load a model, or its worker died while starting."""


class InferenceFailed(ServerError):
    """The model raised while it ran, or answered with tensors that its config does not allow."""


class DeviceLost(InferenceFailed):
    """A run has failed in such a way that the worker's device takes no further one: the worker ends."""


class ConversionFailed(ServerError):
    """A model could not be converted, or a converted file differs too much from its source."""


class MpsFailed(ServerError):
    """NVIDIA MPS cannot be had here, or one of its programs does not do as it is told."""


class MpsHangs(MpsFailed):
    """One of NVIDIA's programs did not answer within its deadline."""


class MeasurementFailed(ServerError):
    """A benchmark or profile could not be taken."""


class RemoteError(ServerError):
    """A server that we called could not be reached, or answered with an error; `status` is 0 when it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
