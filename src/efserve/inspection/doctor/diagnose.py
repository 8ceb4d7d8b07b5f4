"""The table of checks, and what efserve can do on a machine that has these facts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from efserve.devices.nvml import NO_DRIVER
from efserve.inspection.doctor import gpu, host, libraries
from efserve.inspection.doctor.facts import Facts
from efserve.inspection.doctor.gather import gather
from efserve.inspection.doctor.verdict import State, Verdict, not_applicable


@dataclass(frozen=True, slots=True)
class DoctorJob:
    """How long the driver and each library may take to answer."""

    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and what it says."""

    area: str
    check: str
    state: State
    found: str
    advice: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and sentences on what this machine can do with efserve."""

    findings: tuple[Finding, ...]
    abilities: tuple[str, ...]

    def count(self, state: State) -> int:
        """How many checks ended so."""
        return sum(finding.state is state for finding in self.findings)


Judge = Callable[[Facts], Verdict]

# Area, check, its judgement, and whether it makes sense on machines with GPUs only.
CHECKS: tuple[tuple[str, str, Judge, bool], ...] = (
    ("GPU", "driver", lambda facts: gpu.driver(facts.gpu, facts.hardware, facts.container), False),
    ("GPU", "GPUs", lambda facts: gpu.devices(facts.gpu.gpus), True),
    ("GPU", "device files", lambda facts: gpu.device_nodes(facts.hardware), True),
    ("GPU", "variables", lambda facts: gpu.visibility(facts.cuda_environment, facts.gpu.gpus), True),
    ("GPU", "compute mode", lambda facts: gpu.compute_mode(facts.gpu.gpus, facts.mps), True),
    ("GPU", "other programs", lambda facts: gpu.other_programs(facts.gpu.gpus), True),
    ("GPU", "MPS program", lambda facts: gpu.mps_program(facts.mps, facts.container), True),
    ("GPU", "MPS daemon", lambda facts: gpu.mps_daemon(facts.mps, facts.gpu.gpus), True),
    ("GPU", "rights", lambda facts: gpu.rights(facts.mps, facts.host), True),
    (
        "libraries",
        "onnxruntime",
        lambda facts: libraries.onnxruntime(facts.libraries["onnxruntime"], facts.distributions, facts.gpu),
        False,
    ),
    ("libraries", "torch", lambda facts: libraries.torch(facts.libraries["torch"], facts.gpu), False),
    ("libraries", "openvino", lambda facts: libraries.openvino(facts.libraries["openvino"]), False),
    ("libraries", "TensorRT", lambda facts: libraries.tensorrt(facts.libraries["tensorrt"], facts.gpu), True),
    ("libraries", "pycuda", lambda facts: libraries.pycuda(facts.libraries["pycuda"], facts.gpu), True),
    ("machine", "cores", lambda facts: host.cores(facts.cpu), False),
    ("machine", "memory", lambda facts: host.memory(facts.cpu), False),
    ("machine", "container", lambda facts: host.container(facts.container, has_gpu=bool(facts.gpu.gpus)), False),
    ("machine", "/dev/shm", lambda facts: host.shared_memory(facts.container), False),
    ("machine", "open files", lambda facts: gpu.open_files(facts.host, has_gpu=bool(facts.gpu.gpus)), False),
    ("machine", "kernel", lambda facts: host.kernel(facts.host), False),
    ("machine", "ports", lambda facts: host.ports(facts.host.ports), False),
    ("machine", "folders", lambda facts: host.folders(facts.host.folders), False),
)


def diagnose(job: DoctorJob) -> Diagnosis:
    """Examines this machine."""
    return judged(gather(job.deadline_s))


def judged(facts: Facts) -> Diagnosis:
    """The findings on these facts."""
    missing = NO_DRIVER if facts.gpu.problem == NO_DRIVER else "no GPU can be reached"
    findings = []
    for area, check, judge, needs_gpu in CHECKS:
        verdict = not_applicable(missing) if needs_gpu and not facts.gpu.gpus else judge(facts)
        findings.append(Finding(area, check, verdict.state, verdict.found, verdict.advice))
    return Diagnosis(tuple(findings), tuple(_abilities(facts, findings)))


def _abilities(facts: Facts, findings: Sequence[Finding]) -> Iterator[str]:
    here = {name for name, library in facts.libraries.items() if library is not None and not library.problem}
    formats = _formats({"onnxruntime", "torch"} & here)
    cores = "1 core" if facts.cpu.usable_cores == 1 else f"{facts.cpu.usable_cores} cores"
    yield f"serves {formats} models on {cores} of the CPU; a share is a set of whole cores"
    if not facts.gpu.gpus:
        return
    names = ", ".join(sorted({each.name for each in facts.gpu.gpus}))
    works = {finding.check for finding in findings if finding.state in {State.OK, State.WARNING}}
    if not works & _FORMATS.keys():
        yield f"cannot serve on {names} before the problems above are mended"
    elif "MPS daemon" in works and facts.mps.control_program:
        yield f"serves {_formats(works)} models on {names}; a share is a part of the SMs, by MPS"
    elif gpu.version_of(facts.gpu.cuda_version) >= gpu.GREEN_CONTEXTS_FROM:
        yield f"serves {_formats(works)} models on {names}; a share is a green context, and workers take turns"
    else:
        yield f"serves {_formats(works)} models on {names}, whole: without MPS and green contexts there are no shares"


def _formats(checks: set[str]) -> str:
    """The formats that the libraries of these names run; Python models need none."""
    return ", ".join([format_ for check, format_ in _FORMATS.items() if check in checks] + ["Python"])


_FORMATS = {"onnxruntime": "ONNX", "torch": "TorchScript", "TensorRT": "TensorRT"}
