#!/usr/bin/env bash
# Cancel the jobs of the SLURM that tests/slurm/start.sh DIR has started, and end it; DIR stays: tests/slurm/stop.sh DIR
set -uo pipefail
DIR=$(realpath -m "${1:?give the folder that start.sh was given: tests/slurm/stop.sh DIR}")
export SLURM_CONF="$DIR/slurm.conf"

running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

if running "$DIR/slurmctld.pid" && running "$DIR/slurmd.pid"; then
  timeout 10 scancel --state=PENDING --user=root
  timeout 10 scancel --signal=KILL --full --user=root
  for _ in $(seq 40); do [ -z "$(timeout 10 squeue --noheader)" ] && break; sleep 0.25; done
fi
status=0
for file in "$DIR"/{slurmd.pid,slurmctld.pid,slurmdbd.pid,mysql.pid,munge/pid}; do
  running "$file" || continue
  pid=$(cat "$file")
  kill "$pid"
  for _ in $(seq 120); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
  ! kill -0 "$pid" 2>/dev/null || { echo "error: $file: process $pid does not end" >&2; status=1; }
done
exit $status
