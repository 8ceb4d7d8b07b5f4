"""`efserve mps`: options -> MpsJob -> start, look at or stop daemons -> the words of start_MPS.sh."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from efserve.commands._output import print_json
from efserve.partitions.mps_job import MpsJob, MpsWork, exit_code

if TYPE_CHECKING:
    from efserve.partitions.mps import MpsFacts, ServerFacts


@click.command()
@click.argument("action", type=click.Choice(["start", "status", "stop"]))
@click.option("--gpu", multiple=True, metavar="INDEX|UUID", help="Only this GPU; repeatable.  [default: all]")
@click.option("--single", is_flag=True, help="start: one daemon for all GPUs, instead of one for each.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Folder of pipes and logs.  [default: efserve-mps-UID in $XDG_RUNTIME_DIR or /tmp]",
)
@click.option(
    "--deadline-s",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Deadline of each command to a daemon; they can hang.",
)
@click.option("--json", "as_json", is_flag=True, help="status: print what there is as JSON.")
@click.pass_context
def command(context: click.Context, /, as_json: bool, **options: Any) -> None:
    """Start, look at or stop NVIDIA MPS, by which processes share a GPU side by side.

    start: a daemon per GPU, so that a fault stays on its GPU. As root, it sets the compute mode EXCLUSIVE_PROCESS;
    stop restores what was there before, also after a crash. A second start or stop does nothing.

    status ends with 0 where MPS runs on every GPU, 3 where it does not, 1 where a daemon does not answer.

    \b
    Examples:
      efserve mps start
      efserve mps status --json
      efserve mps stop
    """
    import asyncio

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    job = MpsJob(**options)
    work = MpsWork(job)
    if job.action == "start":
        for started in asyncio.run(work.start()):
            click.echo(f"{started.unit}: MPS {'started' if started.is_new else 'is running already'}.")
            click.echo(f"  export CUDA_MPS_PIPE_DIRECTORY={started.pipe_directory}")
    elif job.action == "stop":
        ended = asyncio.run(work.stop())
        for unit in ended:
            click.echo(f"{unit}: MPS stopped.")
        if not ended:
            click.echo(f"MPS is not running in {work.run_directory}.")
    else:
        facts = asyncio.run(work.status())
        if as_json:
            print_json(facts)
        else:
            for fact in facts:
                click.echo(_line(fact, job.deadline_s))
        context.exit(exit_code(facts))


def _line(fact: "MpsFacts", deadline_s: float) -> str:
    state = fact.state.value
    if state == "hanging":
        return f"{fact.uuid}: the MPS daemon does not answer within {deadline_s:g} s"
    mode = f"compute mode {fact.compute_mode}"
    if state == "absent":
        left = f", {fact.kept_mode} before: `efserve mps stop` restores it" if fact.kept_mode else ""
        return f"{fact.uuid}: MPS is not running, {mode}{left}"
    servers = ", ".join(map(_server, fact.servers)) or "none yet"
    return f"{fact.uuid}: MPS is running, {mode}, servers: {servers}"


def _server(server: "ServerFacts") -> str:
    count = len(server.clients)
    return f"{server.pid} ({server.status.value}, {count} client{'' if count == 1 else 's'})"
