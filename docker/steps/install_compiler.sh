#!/usr/bin/env bash
# A C compiler: Triton builds the launcher of each GPU kernel at run time.
# Arguments are handed to `apt-get install`.
set -euo pipefail

: "${APT_LISTS:=/var/lib/apt/lists}"

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends "$@" gcc libc6-dev
rm -rf "${APT_LISTS:?}"/*
