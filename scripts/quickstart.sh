#!/usr/bin/env bash
# From nothing to a report on five models at four levels: no dataset, no account, no network after installation.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment
export HF_HUB_OFFLINE=1 WANDB_MODE=disabled
python=.venv/bin/python
exec "$python" -m impact_lightning impact --config configs/quickstart.yaml --out runs/quickstart
