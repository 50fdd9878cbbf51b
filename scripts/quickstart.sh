#!/usr/bin/env bash
# From nothing to a trained and tested vision transformer: no dataset, no account, no network after installation.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment
export HF_HUB_OFFLINE=1 WANDB_MODE=disabled
python=.venv/bin/python
"$python" -m impact_lightning fit --config configs/rooms.yaml --dir runs/quickstart --ckpt_path last
"$python" -m impact_lightning test --config configs/rooms.yaml --dir runs/quickstart --ckpt_path best
echo "the numbers and how they were made: runs/quickstart/results.json"
