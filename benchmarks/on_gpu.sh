#!/bin/bash
# What only a GPU can tell, in at most 8 minutes of an H100, most important first.
#
#     bash benchmarks/on_gpu.sh OUT
#
# Each part writes OUT/NAME.txt as it goes, and OUT/NAME.json at its end, the first two as they go too;
# OUT/summary.txt has a line for each. A part that fails or takes too long does not end the others. It exits with 1 if one
# failed, and with 2 if there is no GPU. Needs PyTorch for the comparison with it.
set -u
out=${1:?expected a folder for the results, as in: bash benchmarks/on_gpu.sh OUT}
python=${PYTHON:-python3}
here=$(dirname "$0")
mkdir -p "$out" || exit 2
export PYTHONUNBUFFERED=1
failed=0

backend=$("$python" -c 'import jax; print(jax.default_backend(), jax.devices()[0].device_kind)' 2>"$out/start.txt")
case $backend in
gpu*) echo "$backend" | tee "$out/summary.txt" ;;
*)
    echo "error: JAX runs on '$backend'; expected a GPU ($out/start.txt has what it says)" >&2
    exit 2
    ;;
esac

part() { # NAME SECONDS PROGRAM ARGUMENTS...
    local name=$1 limit=$2 program=$3 start=$SECONDS status
    shift 3
    timeout -k 5 "$limit" "$python" "$here/$program" "$@" --json "$out/$name.json" >"$out/$name.txt" 2>&1
    status=$?
    echo "$name: exit $status after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    ((status == 0)) || failed=1
}

part operations 90 device_parity.py --skip network
part network 120 device_parity.py --skip operations --size 64x64
part forward 90 against_torch.py --modes eager compiled --kernels xla pallas --dtypes bfloat16 --runs 20
part step 120 train_step.py --presets drsformer --crops 128 --batches 4 --dtypes bfloat16 --remat yes \
    --kernels xla pallas --runs 10
part times 60 ops.py --without-plain --dtype bfloat16
exit $failed
