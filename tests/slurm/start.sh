#!/usr/bin/env bash
# Runs a one-node Slurm on this machine, as root: `start.sh FOLDER` installs it if it is missing (Debian) and stores its
# state in FOLDER; `start.sh FOLDER stop` stops it.
set -euo pipefail
folder=$(realpath -m "$1")

if [ "${2:-}" = stop ]; then
    for daemon in slurmctld slurmd munged; do
        [ ! -f "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
    done
    exit 0
fi

if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmd slurmctld slurm-client munge
fi >/dev/null

mkdir -p "$folder/state" "$folder/spool"
munge_folder=$(mktemp -d /run/tokenleap-munge.XXXXXX)
chown munge "$munge_folder"
chmod 755 "$munge_folder"
[ -f /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; }
chown munge /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
su -s /bin/sh munge -c "munged --socket=$munge_folder/socket --pid-file=$munge_folder/munged.pid \
    --log-file=$munge_folder/munged.log --seed-file=$munge_folder/munged.seed"
cp "$munge_folder/munged.pid" "$folder/munged.pid"

host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=tokenleap
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$munge_folder/socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF

export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%t 2>/dev/null)" != idle ] || exit 0
    sleep 0.2
done
echo "Slurm did not start: read $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1
