#!/usr/bin/env bash
# A Slurm cluster of this one machine, for as long as one command runs: tests/slurm/one_node.sh COMMAND...
# Needs Debian's packages munge and slurm-wlm; touches nothing of theirs, needs no root and keeps no accounts of jobs.
set -euo pipefail

export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for program in munged slurmctld slurmd sbatch; do command -v "$program" >/dev/null || missing+=("$program"); done
if ((${#missing[@]})); then
    echo "error: ${missing[*]} not found; on Debian or Ubuntu: apt-get install munge slurm-wlm" >&2
    exit 2
fi
(($#)) || { echo "usage: $0 COMMAND..." >&2; exit 2; }

place=$(mktemp -d)
# munge wants a socket that everyone could reach, in a folder that nobody else may write to
chmod 755 "$place"
mkdir "$place/state" "$place/spool"
daemons=() command=""
export SLURM_CONF="$place/slurm.conf"

stop() {
    status=$?
    trap - EXIT
    # the command ends first, then its jobs, then who looks after them
    if [[ -n $command ]] && kill "$command" 2>/dev/null; then wait "$command" || true; fi
    scancel --user="$(id -un)" 2>/dev/null || true
    for _ in {1..20}; do [[ -z $(squeue --noheader 2>/dev/null) ]] && break; sleep 0.5; done
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
    # without cgroups a job can leave processes behind; they and nobody else know this configuration
    for pid in $(grep -lzFx "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    if ((status)); then echo "the logs of munge and Slurm are in $place" >&2; else rm -rf "$place"; fi
    exit "$status"
}
trap stop EXIT
trap 'exit 143' INT TERM HUP

python3 - "$place" <<'PYTHON'
import os, pathlib, socket, sys

place, me, host = pathlib.Path(sys.argv[1]), os.popen("id -un").read().strip(), socket.gethostname().partition(".")[0]
with socket.socket() as a, socket.socket() as b:
    a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in (a, b)]
# chapters ask for two cores; a node may claim more than it has
cores, memory = max(2, os.cpu_count()), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
(place / "slurm.conf").write_text(f"""
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
# no cgroups, so that it runs in a container too; who holds more memory than asked for is found by looking, and stopped
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
(place / "munge.key").write_bytes(os.urandom(1024))
(place / "munge.key").chmod(0o400)
PYTHON

munged --foreground --force --key-file="$place/munge.key" --socket="$place/munge.socket" \
    --pid-file="$place/munged.pid" --seed-file="$place/munged.seed" --log-file="$place/munged.log" \
    >"$place/munged.out" 2>&1 &
daemons+=($!)
for _ in {1..40}; do [[ -S $place/munge.socket ]] && break; sleep 0.25; done
slurmctld -D -i -L "$place/slurmctld.log" >"$place/slurmctld.out" 2>&1 &
daemons+=($!)
slurmd -D -L "$place/slurmd.log" >"$place/slurmd.out" 2>&1 &
daemons+=($!)

for _ in {1..60}; do
    [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]] && break
    sleep 0.5
done
if [[ $(sinfo --noheader --format=%T 2>/dev/null) != idle ]]; then
    echo "error: the node was not idle after 30 s" >&2
    tail -n 5 "$place"/*.log "$place"/*.out >&2
    exit 1
fi
echo "one node, $(sinfo --noheader --format='%c cores, %m MB')"
# in the background and waited for: only so does a signal end it at once
"$@" &
command=$!
wait "$command"
