#!/bin/sh
# Start MLflow's server behind its basic-auth app. Secrets are read from files named by *_FILE and
# never stand on a command line, which every user of the machine can read. Settings:
#   POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER, POSTGRES_DB   where runs and users are kept
#   ARTIFACTS            s3://bucket/prefix or a folder
#   MLFLOW_HOST, MLFLOW_PORT, MLFLOW_WORKERS                   127.0.0.1, 5000, 2
set -eu
umask 077
postgres_password=$(cat "$POSTGRES_PASSWORD_FILE")
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$ADMIN_PASSWORD_FILE")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$FLASK_SECRET_KEY_FILE")
for secret in "$postgres_password" "$MLFLOW_AUTH_ADMIN_PASSWORD" "$MLFLOW_FLASK_SERVER_SECRET_KEY"; do
  if [ "${#secret}" -lt 12 ]; then echo "a secret is shorter than 12 characters" >&2; exit 2; fi
done
host=${POSTGRES_HOST:-127.0.0.1} port=${POSTGRES_PORT:-5432}
user=${POSTGRES_USER:-mlflow} database=${POSTGRES_DB:-mlflow}
# libpq reads the password from this file, so that no URI holds it.
settings=$(mktemp -d)
export PGPASSFILE="$settings/pgpass" MLFLOW_AUTH_CONFIG_PATH="$settings/basic_auth.ini"
printf '%s:%s:%s:%s:%s\n' "$host" "$port" "$database" "$user" "$postgres_password" >"$PGPASSFILE"
uri="postgresql+psycopg://$user@$host:$port/$database"
# A user sees and changes nothing of others' experiments until an admin lets them.
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $uri
admin_username = ${ADMIN_USERNAME:-admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_BACKEND_STORE_URI="$uri"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --app-name basic-auth --host "${MLFLOW_HOST:-127.0.0.1}" \
  --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" \
  --artifacts-destination "$ARTIFACTS"
