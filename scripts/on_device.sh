#!/usr/bin/env bash
# Measures the GPU or TPU of this machine in under ten minutes: one JSON file per measurement, with
# hardware and versions, in FOLDER (docs/benchmarks without one).
#
#     scripts/on_device.sh [FOLDER]
#
# The most important comes first: what no time is left for is named and left out. Installs nothing.
# CAE_JAX_SECONDS=570 is all the time that it takes. CAE_JAX_REHEARSE=1 goes through the same
# commands on any device, with few images and epochs.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=${1:-docs/benchmarks}
seconds=${CAE_JAX_SECONDS:-570}
mkdir -p "$out"

platform=$("$python" -c 'import jax; print(jax.default_backend())') || exit 1
device=$("$python" -c 'import jax; print(jax.devices()[0].device_kind.lower().replace(" ", "-").replace("/", "-"))')
images=60000 timed=4 members=(64 512) peers=(torch torch-compiled flax) target=0.2894
sizes=("64 64 3" "128 128 3") batches=(128 512 4096) of_sizes=6000 epochs=20 precisions=(float32 tf32 bf16)
small=()
own=matmul
[ "$platform" = gpu ] && own=cuda
if [ -n "${CAE_JAX_REHEARSE:-}" ]; then
  images=300 timed=1 members=(1 2) peers=(flax) target=1 sizes=("12 12 3") batches=(128) of_sizes=200 epochs=1
  precisions=(float32 bf16)
  small=(--train-examples "$images" --test-examples 100)
elif [ "$platform" = cpu ]; then
  echo "on_device.sh: JAX finds no GPU or TPU; install the package of the device, or set CAE_JAX_REHEARSE=1" >&2
  exit 2
fi
failed=()

# Runs a command within the time that is left, and at most two minutes; $1 is its name.
try() {
  local name=$1 left=$((seconds - SECONDS))
  shift
  if [ "$left" -lt 10 ]; then failed+=("$name (no time left)"); return; fi
  echo "== $name, ${left}s left"
  timeout $((left < 120 ? left : 120)) "$@" || failed+=("$name (exit code $?)")
}
measure() {
  local name=$1
  shift
  try "$name" "$python" -m benchmarks.on_device "$@" --timed "$timed" --json "$out/${device}_$name.json"
}
backends=(--backends "$own" matmul) all=(--backends "$own" matmul xla)
[ "$own" = matmul ] && backends=(--backends matmul xla) all=("${backends[@]}")

# 1. The kernels next to matmul.
measure numbers numbers "${backends[@]}" --examples "$images"
measure epochs epochs "${backends[@]}" --batch-sizes "${batches[@]}" --examples "$images"
# 2. The peers.
for batch in 128 4096; do
  [ "$batch" -le "$images" ] &&
    measure "peers_$batch" peers "${backends[@]}" --frameworks "${peers[@]}" --batch-sizes "$batch" --examples "$images"
done
# 3. The command.
measure command command "${backends[@]}" --examples "$images" --epochs "$epochs"
try "time to a loss" "$python" -m cae_jax benchmark "${small[@]}" --backend "$own" --time-to "$target" --seeds 3 \
  --json "$out/${device}_time_to.json"
# 4. Other networks.
for size in "${sizes[@]}"; do
  # shellcheck disable=SC2086
  measure "epochs_${size// /x}" epochs "${all[@]}" --shape $size --optimizers adam --examples "$of_sizes" \
    --precisions "${precisions[@]}"
done
measure epochs_wide epochs "${all[@]}" --config wide --optimizers adam --examples "$images" --precisions float32 bf16
# 5. Populations, the tests on the device, a profile.
for optimizer in adam soap; do
  for backend in "$own" matmul; do
    try "populations, $optimizer, $backend" "$python" -m benchmarks.population "${small[@]}" --backend "$backend" \
      --optimizer "$optimizer" --members "${members[@]}" --timed 2 --json "$out/${device}_populations_${optimizer}_$backend.json"
    [ "$own" = matmul ] && break
  done
done
XLA_PYTHON_CLIENT_PREALLOCATE=false try tests "$python" -m pytest -q -n 4 -p no:cacheprovider -p no:benchmark tests/ops/test_ops.py tests/models/test_models.py \
  tests/training/test_step.py tests/training/test_noise.py tests/training/test_soap.py tests/training/test_groups.py
try profile "$python" -m benchmarks.on_device profile "${backends[@]}" --examples "$images" --trace "$out/${device}_profile"
# 6. The threads of its CPU.
measure threads threads --examples "$images"

echo "$SECONDS seconds on $device; $out has the files"
for each in "${failed[@]}"; do echo "failed: $each" >&2; done
[ ${#failed[@]} -eq 0 ]
