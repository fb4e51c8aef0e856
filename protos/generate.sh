#!/usr/bin/env bash
# Generates protos/gen from protos/waybill/v1 with the generators of requirements.txt.
# Usage: protos/generate.sh OUT_DIR   (a venv with the generators is made beside the project's own, once)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/gen}
venv=$here/../.venv-protos
stamp=$venv/.$(sha256sum "$here/requirements.txt" | cut -c1-16)
if [ ! -e "$stamp" ]; then
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  touch "$stamp"
fi
mkdir -p "$out"
common=$("$venv/bin/python" -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parent.parent)')
PATH=$venv/bin:$PATH "$venv/bin/python" -m grpc_tools.protoc \
  -I "$here" -I "$common" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out=only_async:"$out" \
  --descriptor_set_out="$out/waybill/v1/waybill.binpb" --include_imports --include_source_info \
  "$here"/waybill/v1/*.proto
for package in waybill waybill/v1; do
  : >"$out/$package/__init__.py"
  : >"$out/$package/py.typed"
done
