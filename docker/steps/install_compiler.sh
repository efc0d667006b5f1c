#!/usr/bin/env bash
# A C compiler: Triton builds the launcher of each GPU kernel at run time.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends gcc libc6-dev
rm -rf /var/lib/apt/lists/*
