#!/bin/bash
# container.sh COMMAND …: runs it in this step's container; what it may see of the host is all in here.
give_up() { echo "container on $(hostname): $1" >&2; exit 1; }
image='registry.example.org#hls/train:1'
runtime=(srun)
program=$(command -v "${runtime[0]}") || give_up "no ${runtime[0]} on the PATH, which is to run pyxis: add its module to 'modules', or say where it is with container.command"
while read -r _ _ name; do unset -f "$name"; done < <(declare -Fx)
for name in $(compgen -e); do case $name in SLURM_*|SLURMD_*|SRUN_*|HLS_*|ZENML_*|OMP_*|MKL_*|OPENBLAS_*|KMP_*|CUDA_*|NVIDIA_*|NCCL_*|GLOO_*|TORCH_*|PYTORCH_*|ACCELERATE_*|ROCR_*|HIP_*|GPU_DEVICE_ORDINAL|UCX_*|FI_*|HF_*|AWS_*|LANG|LC_*|TZ|TERM|http_proxy|https_proxy|no_proxy|HTTP_PROXY|HTTPS_PROXY|NO_PROXY|PATH|HOME|USER|LOGNAME|SHELL|XDG_RUNTIME_DIR|APPTAINER_*|SINGULARITY_*|ENROOT_*|CH_*|HLS_FOUNDRY_HOME|NOTE) ;; *) unset "$name" ;; esac; done
binds=()
seen() {
  for known in "${binds[@]}"; do case "$1/" in "${known%%:*}"/*) [ "${known%%:*}" != "${known#*:}" ] || return 0 ;; esac; done
  return 1
}
place() {  # as it is called and as it really is; one that is yet to be made by the folder that it will be in
  local there=$1; while [ ! -e "$there" ]; do there=$(dirname "$there"); done
  for there in "$there" "$(readlink -f "$there")"; do [ "$there" = / ] || seen "$there" || binds+=("$there:$there"); done
}
given() { [ -e "${1%%:*}" ] || give_up "${1%%:*} is not there to be bound: see container.binds"; binds+=("${1%%:*}:${1#*:}"); }
place /shared/home
place /shared/runs/0b54c1
place /shared/zenml
export PYTHONPATH=/shared/runs/0b54c1/code
export PYTHONNOUSERSITE=1
export PYTHONUNBUFFERED=1
export HLS_IMAGE='pyxis registry.example.org#hls/train:1 sha256:0000000000000000000000000000000000000000000000000000000000000000'
export HLS_INSIDE_PYTHON=/opt/foundry/bin/python
export HLS_INSIDE_HOME=/shared/runs/0b54c1/steps/fine_tune/home
export HLS_INSIDE_COMMANDS=/shared/runs/0b54c1/commands
export HLS_INSIDE_ZENML=0.98.0
export HLS_SRUN_OPTIONS HLS_TASK_COMMAND
mounts=$(IFS=,; echo "/tmp:/tmp,${binds[*]}")
own=$(compgen -e | grep -Ev '^(PATH|LANG|LC_.*|TERM)$' | paste -sd,)  # of these an image's own values do not win
options=("--container-image=$image" "--container-mounts=$mounts" --no-container-mount-home "--container-workdir=$PYTHONPATH")
options+=("--container-env=$own")
HLS_SRUN_OPTIONS=$(printf '%q ' "${options[@]}") HLS_TASK_COMMAND="$1 -m stacks.slurm.container_inside"
# The plugin is srun's: the step is a task of its own on the first node, beside which the step's own srun finds room.
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPU_BIND SLURM_DISTRIBUTION SLURM_HINT
exec "$program" "${runtime[@]:1}" --nodes=1 --ntasks=1 --overlap --nodelist="$SLURMD_NODENAME" --cpu-bind=none --export=ALL --input=none \
  "${options[@]}" "$@"

