#!/usr/bin/env bash
# Starts and stops NVIDIA MPS, which lets several processes run on one GPU at the same time.
#
#   start_MPS.sh [start|stop|status] [--single] [--run-dir DIR] [--deadline SECONDS]
#
# start   one control daemon per GPU, so that a fault stays on its GPU; --single: one daemon for all GPUs
# stop    ends every daemon that start began in this run directory and restores the GPUs' compute mode
# status  what runs; exit code 0: on every GPU, 3: not on every GPU, 1: a daemon does not answer
#
# Started as root, it sets the compute mode EXCLUSIVE_PROCESS, which keeps programs that miss the daemon off the GPU.
# The mode that was there is kept in the run directory until stop has restored it, also when a start was broken off.
# A second start or stop does nothing. GPUs in MIG mode are left alone. Exit code 1: an error, said in one sentence.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for those who say `sh start_MPS.sh`
set -u -o pipefail

run_dir="${XDG_RUNTIME_DIR:-/tmp}/efserve-mps-$(id -u)"
deadline_s=20
single=no
action=start
starting=""    # the unit whose daemon is being started
set_mode_of="" # GPUs whose mode this start has changed for it

# A client's share or limit in the daemon's environment would be that of all clients.
unset "${!CUDA_MPS_@}"

say() { printf '%s\n' "$*"; }
warn() { printf 'start_MPS.sh: %s\n' "$*" >&2; }
die() {
    warn "$1"
    exit "${2:-1}"
}

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }

# --- GPUs -------------------------------------------------------------------------------------------------------------

smi() { timeout --kill-after=5 "$deadline_s" nvidia-smi "$@"; }

# Lines "uuid|compute mode|MIG mode", one per GPU.
list_gpus() { smi --query-gpu=uuid,compute_mode,mig.mode.current --format=csv,noheader | sed 's/ *, */|/g'; }

require_tools() {
    command -v nvidia-smi >/dev/null ||
        die "no nvidia-smi on this machine: MPS needs an NVIDIA GPU and its driver; efserve runs on the CPU without it."
    command -v nvidia-cuda-mps-control >/dev/null ||
        die "no nvidia-cuda-mps-control on this machine: install the part of NVIDIA's driver that has it (on Debian: nvidia-cuda-mps)."
}

find_gpus() {
    local listed uuid mode mig
    listed=$(list_gpus 2>/dev/null) || die "nvidia-smi finds no GPU or does not answer within $deadline_s s; try it by hand."
    gpus=()
    declare -gA mode_of=()
    while IFS='|' read -r uuid mode mig; do
        [[ $uuid == GPU-* ]] || continue
        if [[ $mig == Enabled ]]; then
            warn "$uuid is in MIG mode and is left alone."
            continue
        fi
        gpus+=("$uuid")
        mode_of[$uuid]=$mode
    done <<<"$listed"
    ((${#gpus[@]})) || die "nvidia-smi lists no GPU that MPS could run on."
}

# Remembers the compute mode of a GPU and sets EXCLUSIVE_PROCESS; what was remembered by a start before it stays.
make_exclusive() {
    local uuid=$1 kept="$run_dir/mode-$1"
    [[ $EUID == 0 && ${mode_of[$uuid]^^} != EXCLUSIVE_PROCESS ]] || return 0
    if [[ ! -e $kept ]]; then # whoever finds the file finds all of it
        printf '%s\n' "${mode_of[$uuid]^^}" >"$run_dir/.mode-$uuid" || die "cannot write to $run_dir"
        mv "$run_dir/.mode-$uuid" "$kept"
    fi
    set_mode_of+=" $uuid"
    if ! smi -i "$uuid" -c EXCLUSIVE_PROCESS >/dev/null; then
        warn "cannot set the compute mode of $uuid; MPS works without it, but a program that misses the daemon may share the GPU."
        restore_mode "$uuid"
    fi
}

restore_mode() {
    local uuid=$1 kept="$run_dir/mode-$1" mode
    [[ -e $kept ]] || return 0
    read -r mode <"$kept"
    case $mode in
    DEFAULT | EXCLUSIVE_THREAD | PROHIBITED | EXCLUSIVE_PROCESS) ;;
    *)
        warn "the kept compute mode of $uuid is unreadable; it becomes DEFAULT."
        mode=DEFAULT
        ;;
    esac
    if smi -i "$uuid" -c "$mode" >/dev/null; then
        rm -f "$kept"
    else
        warn "cannot restore the compute mode of $uuid; as root: nvidia-smi -i $uuid -c $mode"
        return 1
    fi
}

# --- daemons: one per unit, which is a GPU's uuid or "all" ------------------------------------------------------------

# Sends one command to the daemon of a unit. Exit code 124 or 137: it hangs.
control() {
    CUDA_MPS_PIPE_DIRECTORY="$run_dir/mps-$1" timeout --kill-after=5 "$deadline_s" nvidia-cuda-mps-control \
        <<<"$2" 2>/dev/null
}

# running, absent or hanging
state_of() {
    [[ -d $run_dir/mps-$1 ]] || { say absent && return; }
    control "$1" get_server_list >/dev/null
    case $? in
    0) say running ;;
    124 | 137) say hanging ;;
    *) say absent ;;
    esac
}

# Units that a start has left something of: a pipe directory.
started_units() {
    local path
    for path in "$run_dir"/mps-*; do
        [[ -d $path ]] && say "${path##*/mps-}"
    done
}

# Processes of a unit: the daemon and its servers, which inherit its environment. A number in a pid file may have gone to
# another process since, or to somebody else's daemon. It is believed only for an MPS process whose environment cannot
# be read: another user's.
processes() {
    local path name state written=""
    [[ -r $run_dir/mps-$1/nvidia-cuda-mps-control.pid ]] && read -r written <"$run_dir/mps-$1/nvidia-cuda-mps-control.pid"
    for path in /proc/[0-9]*; do
        { read -r _ name state _ <"$path/stat"; } 2>/dev/null || continue
        [[ $name == "(nvidia-cuda-mps"* && $state != [ZX] ]] || continue # one that nobody has reaped has ended
        if [[ -r $path/environ ]]; then
            grep -qzxF "CUDA_MPS_PIPE_DIRECTORY=$run_dir/mps-$1" "$path/environ" 2>/dev/null || continue
        else
            [[ ${path##*/} == "$written" ]] || continue
        fi
        say "${path##*/}"
    done
}

start_daemon() {
    local unit=$1 visible=$2 log="$run_dir/log-$1"
    rm -rf "${run_dir:?}/mps-$unit" # what a crash has left
    mkdir -p "$run_dir/mps-$unit" "$log"
    CUDA_VISIBLE_DEVICES=$visible CUDA_MPS_PIPE_DIRECTORY="$run_dir/mps-$unit" CUDA_MPS_LOG_DIRECTORY=$log \
        timeout --kill-after=5 "$deadline_s" nvidia-cuda-mps-control -d >"$log/start.log" 2>&1 </dev/null
    [[ $? == 0 && $(state_of "$unit") == running ]]
}

# Ends a daemon and its servers: politely, then by SIGTERM, then by SIGKILL.
stop_daemon() {
    local unit=$1 signal pid
    [[ $(state_of "$unit") == running ]] && control "$unit" quit >/dev/null && gone "$unit"
    for signal in TERM KILL; do
        for pid in $(processes "$unit"); do
            warn "the MPS process $pid does not quit; it gets SIG$signal."
            kill "-$signal" "$pid" 2>/dev/null
        done
        gone "$unit" && break
    done
    for pid in $(processes "$unit"); do
        warn "the MPS process $pid of $unit does not end."
        return 1
    done
    rm -rf "${run_dir:?}/mps-$unit"
}

# Waits for the end of a unit's processes.
gone() {
    local end=$((SECONDS + deadline_s + 1)) # bash counts whole seconds, of which the first may be short
    while [[ -n $(processes "$1") ]]; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# --- actions ----------------------------------------------------------------------------------------------------------

start() {
    require_tools
    find_gpus
    (umask 077 && mkdir -p "$run_dir") || die "cannot make the run directory $run_dir; name another with --run-dir."
    [[ -O $run_dir ]] || die "the run directory $run_dir belongs to another user; name another with --run-dir."
    raise_file_limit
    trap undo EXIT
    trap 'exit 130' INT TERM
    if [[ $single == yes ]]; then
        start_unit all "${gpus[@]}"
    else
        local uuid
        for uuid in "${gpus[@]}"; do
            start_unit "$uuid" "$uuid"
        done
    fi
}

# Starts the daemon of a unit, unless it runs, for the GPUs that follow.
start_unit() {
    local unit=$1 uuid other
    shift
    while read -r other; do
        [[ $other == "$unit" || ($other != all && $unit != all) ]] ||
            die "MPS has been started here for '$other', which excludes a daemon for '$unit'; stop it first: $0 stop"
    done < <(started_units)
    case $(state_of "$unit") in
    running)
        say "$unit: MPS is running already."
        ;;
    hanging)
        die "the MPS daemon of $unit does not answer within $deadline_s s; end it with: $0 stop --run-dir $run_dir"
        ;;
    absent)
        length=$(LC_ALL=C && socket=$run_dir/mps-$unit/control && say "${#socket}")
        ((length <= 107)) || die "the run directory $run_dir is too long: the path of the daemon's socket would have \
$length bytes, at most 107 can be; name a shorter one with --run-dir."
        starting=$unit
        for uuid in "$@"; do make_exclusive "$uuid"; done
        if ! start_daemon "$unit" "$(IFS=, && say "$*")"; then
            die "the MPS daemon of $unit did not start; see $run_dir/log-$unit"
        fi
        starting=""
        set_mode_of=""
        say "$unit: MPS started."
        ;;
    esac
    say "  export CUDA_MPS_PIPE_DIRECTORY=$run_dir/mps-$unit"
}

# A start that ends early leaves no half-started daemon, and gives the compute modes back.
undo() {
    local uuid
    [[ -z $starting ]] || stop_daemon "$starting"
    for uuid in $set_mode_of; do restore_mode "$uuid"; done
}

# 48 clients of a daemon need many files.
raise_file_limit() {
    local limit
    limit=$(ulimit -n)
    [[ $limit == unlimited || $limit -ge 16384 ]] || ulimit -n 16384 2>/dev/null ||
        warn "at most $limit open files here; with many clients MPS needs 16384 (ulimit -n)."
}

stop() {
    local unit path failed=0 count=0
    while read -r unit; do
        count=$((count + 1))
        stop_daemon "$unit" && say "$unit: MPS stopped." || failed=1
    done < <(started_units)
    for path in "$run_dir"/mode-*; do
        [[ -e $path ]] || continue
        restore_mode "${path##*/mode-}" || failed=1
    done
    ((count)) || say "MPS is not running in $run_dir."
    return "$failed"
}

status() {
    require_tools
    find_gpus
    local uuid unit state servers code=0
    for uuid in "${gpus[@]}"; do
        unit=$uuid
        [[ -d $run_dir/mps-all ]] && unit=all
        state=$(state_of "$unit")
        case $state in
        running)
            servers=$(control "$unit" get_server_list)
            say "$uuid: MPS is running, compute mode ${mode_of[$uuid]}, servers: ${servers//$'\n'/ }"
            ;;
        hanging) say "$uuid: the MPS daemon does not answer within $deadline_s s" ;;
        absent) say "$uuid: MPS is not running, compute mode ${mode_of[$uuid]}" ;;
        esac
        [[ $state == hanging ]] && code=1
        [[ $state == absent && $code == 0 ]] && code=3
    done
    return "$code"
}

while (($#)); do
    case $1 in
    start | stop | status) action=$1 ;;
    --single) single=yes ;;
    --run-dir | --deadline)
        (($# > 1)) || die "$1 needs a value." 2
        if [[ $1 == --run-dir ]]; then run_dir=$2; else deadline_s=$2; fi
        shift
        ;;
    -h | --help) usage && exit ;;
    *) die "unknown argument '$1'; see $0 --help" 2 ;;
    esac
    shift
done
[[ $run_dir == /* ]] || run_dir=$(pwd -P)/$run_dir
[[ $deadline_s =~ ^[1-9][0-9]*$ ]] || die "--deadline $deadline_s: expected whole seconds." 2
"$action"
