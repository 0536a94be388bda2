#!/usr/bin/env bash
# A TPU pod: the same command on all of its hosts; each takes its part of the subjects and its own chips.
# INPUT and OUT are paths that all hosts see (Filestore, or a bucket that is mounted).
# Usage: tpu_pod.sh NAME ZONE INPUT OUT
set -eu
name=$1 zone=$2 input=$3 out=$4
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "pnet construct $input $out --shard auto --resume"
