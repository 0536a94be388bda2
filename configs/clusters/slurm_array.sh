#!/usr/bin/env bash
# An array job: every task constructs one part of the subjects.
#   tasks=$(sbatch --parsable slurm_array.sh INPUT OUT)
#   sbatch --dependency=afterany:$tasks --wrap "pnet construct INPUT OUT --resume"   # unfinished scans, cohort measures, reports
#SBATCH --array=0-19
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60
# --signal: a task that runs out of time stops cleanly, and the next submission resumes where it stopped.
set -eu
input=$1 out=$2
shift 2
part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))
pnet construct "$input" "$out" --shard "$part/$SLURM_ARRAY_TASK_COUNT" --resume --no-report "$@"
