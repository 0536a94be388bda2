#!/usr/bin/env bash
# A TPU pod: the same command runs on all hosts, and each constructs its part of the subjects on its own chips.
# All hosts must be able to access INPUT and OUT (Filestore, or a mounted bucket).
# Usage: tpu_pod.sh NAME ZONE INPUT OUT
set -eu
name=$1 zone=$2 input=$3 out=$4
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "pnet construct $input $out --shard auto --resume"
