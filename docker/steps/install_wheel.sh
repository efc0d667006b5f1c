#!/usr/bin/env bash
# Install the wheel and its pinned dependencies into a virtual environment of their own.
# Arguments are handed to `pip install`.
set -euo pipefail

: "${WHEELS:=/build/wheels}"
: "${VENV:=/opt/headway}"
: "${CONSTRAINTS:=/build/constraints.txt}"

wheels=("$WHEELS"/headway-*.whl)
if [[ ${#wheels[@]} -ne 1 || ! -f ${wheels[0]} ]]; then
    echo "expected exactly one headway wheel in $WHEELS, found: ${wheels[*]}" >&2
    exit 1
fi

python3 -m venv "$VENV"
# -I: packages that the caller has on PYTHONPATH must not count as installed.
"$VENV/bin/python" -I -m pip install --no-cache-dir --constraint "$CONSTRAINTS" "$@" "${wheels[0]}"
cd /
"$VENV/bin/headway" version
