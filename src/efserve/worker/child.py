"""A worker's life inside its own process: load, warm up, say READY, answer batches in order, end.

It ends on STOP, at the end of the control connection, and with its parent, however that dies.
"""

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import NoReturn

from efserve.engines import base, reshaped
from efserve.errors import EfserveError, LoadFailed
from efserve.foreign import foreign
from efserve.partitions import entry
from efserve.transport import messages
from efserve.transport.arena import Area
from efserve.transport.channel import Channel
from efserve.worker.execution import Executor, describe
from efserve.worker.slices import Turns
from efserve.worker.spec import WorkerFacts, WorkerSpec
from efserve.worker.warmup import sample_tensors

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Live as the worker of a process.

    `arguments` are the name that `ps` shows, the pid of that process, and the descriptors of the control socket, of the
    area that holds the WorkerSpec, and of each slot's inputs and outputs.
    """
    parent_pid, control, request, *areas = map(int, arguments[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to decide about
    faulthandler.enable()
    _die_with(parent_pid)
    turns = Turns()
    channel = Channel(socket.socket(fileno=control))
    inputs = [Area(fd) for fd in areas[::2]]
    outputs = [Area(fd) for fd in areas[1::2]]
    spec = _read(request)
    try:
        engine, executor, facts = _load(spec, inputs, outputs, lambda text: channel.send(messages.progress(text)))
    except Exception as error:  # noqa: BLE001 - the border of a worker's load: a model may raise anything
        if not isinstance(error, EfserveError):
            traceback.print_exc()
        channel.send(messages.failed(describe(error)))
        return 1
    _answer(channel, executor, turns, messages.ready(outputs[0].put(messages.to_json(facts))))
    turns.end()
    engine.close()
    if spec.engine != "python" and not spec.partition.is_gpu:
        _end_at_once()
    return 0


def _end_at_once() -> NoReturn:
    """Libraries alone have nothing to see to at the end, and taking them down would cost more than most batches."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _read(descriptor: int) -> WorkerSpec:
    area = Area(descriptor)
    spec = messages.from_json(area.map[:].rstrip(b"\0"), WorkerSpec)
    area.close()
    return spec


def _answer(channel: Channel, executor: Executor, turns: Turns, ready: bytes) -> None:
    try:
        channel.send(ready)
        while (message := channel.receive()) and message[0] == messages.RUN:
            channel.send(executor.run(message))
            turns.after_batch()
    except BrokenPipeError:  # the gateway has gone: nobody waits for an answer
        return


def _load(
    spec: WorkerSpec, inputs: Sequence[Area], outputs: Sequence[Area], on_progress: Callable[[str], object]
) -> tuple[base.Engine, Executor, WorkerFacts]:
    start_s = monotonic()
    entry.enter(spec.partition)
    source = base.Source(
        folder=spec.folder,
        config=spec.config,
        partition=spec.partition,
        max_batch=spec.max_batch,
        force_max_batch=spec.force_max_batch,
        spin=spec.spin,
        strict_provider=spec.strict_provider,
        on_progress=on_progress,
    )
    with _reporting(spec):
        base.import_engine(spec.engine)
        imported_s = monotonic()
        engine = reshaped.load(spec.engine, source)
    for kind, specs in (("inputs", engine.config.inputs), ("outputs", engine.config.outputs)):
        if not messages.layout_fits(specs):
            raise LoadFailed(f"the model has {len(specs)} {kind}, more than a batch message can describe")
    loaded_s = monotonic()
    executor = Executor(engine, inputs, outputs)
    for sample in engine.config.warmup:
        executor.run_sample(sample.name, sample_tensors(engine.config, sample, spec.folder.parent), sample.count)
    if spec.warmup:
        executor.warm_up()
    obtained = entry.obtained(spec.partition)
    entry.check(spec.partition, obtained)
    facts = WorkerFacts(
        config=engine.config,
        pid=os.getpid(),
        load_s=loaded_s - start_s,
        warmup_s=monotonic() - loaded_s,
        start_s=0.0,
        engine_version=engine.version,
        obtained=obtained,
        remarks=tuple(engine.remarks),
        import_s=imported_s - start_s,
    )
    return engine, executor, facts


def _reporting(spec: WorkerSpec) -> AbstractContextManager[None]:
    """Makes one sentence of what a library raises about a file; a model in Python is due its whole traceback."""
    if spec.engine == "python":
        return nullcontext()
    return foreign(f"the model in {spec.folder} cannot be loaded", LoadFailed)


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, even in the midst of a long load."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it went before the kernel knew
        sys.exit(0)
