#!/usr/bin/env bash
# The batch script that `selfevolve launch slurm` submits: slurm.sh CHECKOUT COMMAND…
#
# Preempted, the job is requeued by SLURM itself (sbatch --requeue), which sends SIGTERM to the tasks first;
# they save and end. Shortly before the time limit SLURM sends SIGUSR1 to this shell (sbatch --signal=B:USR1@…),
# which then sends the tasks SIGTERM, waits, and requeues the job. Nothing else requeues it: scancel ends it
# for good, and so does a failure of its own.
set -uo pipefail

checkout=$1
shift
due=no

# SIGTERM would end this shell before the tasks have saved.
trap ':' TERM
trap 'due=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1

echo "job $SLURM_JOB_ID, life $((${SLURM_RESTART_COUNT:-0} + 1)): selfevolve $*"
# One task that fails ends the others, which would wait for it.
srun --kill-on-bad-exit=1 "$checkout/.venv/bin/selfevolve" "$@" &
tasks=$!
# wait returns early, with a code above 128, at each signal that is trapped
while wait "$tasks"; code=$?; [ "$code" -gt 128 ] && kill -0 "$tasks" 2>/dev/null; do :; done

if [ "$due" = yes ] && [ "$code" -ne 0 ]; then
  echo "the time limit is near: the job queues again and goes on from its newest checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
