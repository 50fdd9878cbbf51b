# Sourced by the other scripts: makes .venv and installs the project, once for each state of pyproject.toml.
# usage: environment EXTRA...   (extras of pyproject.toml, such as dev)
environment() {
    local stamp=".venv/.installed-${*:-base}" wanted
    wanted="$(sha256sum pyproject.toml scripts/environment.sh)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    rm -f "$stamp" # a killed installation is repeated, not trusted
    local extras="${*:+[$(IFS=,; echo "$*")]}"
    if command -v uv >/dev/null; then
        [ -x .venv/bin/python ] || uv venv --quiet --python ">=3.11" .venv
        echo "installing into .venv with uv; the first time takes some minutes"
        uv pip install --quiet --python .venv/bin/python --editable ".$extras"
    else
        [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
        echo "installing into .venv with pip; the first time takes some minutes"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
    fi
    echo "$wanted" > "$stamp"
}
