#!/usr/bin/env bash
# Several GPU nodes with one process per GPU; SLURM tells each process which part of the subjects to construct.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=8G
#SBATCH --time=04:00:00
set -eu
input=$1 out=$2
shift 2
srun pnet construct "$input" "$out" --shard auto --resume "$@"
