#!/usr/bin/env bash
# Several processes on one machine, or on machines that share a file system. Each constructs one part of the subjects; there is no coordinator.
# Usage: shards.sh INPUT OUT N [options of pnet construct]
set -u
input=$1 out=$2 parts=$3
shift 3
for part in $(seq "$parts"); do
  pnet construct "$input" "$out" --shard "$part/$parts" --resume --no-report "$@" &
done
wait
# Construct unfinished scans, add the cohort measures and write the reports.
pnet construct "$input" "$out" --resume "$@"
