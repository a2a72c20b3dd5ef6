#!/usr/bin/env bash
# Measures the GPU or TPU of this machine in under ten minutes: one JSON file per measurement, with
# hardware and versions, in FOLDER (docs/benchmarks without one).
#
#     scripts/on_device.sh [FOLDER]
#
# The most important comes first: what no time is left for is named and left out. Installs nothing.
# CAE_JAX_REHEARSE=1 goes through the same commands on any device, with few images and epochs.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${1:-docs/benchmarks}
seconds=${CAE_JAX_SECONDS:-570}
mkdir -p "$out"

platform=$("$python" -c 'import jax; print(jax.default_backend())') || exit 1
device=$("$python" -c 'import jax; print(jax.devices()[0].device_kind.lower().replace(" ", "-").replace("/", "-"))')
small=() members=(1 8 64 512)
if [ -n "${CAE_JAX_REHEARSE:-}" ]; then
  small=(--train-examples 8192 --test-examples 500) members=(1 2)
elif [ "$platform" = cpu ]; then
  echo "on_device.sh: JAX finds no GPU or TPU; install the package of the device, or set CAE_JAX_REHEARSE=1" >&2
  exit 2
fi
failed=()

# Runs a command within the time that is left; $1 is its name.
try() {
  local name=$1 left=$((seconds - SECONDS))
  shift
  if [ "$left" -lt 10 ]; then failed+=("$name (no time left)"); return; fi
  echo "== $name, ${left}s left"
  timeout "$left" "$@" || failed+=("$name (exit code $?)")
}
benchmark() {
  local name=$1
  shift
  try "$name" "$python" -m cae_jax benchmark "${small[@]}" "$@" --json "$out/${device}_$name.json"
}
benchmark soap_matmul_128 --backend matmul --timed 4 --discard 1
benchmark adam_matmul_128 --backend matmul --timed 4 --discard 1 --optimizer adam
if [ "$platform" = gpu ]; then
  # Each step a graph, as XLA does by default; and no graph.
  default=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION
  for graphs in steps none; do
    flags="--xla_gpu_enable_command_buffer=$([ $graphs = steps ] && echo $default)"
    XLA_FLAGS="${XLA_FLAGS:-} $flags" benchmark "adam_matmul_128_graphs_$graphs" \
      --backend matmul --timed 4 --discard 1 --optimizer adam
    XLA_FLAGS="${XLA_FLAGS:-} $flags" benchmark "soap_matmul_128_graphs_$graphs" \
      --backend matmul --timed 4 --discard 1
  done
fi
benchmark adam_xla_128 --backend xla --timed 4 --discard 1 --optimizer adam
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
try "20 epochs" "$python" -m cae_jax train "${small[@]}" --workdir "$run/run"
cp "$run/run/result.json" "$out/${device}_20_epochs.json"
if [ -n "${CAE_JAX_REHEARSE:-}" ]; then target=1; else target=0.2894; fi
for optimizer in adam soap; do
  try "populations, $optimizer" "$python" -m benchmarks.population "${small[@]}" \
    --optimizer "$optimizer" --members "${members[@]}" --timed 2 --json "$out/${device}_populations_$optimizer.json"
done
benchmark time_to --time-to "$target" --seeds 3
XLA_PYTHON_CLIENT_PREALLOCATE=false try tests "$python" -m pytest -q -n 4 -p no:cacheprovider -p no:benchmark tests/ops/test_ops.py tests/models/test_models.py \
  tests/training/test_step.py tests/training/test_noise.py tests/training/test_soap.py tests/training/test_groups.py
for batch in 512 4096; do
  for backend in matmul xla; do
    benchmark "adam_${backend}_$batch" --backend "$backend" --timed 4 --discard 1 --optimizer adam \
      --batch-size "$batch"
  done
done

echo "$SECONDS seconds on $device; $out has the files"
for each in "${failed[@]}"; do echo "failed: $each" >&2; done
[ ${#failed[@]} -eq 0 ]
