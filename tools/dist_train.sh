#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Learn a stream with several processes: tools/dist_train.sh CONFIG GPUS [...]
#
# GPUS is the number of processes on this machine; without a GPU they train
# on CPU cores. What follows goes to tools/train.py. For several machines run
# it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -eu

if [ $# -lt 2 ]; then
  echo 'usage: tools/dist_train.sh CONFIG GPUS [options of train.py]' >&2
  exit 2
fi
config=$1
processes=$2
shift 2

if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
  # a free port of this machine
  meeting=(--standalone)
else
  meeting=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
fi

root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run "${meeting[@]}" \
  --nproc_per_node="$processes" "$root/tools/train.py" "$config" \
  --launcher pytorch "$@"
