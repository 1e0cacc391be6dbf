#!/usr/bin/env bash
# Runs every SQL example of README.md, in order, in the database given by the environment.
# /models stands for the folder of the bundled model.
set -eu
cd "$(dirname "$0")/.."
createdb readme
awk '/^```sql/ {on = 1; next} /^```/ {on = 0} on' README.md | sed "s|/models/|$OPENLORA_DEMO/|g" |
	psql -X -a -d readme -v ON_ERROR_STOP=1
