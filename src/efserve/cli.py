"""The `efserve` command: finds subcommands without importing them; turns errors into a sentence and an exit code."""

import errno
import importlib
import io
import os
import sys
from typing import Any

import click

from efserve import __version__, ctrl_c
from efserve.errors import INTERRUPTED, EfserveError

# name -> short help, so that `efserve --help` imports no command
COMMANDS = {
    "convert": "Convert a model to TorchScript and ONNX, with a parity report.",
    "infer": "Run a model on images or arrays and print the top classes.",
    "serve": "Serve a model repository over the KServe v2 protocol.",
    "models": "Show the models of a running server; load and unload them.",
    "devices": "Show this machine's processor and GPUs.",
    "doctor": "Check what serving and sharing need here, and how to mend it.",
    "check": "Validate a model repository without serving it.",
    "bench": "Measure a server under load; starts one itself without --url.",
    "compare": "Measure several servers in turns and tell differences from noise.",
    "report": "Make HTML, CSV, Markdown or tables from results; compare runs.",
    "profile": "Measure latency over batch sizes and shares of the device.",
    "plan": "Pack models on partitions of devices so that every rate and SLO holds.",
    "simulate": "Run plans on simulated devices and tell how many requests keep their SLO.",
    "mps": "Start, look at or stop NVIDIA MPS, by which processes share a GPU.",
}

# Of the file system: the user's to mend.
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"efserve.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return self._run(ctx)
        except EfserveError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has gone: nothing is left to say, nor anybody to say it to
            sys.stderr.close()
            ctx.exit(1)

    def _run(self, ctx: click.Context) -> object:
        was_to_end = ctrl_c.raises()
        try:
            return super().invoke(ctx)
        except RuntimeError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # in a __set_name__, before Python 3.12
                raise error.__cause__ from None
            raise
        finally:
            if was_to_end:  # and does again: what is left to do must not be told by a traceback
                ctrl_c.ends_at_once()

    def main(self, *args: Any, **extra: Any) -> Any:
        _open_standard_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            if error.filename is None:  # of a write; what is left of the output cannot go there either
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                click.echo(f"Error: cannot write the output: {error.strerror}", err=True)
            else:
                click.echo(f"Error: cannot use {error.filename}: {error.strerror}", err=True)
            sys.exit(1)
        except UnicodeEncodeError as error:  # of a name that is to go to a server or into JSON
            click.echo(
                f"Error: {error.object[:80]!r} cannot be written in {error.encoding}: choose another name", err=True
            )
            sys.exit(1)


def _open_standard_streams() -> None:
    """Has standard streams take everything that is printed, and puts /dev/null in the place of closed ones.

    Else whatever is opened first takes their numbers; libuv, for one, ends a process that has it close one of these.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number, which is this
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a name, or a sign of ours, that the encoding lacks


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="efserve")
def main() -> None:
    """Convert, profile, serve and benchmark deep-learning models on one machine."""
