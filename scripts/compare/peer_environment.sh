#!/usr/bin/env bash
# Makes an environment that has dictionary_learning beside all that .venv has; nothing in .venv changes.
# usage: bash scripts/compare/peer_environment.sh FOLDER
set -euo pipefail
folder="${1:?the folder for the environment}"
main="$(cd "$(dirname "$0")/../.." && pwd)"
borrowed="$("$main/.venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")"
"$main/.venv/bin/python" -m venv "$folder"
own="$("$folder/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")"
# addsitedir and not a bare path: it also reads the .pth file by which this project is installed
echo "import site; site.addsitedir('$borrowed')" > "$own/borrowed.pth"
# Without its dependencies (nnsight, transformers, umap, ...): its trainers import torch and einops only.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0 einops
