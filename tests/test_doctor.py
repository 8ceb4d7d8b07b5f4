"""`efserve doctor`: each judgement on facts as values, and the whole on machines that are made of values.

Facts of machines with GPUs are made up from NVIDIA's documents; none was recorded on a GPU.
"""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from efserve.commands.doctor import show
from efserve.devices.cgroup import CgroupLimits
from efserve.devices.cpu import HostCpu, NumaNode
from efserve.devices.gpu import Gpu, GpuFacts, gpu_facts
from efserve.devices.nvml import NO_DRIVER, connect
from efserve.inspection.doctor import gpu, host, libraries
from efserve.inspection.doctor.diagnose import CHECKS, judged
from efserve.inspection.doctor.facts import (
    Container,
    DeviceNode,
    Facts,
    Folder,
    Hardware,
    Host,
    MpsDaemon,
    MpsFacts,
    Port,
)
from efserve.inspection.doctor.verdict import State, Verdict
from efserve.inspection.probes import Library
from fake_nvml import LIBRARY_NOT_FOUND, LOST, FakeNvml, h200, mig_slice, process

NODES = tuple(DeviceNode(f"/dev/{name}", usable=True) for name in ("nvidia-uvm", "nvidia0", "nvidiactl"))
ONE_GPU = gpu_facts(connect(FakeNvml(h200())))
NO_GPU = gpu_facts(connect(FakeNvml(init=LIBRARY_NOT_FOUND)))
ORT_CPU = Library("1.31.1", providers=("CPUExecutionProvider",))
ORT_GPU = Library("1.31.1", "", False, "12.8", True, "", ("CUDAExecutionProvider", "CPUExecutionProvider"))
TORCH_CPU = Library("2.13.0+cpu", cuda_works=False)
TORCH_GPU = Library("2.13.0", "", False, "12.8", True, "", (), ("sm_80", "sm_90", "compute_90"))
CPU = HostCpu(
    model="Some CPU",
    cores=(0, 1, 2, 3),
    usable_cores=4,
    cores_of_machine=8,
    siblings=((0,), (1,), (2,), (3,)),
    numa_nodes=(NumaNode(0, (0, 1, 2, 3), None),),
    caches=(),
    memory_total_bytes=64 << 30,
    memory_available_bytes=60 << 30,
    cgroup=CgroupLimits((2,)),
)
HOST = Host("6.8.0", (), 1000, 65536, 65536, (Port(8000, "--http-port"),), (Folder("/here", "reports", True),))
DAEMON = MpsDaemon(77, 1000, "/run/mps-0")
GPU_MACHINE = Facts(
    gpu=ONE_GPU,
    hardware=Hardware(1, NODES),
    mps=MpsFacts("/usr/bin/nvidia-cuda-mps-control"),
    container=Container("", True, 32 << 30, 32 << 30),
    cpu=CPU,
    host=HOST,
    libraries={
        "onnxruntime": ORT_GPU,
        "torch": TORCH_GPU,
        "openvino": None,
        "tensorrt": Library("10.9.0", cuda_works=True),
        "pycuda": Library("2025.1", cuda_version="12.8", cuda_works=True),
    },
    distributions={"onnxruntime-gpu": "1.31.1"},
)
LAPTOP = replace(
    GPU_MACHINE,
    gpu=NO_GPU,
    hardware=Hardware(),
    mps=MpsFacts(),
    libraries={"onnxruntime": ORT_CPU, "torch": TORCH_CPU, "openvino": None, "tensorrt": None, "pycuda": None},
    distributions={"onnxruntime": "1.31.1"},
)


def of(**answers: object) -> tuple[Gpu, ...]:
    return gpu_facts(connect(FakeNvml({**h200(), **answers}))).gpus


def says(verdict: Verdict, state: State, *words: str) -> None:
    """The state, and words of finding and advice; whatever is wrong says how to mend it, in one sentence."""
    assert verdict.state is state
    for word in words:
        assert word in f"{verdict.found} -> {verdict.advice}"
    assert bool(verdict.advice) or state in {State.OK, State.NOT_APPLICABLE}
    assert "\n" not in verdict.found + verdict.advice
    assert ". " not in verdict.advice


# Whole machines


def test_a_machine_that_has_everything_has_no_problem() -> None:
    diagnosis = judged(GPU_MACHINE)
    assert diagnosis.count(State.PROBLEM) == diagnosis.count(State.WARNING) == 0
    assert [finding.check for finding in diagnosis.findings if finding.state is State.NOT_APPLICABLE] == ["openvino"]
    assert diagnosis.abilities == (
        "serves ONNX, TorchScript, Python models on 4 cores of the CPU; a share is a set of whole cores",
        "serves ONNX, TorchScript, TensorRT, Python models on NVIDIA H200; a share is a part of the SMs, by MPS",
    )


def test_a_machine_without_a_gpu_has_no_problem() -> None:
    diagnosis = judged(LAPTOP)
    assert diagnosis.count(State.PROBLEM) == diagnosis.count(State.WARNING) == 0
    assert {finding.found for finding in diagnosis.findings if finding.area == "GPU"} == {NO_DRIVER}
    (ability,) = diagnosis.abilities
    assert ability.startswith("serves ONNX, TorchScript, Python models on 4 cores")


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("facts", [GPU_MACHINE, LAPTOP])
def test_the_table_fits(facts: Facts, width: int) -> None:
    text = StringIO()
    show(judged(facts), Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1] == "No problems, no warnings."
    folded = {finding.check for finding in judged(facts).findings if finding.found == NO_DRIVER}
    assert all(any(line.startswith(check) for line in lines) for _, check, _, _ in CHECKS if check not in folded)


def test_checks_that_do_not_apply_for_one_reason_are_one_line() -> None:
    text = StringIO()
    show(judged(LAPTOP), Console(file=text, width=80))
    told = [line.strip() for line in text.getvalue().splitlines() if "not applicable: no" in line]
    assert told == [
        f"driver and 8 more  not applicable: {NO_DRIVER}",
        "openvino          not applicable: not installed",
        f"TensorRT, pycuda  not applicable: {NO_DRIVER}",
    ]


def test_without_mps_shares_are_green_contexts_or_none() -> None:
    assert "green context" in judged(replace(GPU_MACHINE, mps=MpsFacts())).abilities[1]
    old = replace(GPU_MACHINE, mps=MpsFacts(), gpu=replace(ONE_GPU, cuda_version="12.2"))
    assert "no shares" in judged(old).abilities[1]


def test_a_gpu_that_no_library_can_use() -> None:
    diagnosis = judged(replace(GPU_MACHINE, libraries={**LAPTOP.libraries}))
    states = {finding.check: finding.state for finding in diagnosis.findings}
    assert states["onnxruntime"] is states["torch"] is State.PROBLEM
    assert diagnosis.abilities[0].startswith("serves ONNX, TorchScript, Python models on 4 cores")
    assert diagnosis.abilities[1] == "cannot serve on NVIDIA H200 before the problems above are mended"


# The driver and what it reaches


@pytest.mark.parametrize(
    ("facts", "hardware", "container", "state", "words"),
    [
        (NO_GPU, Hardware(), Container(), State.NOT_APPLICABLE, NO_DRIVER),
        (NO_GPU, Hardware(1), Container(), State.PROBLEM, "install NVIDIA's driver"),
        (NO_GPU, Hardware(1), Container("docker"), State.PROBLEM, "--gpus all"),
        (NO_GPU, Hardware(0, NODES), Container(), State.PROBLEM, "install NVIDIA's driver"),
        (replace(NO_GPU, problem="it hangs"), Hardware(), Container(), State.PROBLEM, "nvidia-smi by hand"),
        (replace(ONE_GPU, gpus=()), Hardware(1), Container(), State.PROBLEM, "finds no GPU"),
        (
            gpu_facts(connect(FakeNvml(LOST, h200()))),
            Hardware(2),
            Container(),
            State.PROBLEM,
            "GPU 0 cannot be reached",
        ),
        (replace(ONE_GPU, cuda_version="12.2"), Hardware(1), Container(), State.WARNING, "12.4"),
        (ONE_GPU, Hardware(1), Container(), State.OK, "driver 570.86.15, CUDA up to 12.8, 1 GPU"),
    ],
)
def test_driver(facts: GpuFacts, hardware: Hardware, container: Container, state: State, words: str) -> None:
    says(gpu.driver(facts, hardware, container), state, words)


def test_device_files() -> None:
    says(gpu.device_nodes(Hardware(1, NODES)), State.OK)
    says(gpu.device_nodes(Hardware(1, NODES[1:])), State.PROBLEM, "/dev/nvidia-uvm not found", "nvidia-modprobe")
    closed = (*NODES[1:], DeviceNode("/dev/nvidia-uvm", usable=False))
    says(gpu.device_nodes(Hardware(1, closed)), State.PROBLEM, "/dev/nvidia-uvm", "group")


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, State.OK),
        ({"CUDA_VISIBLE_DEVICES": ""}, State.PROBLEM),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, State.PROBLEM),
        ({"CUDA_VISIBLE_DEVICES": "0"}, State.WARNING),
        ({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30"}, State.WARNING),
    ],
)
def test_variables(environment: dict[str, str], state: State) -> None:
    says(gpu.visibility(environment, ONE_GPU.gpus), state)


def test_gpus() -> None:
    says(gpu.devices(ONE_GPU.gpus), State.OK, "NVIDIA H200 (132 SMs, 131.3 GiB)")
    says(gpu.devices(of(nvmlDeviceGetCurrentClocksEventReasons=0x4)), State.WARNING, "GPU 0: power cap")
    says(gpu.devices(of(nvmlDeviceGetMigMode=[1, 1])), State.PROBLEM, "has no slices")
    one = {0: mig_slice("MIG-1", "H200 MIG 1g.18gb", 16, 18 << 30)}
    sliced = of(nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=7, slices=one)
    says(gpu.devices(sliced), State.OK, "H200 MIG 1g.18gb (16 SMs")


@pytest.mark.parametrize(
    ("mode", "daemons", "state"),
    [
        (0, (), State.OK),
        (0, (DAEMON,), State.OK),
        (3, (DAEMON,), State.OK),
        (3, (), State.PROBLEM),
        (2, (DAEMON,), State.PROBLEM),
    ],
)
def test_compute_mode(mode: int, daemons: tuple[MpsDaemon, ...], state: State) -> None:
    says(gpu.compute_mode(of(nvmlDeviceGetComputeMode=mode), MpsFacts("control", daemons)), state)


def test_other_programs() -> None:
    fake = FakeNvml(
        h200(nvmlDeviceGetComputeRunningProcesses_v3=[process(7, 1 << 30), process(8)]),
        names={7: "/usr/bin/python3", 8: "/usr/bin/nvidia-cuda-mps-server"},
    )
    says(gpu.other_programs(ONE_GPU.gpus), State.OK)
    verdict = gpu.other_programs(gpu_facts(connect(fake)).gpus)
    says(verdict, State.WARNING, "python3 7 on GPU 0 (1.0 GiB)")
    assert "mps-server" not in verdict.found


def test_mps() -> None:
    says(gpu.mps_program(MpsFacts("/usr/bin/c"), Container()), State.OK, "/usr/bin/c")
    says(gpu.mps_program(MpsFacts(), Container()), State.WARNING, "Debian")
    says(gpu.mps_program(MpsFacts(), Container("docker")), State.WARNING, "NVIDIA_DRIVER_CAPABILITIES")
    says(gpu.mps_daemon(MpsFacts("c"), ONE_GPU.gpus), State.OK, "none runs")
    says(gpu.mps_daemon(MpsFacts("c", (DAEMON,)), ONE_GPU.gpus), State.OK, "daemon 77 in /run/mps-0")
    hung = replace(DAEMON, problem="the MPS daemon in /run/mps-0 does not answer")
    says(gpu.mps_daemon(MpsFacts("c", (hung,)), ONE_GPU.gpus), State.PROBLEM, "kill 77", "does not answer")
    outside = MpsFacts("c", (replace(hung, pid=0),))
    says(gpu.mps_daemon(outside, ONE_GPU.gpus), State.PROBLEM, "outside of this container")
    assert "kill" not in gpu.mps_daemon(outside, ONE_GPU.gpus).advice


def test_rights() -> None:
    says(gpu.rights(MpsFacts(), replace(HOST, uid=0)), State.OK, "root")
    says(gpu.rights(MpsFacts("c", (DAEMON,), (1000,)), HOST), State.OK)
    says(gpu.rights(MpsFacts("c", (replace(DAEMON, uid=0),)), HOST), State.OK)
    says(gpu.rights(MpsFacts("c", (replace(DAEMON, uid=33),)), HOST), State.WARNING, "user 33")
    says(gpu.rights(MpsFacts("c", (), (33,)), HOST), State.PROBLEM, "one user at a time")


@pytest.mark.parametrize(
    ("soft", "hard", "has_gpu", "state", "words"),
    [
        (1024, 1024, False, State.OK, ""),
        (1024, 1048576, True, State.WARNING, "ulimit -n 16384"),
        (1024, 4096, True, State.WARNING, "nofile=16384"),
        (256, 4096, False, State.WARNING, "ulimit -n 1024"),
        (16384, 16384, True, State.OK, ""),
    ],
)
def test_open_files(soft: int, hard: int, has_gpu: bool, state: State, words: str) -> None:
    says(gpu.open_files(replace(HOST, open_files=soft, open_files_most=hard), has_gpu=has_gpu), state, words)


# Libraries


def driver_for(cuda: str) -> GpuFacts:
    return replace(ONE_GPU, cuda_version=cuda)


BOTH = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
BROKEN = Library("1.31.1", problem="it cannot be imported: ImportError: libpython")


@pytest.mark.parametrize(
    ("library", "distributions", "facts", "state", "words"),
    [
        (None, {}, NO_GPU, State.PROBLEM, "pip install onnxruntime"),
        (BROKEN, {}, NO_GPU, State.PROBLEM, "libpython"),
        (replace(BROKEN, hangs=True), {}, NO_GPU, State.PROBLEM, "--deadline-s"),
        (ORT_CPU, {}, NO_GPU, State.OK, "1.31.1 for CPU"),
        (ORT_CPU, BOTH, NO_GPU, State.WARNING, "overwrite"),
        (ORT_CPU, BOTH, ONE_GPU, State.PROBLEM, "pip install onnxruntime-gpu"),
        (ORT_GPU, BOTH, ONE_GPU, State.WARNING, "overwrite"),
        (ORT_CPU, {}, ONE_GPU, State.PROBLEM, "cannot use the GPU"),
        (replace(ORT_GPU, cuda_works=False, cuda_problem="no cuDNN"), {}, ONE_GPU, State.PROBLEM, "no cuDNN"),
        (ORT_GPU, {}, ONE_GPU, State.OK, ""),
    ],
)
def test_onnxruntime(
    library: Library | None, distributions: dict[str, str], facts: GpuFacts, state: State, words: str
) -> None:
    says(libraries.onnxruntime(library, distributions, facts), state, words)


@pytest.mark.parametrize(
    ("library", "facts", "state", "words"),
    [
        (None, ONE_GPU, State.NOT_APPLICABLE, "efserve[torch]"),
        (BROKEN, ONE_GPU, State.PROBLEM, "reinstall"),
        (TORCH_CPU, NO_GPU, State.OK, "for the CPU"),
        (replace(TORCH_GPU, cuda_works=False), NO_GPU, State.OK, "for CUDA 12.8"),
        (TORCH_CPU, ONE_GPU, State.PROBLEM, "build for CUDA"),
        (replace(TORCH_GPU, cuda_works=False), ONE_GPU, State.PROBLEM, "is_available() is false"),
        (
            replace(TORCH_GPU, cuda_version="13.0", cuda_works=False),
            ONE_GPU,
            State.PROBLEM,
            "driver to one for CUDA 13",
        ),
        (TORCH_GPU, driver_for("12.4"), State.WARNING, "CUDA up to 12.4"),
        (TORCH_GPU, driver_for("13.0"), State.OK, "for CUDA 12.8"),
        (replace(TORCH_GPU, architectures=("sm_100", "sm_80")), ONE_GPU, State.PROBLEM, "no code for NVIDIA H200"),
        (TORCH_GPU, ONE_GPU, State.OK, ""),
    ],
)
def test_torch(library: Library | None, facts: GpuFacts, state: State, words: str) -> None:
    says(libraries.torch(library, facts), state, words)


@pytest.mark.parametrize("judge", [libraries.tensorrt, libraries.pycuda])
def test_tensorrt_and_pycuda(judge: object) -> None:
    assert callable(judge)
    good = Library("10.9.0", cuda_version="12.8", cuda_works=True)
    says(judge(None, NO_GPU), State.NOT_APPLICABLE)
    says(judge(good, NO_GPU), State.NOT_APPLICABLE, "10.9.0")
    says(judge(None, ONE_GPU), State.NOT_APPLICABLE, "pip install")
    says(judge(BROKEN, ONE_GPU), State.PROBLEM, "libpython")
    says(judge(replace(good, cuda_works=False, cuda_problem="error 35"), ONE_GPU), State.PROBLEM, "error 35")
    says(judge(good, ONE_GPU), State.OK)


def test_openvino() -> None:
    says(libraries.openvino(None), State.NOT_APPLICABLE)
    says(libraries.openvino(BROKEN), State.PROBLEM)
    says(libraries.openvino(Library("2026.4.1", providers=("CPU",))), State.OK, "2026.4.1 for CPU")


@pytest.mark.parametrize(
    ("architectures", "runs"),
    [
        ((), True),
        (("sm_90",), True),
        (("sm_90a",), True),
        (("sm_80",), False),
        (("sm_80", "compute_80"), True),
        (("sm_100", "compute_100"), False),
        (("nonsense",), False),
    ],
)
def test_code_for_a_gpu_of_9_0(architectures: tuple[str, ...], runs: bool) -> None:
    assert libraries.runs_on(architectures, ONE_GPU.gpus[0]) is runs


# The machine around


def test_cores_and_memory() -> None:
    says(host.cores(CPU), State.OK, "4 of 8 cores")
    tight = replace(CPU, usable_cores=2, cgroup=CgroupLimits((2,), 2.5, None, 1 << 30), memory_available_bytes=1 << 29)
    says(host.cores(tight), State.WARNING, "2.5 cores", "within 2")
    says(host.memory(CPU), State.OK, "60.0 GiB of 64.0 GiB")
    says(host.memory(tight), State.WARNING, "1.0 GiB allowed")


def test_container() -> None:
    says(host.container(Container(), has_gpu=True), State.OK, "none")
    says(host.container(Container("docker", False), has_gpu=False), State.OK, "docker")
    says(host.container(Container("docker", False), has_gpu=True), State.WARNING, "--ipc=host")
    says(host.container(Container("docker", True), has_gpu=True), State.OK)
    says(host.shared_memory(Container("docker", False, 64 << 20, 64 << 20)), State.WARNING, "--shm-size")
    says(host.shared_memory(Container("", True, 2 << 30, 64 << 20)), State.WARNING, "64 MiB of 2.0 GiB", "remove what")
    says(host.shared_memory(Container()), State.WARNING, "there is none", "mount one")


def test_kernel_ports_and_folders() -> None:
    says(host.kernel(HOST), State.OK, "6.8.0")
    says(host.kernel(replace(HOST, missing_features=("x (memfd_create)",))), State.PROBLEM, "memfd_create", "seccomp")
    taken = (Port(8000, "--http-port", "another program listens on it"), Port(8001, "--grpc-port"))
    says(host.ports(taken), State.WARNING, "8000: another program", "--http-port 8100")
    says(host.folders((Folder("/ro/reports", "reports", False),)), State.WARNING, "/ro/reports (reports)")
