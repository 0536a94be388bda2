#!/usr/bin/env bash
# Several processes on one machine, or on several that share a file system: no coordinator, each takes a part of the subjects.
# Usage: shards.sh INPUT OUT N [options of pnet construct]
set -u
input=$1 out=$2 parts=$3
shift 3
for part in $(seq "$parts"); do
  pnet construct "$input" "$out" --shard "$part/$parts" --resume --report false "$@" &
done
wait
# What a part that was killed left, measures of the whole cohort, and the pages.
pnet construct "$input" "$out" --resume "$@"
