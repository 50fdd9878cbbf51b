#!/usr/bin/env bash
# Format, lint, types and tests, as continuous integration runs them.
#   bash scripts/test.sh             everything that takes minutes
#   bash scripts/test.sh --slow      the slow tests, and nothing else
#   bash scripts/test.sh ARGS...     arguments for pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment dev
export PATH="$PWD/.venv/bin:$PATH" WANDB_MODE=disabled HF_HUB_OFFLINE=1
if [ "${1:-}" = "--slow" ]; then
    shift
    exec python -m pytest -m "slow and not gpu and not network" "$@"
fi
ruff format --check .
ruff check .
mypy
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
# two halves at once, each with the parts of the other left out; the second is shown when the first is over
others=(tests/circuits tests/neurons tests/sae tests/attribution tests/test_cli.py)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
python -m pytest "${others[@]}" >"$log" 2>&1 &
second=$!
failed=0
python -m pytest "${others[@]/#/--ignore=}" || failed=$?
wait "$second" || failed=$?
cat "$log"
exit "$failed"
