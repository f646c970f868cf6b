#!/usr/bin/env bash
# The tests marked `gpu`, then the benchmarks that use a GPU, with the Python given as $PYTHON (default python3).
# The last lines of each benchmark are JSON; results go to the folder $OUT (default benchmarks/results/gpu).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu}
mkdir -p "$OUT"
"$PYTHON" -m pytest -m gpu -p no:cacheprovider 2>&1 | tee "$OUT/tests.txt"
"$PYTHON" -m benchmarks.env_throughput --device cuda 2>&1 | tee "$OUT/env_throughput.txt"
"$PYTHON" -m benchmarks.evaluate --device cuda 2>&1 | tee "$OUT/evaluate.txt"
