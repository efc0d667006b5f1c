#!/usr/bin/env bash
# Build Headway's wheel. Arguments are handed to `pip wheel`.
set -euo pipefail

: "${SOURCE:=/build/source}"            # pyproject.toml, README.md, LICENSE, .src/, server/, engine/, kernels/
: "${WHEELS:=/build/wheels}"            # where the wheel goes
: "${CONSTRAINTS:=/build/constraints.txt}"

# Both variables: pip before 25.3 hands PIP_CONSTRAINT to the isolated build, later ones PIP_BUILD_CONSTRAINT.
export PIP_CONSTRAINT="$CONSTRAINTS" PIP_BUILD_CONSTRAINT="$CONSTRAINTS"
# A dot, never a name: pip would look a bare name up in the index.
cd "$SOURCE"
python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir "$WHEELS" "$@" .
