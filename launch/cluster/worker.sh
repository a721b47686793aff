#!/usr/bin/env bash
# What `selfevolve launch tpu-vm` has each worker of a TPU VM do:
#   worker.sh setup            installs the checkout that this file is in
#   worker.sh start COMMAND…   starts selfevolve COMMAND… and returns; nothing if a job is running
#   worker.sh status           "job running", "job none", "job lost" or "job exit CODE", before the host's name
#   worker.sh stop             SIGTERM to the job, on which it saves; SIGKILL after two minutes
# The job holds a lock as long as any process of it lives, so a reboot or a SIGKILL cannot leave it for alive.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
job=$HOME/selfevolve-job # lock, pid, exit, log
mkdir -p "$job"
verb=${1:-}
shift || true
[ "$verb" = attend ] || exec 9>"$job/lock" # attend was given it, locked; to open it anew would let it go

say() { echo "job $* on $(hostname)"; }

case $verb in
  setup)
    export PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null || python3 -m pip install --user --quiet uv
    cd "$checkout" && uv sync --quiet --locked --no-dev --extra tpu
    ;;
  start)
    if ! flock -n 9; then
      say running
      exit
    fi
    rm -f "$job/exit"
    echo "── $(date -u +%FT%TZ) selfevolve $*" >>"$job/log"
    # descriptor 9, and so the lock, goes on to the new process
    setsid nohup "$checkout/launch/cluster/worker.sh" attend "$@" </dev/null >>"$job/log" 2>&1 &
    say started
    ;;
  attend) # of start's own: waits for the job, and notes how it ended
    trap ':' TERM
    cd "$checkout"
    .venv/bin/selfevolve "$@" &
    echo $! >"$job/pid"
    set +e
    while wait $!; code=$?; [ "$code" -gt 128 ] && kill -0 $! 2>/dev/null; do :; done
    echo "$code" >"$job/exit.tmp" && mv "$job/exit.tmp" "$job/exit"
    ;;
  status)
    if ! flock -n 9; then
      say running
    elif [ -f "$job/exit" ]; then
      say "exit $(cat "$job/exit")"
    elif [ -f "$job/log" ]; then
      say lost
    else
      say none
    fi
    ;;
  stop)
    flock -n 9 && exit
    kill -TERM "$(cat "$job/pid")" || true
    flock -w 120 9 || kill -KILL "$(cat "$job/pid")" || true
    ;;
  *)
    echo "worker.sh: $verb is none of setup, start, status, stop" >&2
    exit 2
    ;;
esac
