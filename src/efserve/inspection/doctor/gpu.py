"""Judges the driver, the GPUs and MPS."""

from collections.abc import Mapping, Sequence

from efserve.devices.gpu import Gpu, GpuFacts, cuda_devices
from efserve.devices.nvml import NO_DRIVER
from efserve.inspection.doctor.facts import Container, Hardware, Host, MpsFacts
from efserve.inspection.doctor.verdict import Verdict, not_applicable, ok, problem, warning

GREEN_CONTEXTS_FROM = (12, 4)
MPS_OPEN_FILES = 16384


def driver(gpu: GpuFacts, hardware: Hardware, container: Container) -> Verdict:
    """Whether NVIDIA's driver answers; no GPU and no driver is not a fault."""
    if gpu.problem == NO_DRIVER and not hardware.cards and not hardware.nodes:
        return not_applicable(NO_DRIVER)
    if gpu.problem:
        if container.kind and gpu.problem == NO_DRIVER:
            mend = "start the container with --gpus all (NVIDIA Container Toolkit), and look at nvidia-smi on the host"
        elif gpu.problem == NO_DRIVER:
            mend = "install NVIDIA's driver for this card and reboot"
        else:
            mend = "run nvidia-smi by hand; after an update of the driver, reboot"
        seen = f"; this machine has {hardware.cards} NVIDIA GPUs on its PCI bus" if hardware.cards else ""
        return problem(f"{gpu.problem}{seen}", mend)
    if gpu.unreachable:
        lost = ", ".join(map(str, gpu.unreachable))
        return problem(f"GPU {lost} cannot be reached", "look for 'Xid' in dmesg; a GPU that is lost needs a reboot")
    if not gpu.gpus:
        return problem(f"driver {gpu.driver_version} finds no GPU", "look at `nvidia-smi -L`")
    found = f"driver {gpu.driver_version}, CUDA up to {gpu.cuda_version}, {len(gpu.gpus)} GPU(s)"
    if version_of(gpu.cuda_version) < GREEN_CONTEXTS_FROM:
        return warning(found, "update the driver to one for CUDA 12.4 or later: green contexts need it")
    return ok(found)


def device_nodes(hardware: Hardware) -> Verdict:
    """Whether this process may open the driver's files, without which CUDA starts nowhere."""
    names = {node.path.rpartition("/")[2] for node in hardware.nodes}
    missing = [f"/dev/{name}" for name in ("nvidiactl", "nvidia-uvm") if name not in names]
    if missing:
        return problem(
            f"{' and '.join(missing)} not found",
            "run `nvidia-modprobe -u -c=0` as root, or give the container its devices with --gpus all",
        )
    closed = [node.path for node in hardware.nodes if not node.usable]
    if closed:
        return problem(
            f"no right to read and write {', '.join(closed)}",
            f"join the group that owns them (ls -l {closed[0]}), or ask the administrator for it",
        )
    return ok(", ".join(node.path for node in hardware.nodes))


def visibility(environment: Mapping[str, str], gpus: Sequence[Gpu]) -> Verdict:
    """Whether variables hide GPUs, or parts of them, from the programs that efserve starts."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in {"", "-1", "NoDevFiles"}:
        return problem(
            f"CUDA_VISIBLE_DEVICES='{visible}' hides every GPU from CUDA", "unset it: unset CUDA_VISIBLE_DEVICES"
        )
    limit = environment.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    if limit is not None:
        return warning(
            f"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={limit} limits every program that is started here",
            "unset it: efserve sets it for each worker",
        )
    if visible is not None:
        return warning(
            f"CUDA_VISIBLE_DEVICES={visible} shows CUDA a part of the {len(gpus)} GPU(s)",
            "unset it unless the others are to be kept from efserve",
        )
    return ok("no variable hides a GPU")


def devices(gpus: Sequence[Gpu]) -> Verdict:
    """What CUDA programs may run on, and whether it slows itself down now."""
    bare = [gpu.index for gpu in gpus if gpu.mig_enabled and not gpu.mig_slices]
    if bare:
        return problem(
            f"GPU {_listed(bare)} is in MIG mode and has no slices, so CUDA finds nothing there",
            "have the administrator cut slices (nvidia-smi mig -cgi) or turn MIG off",
        )
    parts = cuda_devices(gpus)
    found = "; ".join(f"{each.name} ({_known(each.sm_count)} SMs, {_gib(each.memory_total_bytes)})" for each in parts)
    slow = {f"{gpu.index}: {', '.join(gpu.reading.clock_reasons)}" for gpu in gpus if gpu.reading.throttled}
    if slow:
        return warning(
            f"{found}; slowed down now, GPU {'; '.join(sorted(slow))}",
            "measure when it has cooled down or has its power: figures taken now are too slow",
        )
    return ok(found)


def other_programs(gpus: Sequence[Gpu]) -> Verdict:
    """Whether others use the GPUs, as nobody can measure beside them."""
    programs = [
        f"{process.name or 'process'} {process.pid} on GPU {gpu.index} ({_gib(process.memory_bytes)})"
        for gpu in gpus
        for process in gpu.processes
        if process not in gpu.mps_servers
    ]
    if programs:
        return warning("; ".join(programs), "end them before you profile: whoever shares a GPU disturbs the figures")
    return ok("none")


def compute_mode(gpus: Sequence[Gpu], mps: MpsFacts) -> Verdict:
    """Whether several workers may use one GPU."""
    modes = {gpu.index: gpu.compute_mode for gpu in gpus}
    forbidden = [index for index, mode in modes.items() if mode == "PROHIBITED"]
    if forbidden:
        return problem(
            f"GPU {_listed(forbidden)} is PROHIBITED: no program can use it",
            f"as root: nvidia-smi -i {forbidden[0]} -c DEFAULT",
        )
    alone = [index for index, mode in modes.items() if mode in {"EXCLUSIVE_PROCESS", "EXCLUSIVE_THREAD"}]
    if alone and not mps.daemons:
        return problem(
            f"GPU {_listed(alone)} is EXCLUSIVE_PROCESS and no MPS daemon runs: a second worker cannot start",
            f"start one with `efserve mps start`, or as root: nvidia-smi -i {alone[0]} -c DEFAULT",
        )
    told = sorted({mode for mode in modes.values() if mode})
    return ok(" and ".join(told) or "not told by this driver")


def mps_program(mps: MpsFacts, container: Container) -> Verdict:
    """Whether MPS can be had at all."""
    if mps.control_program:
        return ok(mps.control_program)
    mend = (
        "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        if container.kind
        else "install the part of NVIDIA's driver that has it (on Debian: nvidia-cuda-mps)"
    )
    return warning(
        "no nvidia-cuda-mps-control: shares fall back to green contexts, which take turns instead of running at once",
        mend,
    )


def mps_daemon(mps: MpsFacts, gpus: Sequence[Gpu]) -> Verdict:
    """Whether the daemons that run answer."""
    bad = [daemon for daemon in mps.daemons if daemon.problem]
    if bad:
        pids = " ".join(str(daemon.pid) for daemon in bad if daemon.pid)
        kill = f"`kill {pids}`" if pids else "end it outside of this container"
        return problem(
            "; ".join(daemon.problem for daemon in bad), f"end its clients, then {kill}, and `efserve mps start`"
        )
    if not mps.daemons:
        return ok("none runs; `efserve serve --mps auto` starts one where a share needs it")
    clients = sum(len(gpu.mps_clients) for gpu in gpus)
    told = ", ".join(
        f"{daemon.pid or 'out of sight'} in {daemon.pipe_directory or 'a folder out of sight'}"
        for daemon in mps.daemons
    )
    return ok(f"daemon {told}; {clients} client(s)")


def rights(mps: MpsFacts, host: Host) -> Verdict:
    """Whether MPS may serve this user: one user at a time, and only root sets the compute mode."""
    others = sorted({daemon.uid for daemon in mps.daemons if daemon.uid not in {0, host.uid}})
    servers = sorted(set(mps.server_uids) - {host.uid})
    if servers:
        return problem(
            f"an MPS server runs for user {_listed(servers)}, you are user {host.uid}: MPS serves one user at a time",
            "wait for its clients to end, or run efserve as that user",
        )
    if others:
        return warning(
            f"an MPS daemon was started by user {_listed(others)}, you are user {host.uid}",
            "start one of your own with `efserve mps start`, which has directories of its own",
        )
    if host.uid == 0:
        return ok("root: the compute mode can be set and restored")
    return ok(f"user {host.uid}: MPS works, the compute mode stays as it is")


def open_files(host: Host, *, has_gpu: bool) -> Verdict:
    """`ulimit -n`: an MPS server needs descriptors for all of its clients."""
    wanted, reason = (MPS_OPEN_FILES, "MPS needs") if has_gpu else (1024, "many connections need")
    found = f"{host.open_files} open files, up to {host.open_files_most} on request"
    if host.open_files >= wanted:
        return ok(found)
    if host.open_files_most >= wanted:
        return warning(f"{found}; {reason} {wanted}", f"run `ulimit -n {wanted}` before efserve")
    return warning(
        f"{found}; {reason} {wanted}",
        f"raise nofile in /etc/security/limits.conf, or start the container with --ulimit nofile={wanted}:{wanted}",
    )


def version_of(text: str | None) -> tuple[int, int]:
    """Major and minor of a version such as 12.8; zeros where it is not told."""
    parts = [int(part) if part.isdecimal() else 0 for part in (text or "").split(".")[:2]]
    major, minor = (*parts, 0, 0)[:2]
    return major, minor


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _gib(count_bytes: int | None) -> str:
    return "memory unknown" if count_bytes is None else f"{count_bytes / 2**30:.1f} GiB"


def _known(value: int | None) -> str:
    return "unknown" if value is None else str(value)
