"""`efserve serve`: options -> ServeConfig -> run."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.commands import _options as shared
from efserve.server.options import ServeConfig, parse_cache_bytes
from efserve.shares import parse_memory_limit, parse_share

if TYPE_CHECKING:
    from efserve.server.run import ServerStatus

_STYLES = {"READY": "green", "UNAVAILABLE": "red"}


@click.command()
@shared.repositories
@click.option("--model", multiple=True, help="Serve only this model; repeatable.  [default: all]")
@shared.engine("What runs the models; auto: the config's choice, else the first file found.")
@click.option("--trt", is_flag=True, help="Compile every model that has an ONNX file with TensorRT for the GPU here.")
@shared.workers
@click.option(
    "--share",
    type=parse_share,
    multiple=True,
    metavar="MODEL=PCT[,DEVICE]",
    help="Give one instance of a model a share of a device (cpu, gpu0, a uuid), whole cores on the CPU; repeatable.",
)
@click.option(
    "--memory-limit",
    type=parse_memory_limit,
    multiple=True,
    metavar="MODEL=SIZE",
    help="Memory for each instance of a model, such as 4G: enforced on a GPU, reported on the CPU; repeatable.",
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PLAN",
    help="Serve the models of this plan of `efserve plan`, on the partitions and with the batches that it says.",
)
@click.option(
    "--late",
    type=click.Choice(["drop", "serve"]),
    default="drop",
    show_default=True,
    help="With --plan, requests that cannot keep the SLO any more: answered 503 at once, or all the same.",
)
@click.option(
    "--max-batch", type=click.IntRange(1), help="Largest batch of models that batch.  [default: config, or 4]"
)
@click.option(
    "--queue-delay-us",
    type=click.IntRange(0),
    help="How long a request may wait for a larger batch.  [default: config]",
)
@click.option(
    "--spin/--no-spin", default=False, help="Engine threads spin while idle: faster alone, slower beside others."
)
@shared.strict_provider
@click.option("--host", "--http-host", "host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="KServe v2 over HTTP; 0: any free port.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8001,
    show_default=True,
    help="KServe v2 over gRPC; 0: any free port.",
)
@click.option("--grpc/--no-grpc", default=True, help="Offer gRPC.  [default: yes]")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=8002,
    show_default=True,
    help="Prometheus metrics; 0: any free port.",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="Serve KServe v2 over HTTP here as well: HOST:PORT, or unix:PATH for a Unix socket; repeatable.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    help="Speak TLS on every address but Unix sockets, with this certificate chain (PEM).",
)
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key (PEM).")
@click.option(
    "--max-request-bytes",
    "--http-max-input-size",
    type=click.IntRange(1),
    default=64 * 2**20,
    help="Largest request body.  [default: 64 MiB]",
)
@click.option(
    "--mps",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="NVIDIA MPS for models that share a GPU; auto: where it can be had; on: or end with exit code 1.",
)
@shared.load_timeout
@click.option(
    "--drain-s",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Time for requests in flight when stopping.",
)
@click.option(
    "--server-name",
    default="efserve",
    show_default=True,
    help="Name in the server's metadata; some NVIDIA examples expect triton.",
)
@click.option(
    "--model-control-mode",
    type=click.Choice(["none", "poll", "explicit"]),
    default="none",
    show_default=True,
    help="none: the models of the start; poll: follow the repository; explicit: load and unload on request.",
)
@click.option("--load-model", multiple=True, help="Load at the start in mode explicit; repeatable, '*': all.")
@click.option(
    "--repository-poll-secs",
    type=click.FloatRange(0, min_open=True),
    default=15.0,
    show_default=True,
    help="Time between two looks at the repository in mode poll.",
)
@click.option(
    "--cache-bytes",
    "--response-cache-byte-size",
    "--cache-config",
    "cache_bytes",
    type=parse_cache_bytes,
    metavar="BYTES",
    default="0",
    help="Memory for answers of models whose config says response_cache { enable: true }; also local,size=BYTES, as "
    "Triton has it.  [default: 0: none is kept]",
)
@click.option(
    "--allow-client-shm",
    type=bool,
    is_flag=False,
    flag_value=True,
    default=False,
    help="Let clients on this machine register shared memory for inputs and outputs.",
)
@click.option(
    "--admin-token-file",
    type=click.Path(path_type=Path),
    help="File with the bearer token for model control, trace and log settings.  [default: loopback only]",
)
@click.option(
    "--trace-file",
    type=click.Path(path_type=Path),
    help="Write traces of requests here, a line of JSON each, where trace settings ask for them.  [default: the log]",
)
@click.option(
    "--trace-config",
    multiple=True,
    metavar="KEY=VALUE",
    help="Trace settings at the start, in Triton's words: level=TIMESTAMPS, rate=1, count=100, triton,file=FILE, "
    "triton,log-frequency=50; repeatable.",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    help="Write URLs and models here as JSON once every model has started or failed.",
)
@click.option(
    "--strict-readiness",
    type=click.BOOL,
    default=True,
    help="The server is ready only when every model is; false: as soon as each has started or failed.  [default: true]",
)
@click.option("--exit-on-error", is_flag=True, help="End with exit code 1 when a model does not start.")
@click.option("--exit-with-parent", is_flag=True, help="Stop when stdin closes.")
@click.option("-v", "--verbose", is_flag=True, help="Log requests other than inferences too.")
def command(verbose: bool, **options: Any) -> None:
    """Serve the models of a repository over the KServe v2 protocol.

    Starts one worker process per instance of each model, and prints a table when all of them are ready. Ctrl-C stops:
    requests in flight are finished first; a second Ctrl-C stops at once.
    """
    from efserve.server.run import run

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("efserve").setLevel(logging.DEBUG if verbose else logging.INFO)
    run(ServeConfig(**options), _print_status)


def _print_status(status: "ServerStatus") -> None:
    """Models with their state, the reasons of those that failed, and where to send requests; on stderr."""
    from rich.markup import escape

    from efserve.console import err
    from efserve.reasons import without_output
    from efserve.reports.placement_table import is_worth_showing, placements_table
    from efserve.reports.tables import PlainTable

    console = err()
    table = PlainTable()
    for column in ("model", "version", "engine"):
        table.add_column(column, overflow="fold")
    for column in ("instances", "threads", "batch"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for model in status.models:
        style = _STYLES.get(model.state, "yellow")
        counts = (str(value) if value else "-" for value in (model.instances, model.threads, model.max_batch_size))
        name, version, engine = (escape(text) or "-" for text in (model.name, model.version, model.engine))
        table.add_row(name, version, engine, *counts, f"[{style}]{model.state}[/]")
    console.print(table)
    placements = [placement for model in status.models for placement in model.placements]
    if is_worth_showing(placements):
        console.print()
        console.print(placements_table(placements))
    if not status.models:
        console.print("[yellow]note[/] no model is served yet: the repository holds none, or none was asked for")
    for note in status.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for model in status.models:
        if model.reason:
            reason = without_output(model.reason)  # which the log has shown
            console.print(f"[red]{escape(model.name)}[/]: {escape(reason)}", soft_wrap=True)
    grpc = f"\ngRPC     {status.grpc}" if status.grpc else ""
    console.print(f"\nHTTP     {status.http}/v2{grpc}\nmetrics  {status.metrics}/metrics\nCtrl-C stops.")
