#!/bin/sh
# Makes the secrets of compose.yaml, once: what is there is kept. The folder is closed to others; the files in it must be
# readable by the users of the containers, into which each is mounted by itself.
set -eu
cd "$(dirname "$0")"
mkdir -p -m 700 secrets
for name in postgres_password store_password serve_token; do
    [ -s "secrets/$name" ] && continue
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "secrets/.$name"
    [ -s "secrets/.$name" ] || { echo "deploy/secrets/$name could not be made" >&2; exit 1; }
    chmod 644 "secrets/.$name"
    mv "secrets/.$name" "secrets/$name"
    echo "made deploy/secrets/$name"
done
