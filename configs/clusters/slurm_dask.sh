#!/usr/bin/env bash
# A small job that submits its workers as further jobs, as many as the work needs, and replaces lost ones.
# The resources of a worker (cores, memory, queue, walltime) are set in ~/.config/dask/jobqueue.yaml, for example:
#   jobqueue: {slurm: {cores: 4, processes: 4, memory: 32GB, walltime: "04:00:00", queue: normal, account: project}}
# Set `processes` equal to `cores`, so that every worker has one thread.
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=24:00:00
set -eu
input=$1 out=$2
shift 2
pnet construct "$input" "$out" --cluster slurm --jobs 50 --resume "$@"
