#!/usr/bin/env bash
# Create the user that the server runs as, and the folders that are its own.
set -euo pipefail

: "${ROOT:=/}"                          # the system to change
root=${ROOT%/}

groupadd --prefix "$ROOT" --gid 10001 headway
useradd --prefix "$ROOT" --key UID_MAX=10001 --uid 10001 --gid 10001 --no-create-home --home-dir /home/headway \
    --shell /usr/sbin/nologin headway
install --directory --owner 10001 --group 10001 --mode 0755 \
    "$root/home/headway" "$root/models" "$root/cache"
install --directory --mode 0755 "$root/etc/headway"
