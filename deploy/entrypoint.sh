#!/bin/sh
# Gives each of these variables the content of the file that NAME_FILE names: secrets are mounted, and stand in no
# configuration of a container. Then it becomes the command.
set -eu
for name in SERVE_TOKEN SLACK_BOT_TOKEN DAGSTER_POSTGRES_PASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY \
    AZURE_STORAGE_ACCOUNT_KEY MLFLOW_TRACKING_PASSWORD SMTP_URL; do
    eval "file=\${${name}_FILE:-}"
    [ -z "$file" ] || [ -c "$file" ] && continue # /dev/null: there is none
    [ -f "$file" ] && [ -r "$file" ] || { echo "${name}_FILE: $file cannot be read by user $(id -u)" >&2; exit 1; }
    content=$(cat "$file")
    [ -n "$content" ] || { echo "${name}_FILE: $file is empty" >&2; exit 1; }
    export "$name=$content"
done
[ -z "${TMPDIR:-}" ] || mkdir -p "$TMPDIR"
exec "$@"
