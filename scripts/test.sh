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
exec python -m pytest "$@"
