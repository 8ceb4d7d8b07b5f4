"""Judges the machine around the GPUs: processor, memory, container, kernel, ports, folders."""

from collections.abc import Sequence

from efserve.devices.cpu import HostCpu
from efserve.inspection.doctor.facts import Container, Folder, Host, Port
from efserve.inspection.doctor.verdict import Verdict, ok, problem, warning

_GIB = 1 << 30


def cores(cpu: HostCpu) -> Verdict:
    """Whether the cores that may be used can also be used at once."""
    found = f"{len(cpu.cores)} of {cpu.cores_of_machine} cores, {cpu.model}"
    quota = cpu.cgroup.cpu_quota_cores
    if quota is not None and quota < len(cpu.cores):
        return warning(
            f"{found}, with a quota of {quota:g} cores: a process that keeps more busy is halted in between",
            f"keep threads x instances within {cpu.usable_cores}, or raise the quota (in a container: --cpus)",
        )
    return ok(found)


def memory(cpu: HostCpu) -> Verdict:
    """Whether a model fits."""
    found = f"{_gib(cpu.memory_available_bytes)} of {_gib(cpu.memory_total_bytes)} free"
    limit = cpu.cgroup.memory_limit_bytes
    if limit is not None and limit < cpu.memory_total_bytes:
        found += f", {_gib(limit)} allowed by control groups"
    if cpu.memory_available_bytes < _GIB:
        return warning(found, "end other programs or raise the limit: each instance of a model needs memory of its own")
    return ok(found)


def container(found: Container, *, has_gpu: bool) -> Verdict:
    """Whether a container shares what MPS needs of its host."""
    if not found.kind:
        return ok("none")
    shares = {True: "the host's IPC namespace", False: "an IPC namespace of its own", None: "an unknown IPC namespace"}
    told = f"{found.kind}, with {shares[found.host_ipc]}"
    if has_gpu and not found.host_ipc:
        return warning(
            told, "start it with --ipc=host if the MPS daemon runs outside of it, and share the daemon's pipe directory"
        )
    return ok(told)


def shared_memory(found: Container) -> Verdict:
    """/dev/shm, where clients put tensors, and torch and CUDA their own; efserve's workers do not need it."""
    if not found.shm_total_bytes:
        return warning("there is none", "mount one: shared memory of clients and CUDA's own lie there")
    told = f"{_gib(found.shm_free_bytes)} of {_gib(found.shm_total_bytes)} free in /dev/shm"
    if found.shm_free_bytes >= _GIB:
        return ok(told)
    mend = "start the container with --shm-size=1g or --ipc=host" if found.kind else "remove what is left in /dev/shm"
    return warning(told, f"{mend}: shared memory of clients and CUDA's own lie there")


def kernel(host: Host) -> Verdict:
    """What workers and the server talk by."""
    if host.missing_features:
        return problem(
            f"Linux {host.kernel} refuses {', '.join(host.missing_features)}",
            "allow it in the sandbox or seccomp profile, or use Linux 5.3 or later",
        )
    return ok(f"Linux {host.kernel}")


def ports(found: Sequence[Port]) -> Verdict:
    """Whether `efserve serve` can listen where it does by default."""
    taken = [port for port in found if port.problem]
    if taken:
        told = "; ".join(f"{port.number}: {port.problem}" for port in taken)
        return warning(told, f"end that program, or start efserve serve with {' and '.join(_moved(taken))}")
    return ok(f"{', '.join(str(port.number) for port in found)} are free")


def folders(found: Sequence[Folder]) -> Verdict:
    """Whether efserve can write its results."""
    closed = [folder for folder in found if not folder.writable]
    if closed:
        told = "; ".join(f"{folder.path} ({folder.purpose})" for folder in closed)
        return warning(f"no right to write to {told}", "run efserve in a folder of yours, or name others by options")
    return ok("model_dir, profiled_data, reports and temporary files can be written")


def _moved(taken: Sequence[Port]) -> list[str]:
    return [f"{port.option} {port.number + 100}" for port in taken]


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / _GIB:.1f} GiB" if count_bytes >= _GIB else f"{count_bytes >> 20} MiB"
