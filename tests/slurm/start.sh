#!/usr/bin/env bash
# Start a SLURM of one node on this machine, with accounting: tests/slurm/start.sh DIR
#
# Needs root, and the Debian packages named below; it installs nothing. It listens on 127.0.0.1 alone, on the ports
# PORT (26817 unless told otherwise), PORT+1 and PORT+2, and writes into DIR alone. tests/slurm/stop.sh DIR ends it.
# Exit code 3: this machine lacks something.
set -euo pipefail
DIR=$(realpath -m "${1:?give a folder for state, logs and sockets: tests/slurm/start.sh DIR}")
PORT=${PORT:-26817}
NODE=$(hostname -s)
CORES=$(nproc)
MEMORY=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo) # MiB; the rest is for what is not a job

fail() { echo "error: $*" >&2; exit 1; }
refuse() { echo "error: $*" >&2; exit 3; }
# Run a command until it succeeds, for 30 seconds.
await() { for _ in $(seq 120); do "$@" >/dev/null 2>&1 && return; sleep 0.25; done; return 1; }
idle() { sinfo --noheader --format=%T | grep -qx idle; }

PATH=$PATH:/usr/sbin
packages=
for pair in slurmctld:slurm-wlm munged:munge slurmdbd:slurmdbd mariadbd:mariadb-server; do
  command -v "${pair%:*}" >/dev/null || packages="$packages ${pair#*:}"
done
[ -z "$packages" ] || refuse "missing packages: apt-get install -y --no-install-recommends$packages"
[ "$(id -u)" = 0 ] || refuse "slurmd starts jobs for other users, so this needs root"
[ "${#DIR}" -le 80 ] || fail "$DIR is too long a name for a folder of sockets"
[ ! -s "$DIR/slurmctld.pid" ] || ! kill -0 "$(cat "$DIR/slurmctld.pid")" 2>/dev/null || fail "$DIR: runs already"

mkdir -p "$DIR"/{state,spool,log}
mkdir -p -m 700 "$DIR"/{munge,mysql} # in MariaDB root has no password
# Others must get to munge's socket, and to nothing else in its folder.
chmod 711 "$DIR" "$DIR/munge"
if [ ! -s "$DIR/munge/key" ]; then
  (umask 077; head -c 1024 /dev/urandom > "$DIR/munge/key")
fi

cat > "$DIR/slurm.conf" <<CONF
ClusterName=fingerbench
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A queued-again job waits until its credential has expired: 120 s by default.
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
SrunPortRange=$((PORT + 100))-$((PORT + 199))
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.log
# Neither cgroups nor systemd, so that it runs in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStoragePass=$DIR/munge/socket
ReturnToService=2
# Seconds between SIGTERM and SIGKILL; 30 by default.
KillWait=5
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$CORES RealMemory=$MEMORY State=UNKNOWN
PartitionName=debug Nodes=$NODE Default=YES MaxTime=INFINITE State=UP
CONF
(umask 077; cat > "$DIR/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
DbdHost=$NODE
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$DIR/slurmdbd.pid
LogFile=$DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageLoc=slurm_acct_db
StorageUser=root
CONF

export SLURM_CONF="$DIR/slurm.conf"
trap 'status=$?; [ $status = 0 ] || { tail -n 5 "$DIR"/log/*.log >&2; "$(dirname "$0")/stop.sh" "$DIR"; }' EXIT
munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
  --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
if [ ! -d "$DIR/mysql/mysql" ]; then
  mariadb-install-db --no-defaults --user=root --datadir="$DIR/mysql" --auth-root-authentication-method=normal \
    --skip-test-db > "$DIR/log/mariadb-install.log" 2>&1
fi
setsid mariadbd --no-defaults --user=root --datadir="$DIR/mysql" --skip-networking --socket="$DIR/mysql/socket" \
  --pid-file="$DIR/mysql.pid" --innodb-buffer-pool-size=64M > "$DIR/log/mariadb.log" 2>&1 &
await mariadb-admin --no-defaults --socket="$DIR/mysql/socket" --user=root ping || fail "MariaDB does not start"
MYSQL_UNIX_PORT="$DIR/mysql/socket" slurmdbd
await sacctmgr --noheader --immediate show cluster || fail "slurmdbd does not start"
sacctmgr --immediate add cluster fingerbench > "$DIR/log/sacctmgr.log" 2>&1 || true # it is there the second time
slurmctld
slurmd
await idle || fail "the node does not become idle"
sinfo
echo "now: export SLURM_CONF=$SLURM_CONF"
