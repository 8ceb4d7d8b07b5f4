"""Options that several commands have in common, each spelled once; and words that stand for a value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
Option = Callable[[_Command], _Command]

ENGINE = click.Choice(["auto", "onnx", "torchscript", "openvino", "tensorrt", "python"])
SECONDS = click.FloatRange(0, min_open=True)


def meaning(word: object, value: object) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback for an option of which `word` means `value`."""
    return lambda _context, _option, given: value if given == word else given


def together(*options: Option[Any]) -> Option[Any]:
    """One decorator for options that belong together, in the order of the help."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# Which models, and what runs them.

repositories = click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    multiple=True,
    default=(Path("model_dir"),),
    help="Folder of models in Triton's layout; repeatable.  [default: ./model_dir]",
)
workers = together(
    click.option("--instances", type=click.IntRange(1), help="Worker processes per model.  [default: config, or 1]"),
    click.option(
        "--threads", type=click.IntRange(1), help="Engine threads per instance.  [default: cores / instances]"
    ),
)
strict_provider = click.option(
    "--strict-provider",
    is_flag=True,
    help="Refuse ONNX models of which onnxruntime would run some nodes on the CPU though a GPU was asked for.",
)
load_timeout = click.option(
    "--load-timeout-s", type=SECONDS, default=300.0, show_default=True, help="Deadline for a worker to be ready."
)


def engine(help_text: str) -> Option[Any]:
    """`--engine`, one of them, with "" for auto."""
    return click.option(
        "--engine", type=ENGINE, default="auto", show_default=True, callback=meaning("auto", ""), help=help_text
    )


# Whom to ask.

tls = together(
    click.option(
        "--tls-ca", type=click.Path(path_type=Path), help="Authorities to believe, PEM.  [default: the system's]"
    ),
    click.option("--tls-insecure", is_flag=True, help="Believe any certificate."),
)

# What load to make, and how to measure it.

arrivals = together(
    click.option(
        "--distribution",
        type=click.Choice(["constant", "poisson", "gamma"]),
        default="constant",
        show_default=True,
        help="Open loop: the times between requests.",
    ),
    click.option(
        "--gamma-cv",
        type=click.FloatRange(0.05, 20),
        default=2.0,
        show_default=True,
        help="Coefficient of variation of gamma's times: 1 is poisson, more is burstier.",
    ),
)
senders = together(
    click.option(
        "--max-connections",
        type=click.IntRange(1, 60_000),
        default=1024,
        show_default=True,
        help="Open loop: when so many requests are under way, others wait in the client, and their latency counts.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        help="Processes that make the load together.",
    ),
)
inputs = together(
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows per request."),
    click.option(
        "--input",
        default="random",
        show_default=True,
        help="random, zero, FILE.npz (arrays by input), FILE.json (perf_analyzer's form), or a folder of images.",
    ),
    click.option(
        "--shape", multiple=True, metavar="NAME:DIMS", help="Free dimensions, such as image:3,224,224; repeatable."
    ),
    click.option("--string-length", type=click.IntRange(0), default=16, show_default=True, help="Of random strings."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random input."),
    click.option(
        "--tensor-format",
        type=click.Choice(["auto", "json", "binary"]),
        default="auto",
        show_default=True,
        help="How tensors travel; auto: binary where the server can.",
    ),
)
model_version = click.option("--model-version", default="", help="Its version.  [default: the latest]")
times = together(
    click.option(
        "--duration",
        "duration_s",
        type=SECONDS,
        default=5.0,
        show_default=True,
        help="Longest measurement of one level or turn, in seconds; it ends earlier when it is stable.",
    ),
    click.option(
        "--warmup",
        "warmup_s",
        type=click.FloatRange(0),
        default=0.5,
        show_default=True,
        help="Seconds of load before it.",
    ),
    click.option(
        "--window",
        "window_ms",
        type=click.IntRange(1),
        callback=meaning(None, 0),
        help="Measurement window in ms; three like windows make it stable.  [default: 1000, or a third of --duration]",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=SECONDS,
        default=30.0,
        show_default=True,
        help="Seconds until a request without an answer is an error.",
    ),
)

# Plans.

budget = click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    metavar="S",
    help="How long a search of the policy `best` may take, beyond what the others take; goodput has three.",
)
neighbours = together(
    click.option(
        "--interference",
        type=click.Path(path_type=Path, dir_okay=False),
        help="JSON file of measured pairs: what neighbours on a device cost.  "
        "[default: pairs.json beside the profiles, where there is one]",
    ),
    click.option("--no-interference", is_flag=True, help="As if neighbours cost nothing, to compare."),
)


def profiles(help_text: str) -> Option[Any]:
    """`--profiles`, the folder."""
    return click.option(
        "--profiles",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("profiled_data"),
        help=f"{help_text}  [default: ./profiled_data]",
    )
