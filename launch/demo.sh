#!/usr/bin/env bash
# The main job on a bare machine: one small model pretrained under ZeRO-0, 1, 2, 3 and ZeRO-2 with CPU offload, each on
# two CPU ranks, then one table. Options go on to the runs: launch/demo.sh --budget 60s
# With --all first: every JSON of ds_configs/ on the same samples, and whether each trains what native PyTorch trains.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment ""
cd "$root"
export DS_ACCELERATOR=cpu
configs=(
    ds_configs/zero0.json ds_configs/zero1.json ds_configs/zero2.json ds_configs/zero3.json ds_configs/zero2_offload.json
)
batch=(--per_device_train_batch_size 2)
if [ "${1:-}" = --all ]; then
    shift
    configs=(ds_configs/*.json)
    batch+=(--train_batch_size 8 --check_parity --bf16 false --fp16 false)
fi
case " $*" in
    *" --budget"* | *" --max_steps"* | *" --num_train_epochs"*) length=() ;;
    *) length=(--max_steps 40) ;;
esac
exec "$python" -m lm_scale.compare \
    "${configs[@]}" --world_size 2 --model mini --seq_len 256 "${batch[@]}" "${length[@]}" \
    --run_name "demo-$(date +%Y%m%d-%H%M%S)" "$@"
