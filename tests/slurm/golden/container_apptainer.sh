#!/bin/bash
# container.sh COMMAND …: runs it in this step's container; what it may see of the host is all in here.
give_up() { echo "container on $(hostname): $1" >&2; exit 1; }
image=/shared/images/train.sif
[ -e "$image" ] || give_up "no image $image: put it on a file system that this node sees (container.image)"
[ -r "$image" ] || give_up "the image $image cannot be read by $(id -un): chmod a+r it, and a+x its folders"
[ "$(stat -Lc %s "$image")" = "700" ] || [ -d "$image" ] || give_up "the image $image is not the one of the submission any more: submit again"
case $(uname -m) in i386) arch=01 ;; x86_64) arch=02 ;; armv7l) arch=03 ;; aarch64) arch=04 ;; ppc64le) arch=06 ;; s390x) arch=10 ;; riscv64) arch=11 ;; *) arch="??" ;; esac
header=$([ -d "$image" ] || head -c 64 "$image" | tr -d "\0")
if [ -f "$image" ]; then case "$header" in
  *SIF_MAGIC01$arch*) ;;
  *SIF_MAGIC*) give_up "the image $image is for another architecture than this node ($(uname -m)): build it for that" ;;
  *) give_up "the image $image is no SIF file, or a damaged one: build or copy it again" ;;
esac; fi
runtime=(apptainer)
program=$(command -v "${runtime[0]}") || give_up "no ${runtime[0]} on the PATH, which is to run apptainer: add its module to 'modules', or say where it is with container.command"
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
given /data:/chips
export PYTHONPATH=/shared/runs/0b54c1/code
export PYTHONNOUSERSITE=1
export PYTHONUNBUFFERED=1
export HLS_IMAGE='apptainer /shared/images/train.sif sha256:0000000000000000000000000000000000000000000000000000000000000000'
export HLS_INSIDE_PYTHON=python
export HLS_INSIDE_HOME=/shared/runs/0b54c1/steps/fine_tune/home
export HLS_INSIDE_COMMANDS=/shared/runs/0b54c1/commands
export HLS_INSIDE_ZENML=0.98.0
shield=/shared/runs/0b54c1/steps/fine_tune/shield/$(hostname)
# Slurm may signal every process of a job; the one that serves the image's files has to outlive the others.
mkdir -p "$shield" && for name in squashfuse_ll squashfuse fuse2fs; do
  real=$(command -v "$name") || continue
  printf '#!/bin/bash\ntrap "" TERM USR1 INT\nexec %q "$@"\n' "$real" > "$shield/.$$"
  chmod 700 "$shield/.$$" && mv "$shield/.$$" "$shield/$name"
done
# Under these names they win over an image's own: its HLS_FOUNDRY_HOME, say.
for name in $(compgen -e); do case $name in
  PATH|HOME|SHELL|SHLVL|PWD|OLDPWD|_|XDG_*|APPTAINER*|SINGULARITY*) ;;
  *) export "APPTAINERENV_$name=${!name}" ;;
esac; done
export PATH="$shield:$PATH"
options=(); for bind in "${binds[@]}"; do options+=(--bind "$bind"); done
exec "$program" "${runtime[@]:1}" --quiet exec --no-home --no-mount cwd --nv \
  --pwd /shared/runs/0b54c1/code "${options[@]}" "$image" "$@"
