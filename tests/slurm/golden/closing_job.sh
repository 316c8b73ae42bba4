#!/bin/bash
#SBATCH --job-name=train.closing
#SBATCH --output=/shared/runs/0b54c1/closing/log
#SBATCH --open-mode=append
#SBATCH --chdir=/shared/runs/0b54c1/code
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1024M
#SBATCH --time=0-00:10:00
#SBATCH --partition=dc-cpu
#SBATCH --account=training2401
#SBATCH --requeue
#SBATCH --export=NONE
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --comment="zenml run 5e0f"

umask 077
give_up() { echo "job script on $(hostname): $1" >&2; exit 1; }
[ -r /shared/runs/0b54c1/environment ] || give_up '/shared/runs/0b54c1/environment is not there: is the run'"'"'s folder on a file system that this node sees?'
source /shared/runs/0b54c1/environment
[ -r /shared/runs/0b54c1/closing/environment ] || give_up '/shared/runs/0b54c1/closing/environment is not there: is the run'"'"'s folder on a file system that this node sees?'
source /shared/runs/0b54c1/closing/environment
set -eo pipefail
trap 'give_up "line $LINENO failed with exit code $?"' ERR
set -u
unset SLURM_EXPORT_ENV  # srun passes the environment on
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun no longer takes it from the job
cd /shared/runs/0b54c1/code
export PYTHONPATH=/shared/runs/0b54c1/code PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
exec /shared/env/bin/python -m stacks.slurm.closing /shared/runs/0b54c1
