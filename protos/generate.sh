#!/usr/bin/env bash
# Generates the Python of protos/waybill/v1, and the descriptor image that buf reads.
# Usage: protos/generate.sh [OUT_DIR [IMAGE]]   default: protos/gen and build/waybill.binpb
# The generators are pinned in requirements.txt and live in a venv of their own, made once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/gen}
image=${2:-$here/../build/waybill.binpb}
venv=$here/../.venv-protos
stamp=$venv/.$(sha256sum "$here/requirements.txt" | cut -c1-16)
if [ ! -e "$stamp" ]; then
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  touch "$stamp"
fi
mkdir -p "$out" "$(dirname "$image")"
common=$("$venv/bin/python" -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parent.parent)')
PATH=$venv/bin:$PATH "$venv/bin/python" -m grpc_tools.protoc \
  -I "$here" -I "$common" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet,only_async:"$out" \
  --descriptor_set_out="$image" --include_imports --include_source_info \
  "$here"/waybill/v1/*.proto
for package in waybill waybill/v1; do
  : >"$out/$package/__init__.py"
  : >"$out/$package/py.typed"
done
