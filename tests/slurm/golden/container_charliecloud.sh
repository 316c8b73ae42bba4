#!/bin/bash
# container.sh COMMAND …: runs it in this step's container; what it may see of the host is all in here.
give_up() { echo "container on $(hostname): $1" >&2; exit 1; }
image=/shared/images/train.sqfs
[ -e "$image" ] || give_up "no image $image: put it on a file system that this node sees (container.image)"
[ -r "$image" ] || give_up "the image $image cannot be read by $(id -un): chmod a+r it, and a+x its folders"
runtime=(ch-run)
program=$(command -v "${runtime[0]}") || give_up "no ${runtime[0]} on the PATH, which is to run charliecloud: add its module to 'modules', or say where it is with container.command"
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
export HLS_IMAGE='charliecloud /shared/images/train.sqfs sha256:0000000000000000000000000000000000000000000000000000000000000000'
export HLS_INSIDE_PYTHON=python
export HLS_INSIDE_HOME=/shared/runs/0b54c1/steps/fine_tune/home
export HLS_INSIDE_COMMANDS=/shared/runs/0b54c1/commands
export HLS_INSIDE_ZENML=0.98.0
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin USER=${USER:-$(id -un)}
# It cannot make mount points in an image that is read only: whatever empty folder of the image leads to a place is bound instead.
look='for p; do q=$p; while [ ! -d "$q" ]; do q=$(dirname "$q"); done; [ "$q" = "$p" ] || [ -z "$(ls -A "$q")" ] || q=/; echo "$q"; done
[ ! -e /ch/environment ] || echo environment'
wanted=(); for bind in "${binds[@]}"; do case "${bind#*:}" in /tmp|/tmp/*) ;; *) wanted+=("$bind") ;; esac; done
said=$("$program" "${runtime[@]:1}" "$image" -- /bin/sh -c "$look" sh "${wanted[@]#*:}" 2>&1) \
  || give_up "ch-run cannot run the image $image here: ${said##*$'\n'}"
mapfile -t found <<< "$said"
options=()
for number in "${!wanted[@]}"; do
  from=${wanted[number]%%:*} to=${wanted[number]#*:} point=${found[number]}
  [ "$point" != / ] || give_up "the image $image has no folder $to to bind $from at: mkdir -p it in the image's folder (before ch-convert)"
  [ "$point" = "$to" ] || { [ "$from" = "$to" ] && from=$point to=$point; } \
    || give_up "the image $image has no folder $to to bind $from at: mkdir -p it in the image's folder (before ch-convert)"
  case " ${options[*]} " in *" --bind=$from:$to "*) ;; *) options+=("--bind=$from:$to") ;; esac
done
own() {  # the variables that an image's own must not replace, in a file and so on no command line
  for name in $(compgen -e); do case "$name${!name}" in PATH*|*$'
'*) ;; *) printf "%s='%s'
" "$name" "${!name}" ;; esac; done
}
unset TMPDIR
[ "${found[-1]}" != environment ] || { exec {variables}< <(own); options+=(--set-env --env-no-expand "--set-env=/dev/fd/$variables"); }
exec "$program" "${runtime[@]:1}" --cd=/shared/runs/0b54c1/code "${options[@]}" "$image" -- "$@"
