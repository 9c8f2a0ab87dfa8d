#!/usr/bin/env bash
# Install one half into a virtual environment, compile the kernels and check it.
# The Dockerfiles run this and nothing else, so that it can be tried without Docker:
#   infra/docker/install.sh mine SOURCE PREFIX [PYTHON]
set -euo pipefail

half=${1:?mine or train}
source=$(realpath "${2:?the checkout}")
prefix=${3:?where the environment goes}
python=${4:-python3}

case $half in
  # boto3: Ray's autoscaler starts AWS machines with it.
  mine) extras=mine,s3 more=(boto3) ;;
  train) extras=train,s3 more=() ;;
  *) echo "install.sh: mine or train, not '$half'" >&2; exit 2 ;;
esac

"$python" -m venv "$prefix"
pip=("$prefix/bin/pip" --no-cache-dir --disable-pip-version-check)
"${pip[@]}" install --quiet --constraint "$source/constraints.txt" "${source}[$extras]" "${more[@]}"

# mmcv-lite pulls in opencv-python, which overwrites the contrib build when it is installed last.
if ! "$prefix/bin/python" -m proposals.opencv; then
  "${pip[@]}" uninstall --quiet --yes opencv-python opencv-contrib-python
  "${pip[@]}" install --quiet --no-deps --constraint "$source/constraints.txt" opencv-contrib-python
  "$prefix/bin/python" -m proposals.opencv
fi

ALIGNDET_CACHE_DIR="$prefix/cache" "$prefix/bin/aligndet" warmup
# They are the building user's alone, and the container runs as another, who copies them.
chmod -R a+rX "$prefix/cache"
case $half in
  mine) "$prefix/bin/python" -c "import pipeline.job, ray, boto3" ;;
  train) "$prefix/bin/python" -c "import aligndet_train.training, torch" ;;
esac
