#!/usr/bin/env bash
# One small job that submits workers as jobs, as many as there is work for; those that are lost are replaced.
# What a worker gets (cores, memory, queue, walltime) stands in ~/.config/dask/jobqueue.yaml, for example:
#   jobqueue: {slurm: {cores: 4, processes: 4, memory: 32GB, walltime: "04:00:00", queue: normal, account: project}}
# `processes` is to equal `cores`, so that every worker has one thread.
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=24:00:00
set -eu
input=$1 out=$2
shift 2
pnet construct "$input" "$out" --cluster slurm --jobs 50 --resume "$@"
