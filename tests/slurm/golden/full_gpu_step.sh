#!/bin/bash
#SBATCH --job-name="train.fine tune"
#SBATCH --output=/shared/runs/0b54c1/steps/fine=20tune/log
#SBATCH --open-mode=append
#SBATCH --chdir=/shared/runs/0b54c1/code
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=48
#SBATCH --mem=0
#SBATCH --gpus-per-node=4
#SBATCH --gres=nvme:1
#SBATCH --time=0-12:00:00
#SBATCH --partition=dc-gpu
#SBATCH --account=training2401
#SBATCH --qos=normal
#SBATCH --reservation=course
#SBATCH --constraint="a100&largedata"
#SBATCH --hint=nomultithread
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=END,FAIL
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --export=NONE
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --comment="zenml run 5e0f"
#SBATCH --licenses=a:1
#SBATCH --contiguous

umask 077
give_up() { echo "job script on $(hostname): $1" >&2; exit 1; }
[ -r /shared/runs/0b54c1/environment ] || give_up '/shared/runs/0b54c1/environment is not there: is the run'"'"'s folder on a file system that this node sees?'
source /shared/runs/0b54c1/environment
[ -r /shared/runs/0b54c1/steps/fine=20tune/environment ] || give_up '/shared/runs/0b54c1/steps/fine=20tune/environment is not there: is the run'"'"'s folder on a file system that this node sees?'
source /shared/runs/0b54c1/steps/fine=20tune/environment
if ! type module > /dev/null 2>&1; then
  for init in "${LMOD_PKG:-}/init/bash" "${MODULESHOME:-}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do
    if [ -r "$init" ]; then source "$init"; break; fi
  done
fi
type module > /dev/null 2>&1 || give_up "the settings ask for modules, but this node has no 'module': see /etc/profile.d, or remove them"
module load Stages/2025 || give_up 'cannot load the module Stages/2025'
module load CUDA/12 || give_up 'cannot load the module CUDA/12'
set -eo pipefail
trap 'give_up "line $LINENO failed with exit code $?"' ERR
eval 'source /shared/env/activate.sh'
eval 'ulimit -n 65536'
export NCCL_SOCKET_IFNAME=ib0
export NOTE='it'"'"'s $5; `really`'
set -u
unset SLURM_EXPORT_ENV  # srun passes the environment on
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun no longer takes it from the job
cd /shared/runs/0b54c1/code
export PYTHONPATH=/shared/runs/0b54c1/code PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
exec /shared/env/bin/python -m stacks.slurm.supervisor /shared/runs/0b54c1 'fine tune'
