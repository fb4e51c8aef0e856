#!/usr/bin/env bash
# Gets Jaeger for this machine, as build/jaeger/jaeger, from its Go module: `make jaeger`. Does nothing if it is there.
# Without a Go toolchain, or a way to Jaeger's modules, it says how to run the container instead, and fails with 3; a build
# that fails does with 1.
#
# go.mod names the program as a tool, which makes it buildable from here as it is: `go install` refuses a module with
# `replace` lines, and Jaeger's packages are internal, so that no program of ours could call them. Jaeger's modules are
# numbered as the last of v1 was; the program is v2. The module has no built pages: the query API is all there, and
# JAEGER_UI_ASSETS may name a folder with a built jaeger-ui. The container has them.
set -euo pipefail
readonly version=2.13.0 package=github.com/jaegertracing/jaeger
here=$(cd "$(dirname "$0")" && pwd)
readonly here folder=$here/../../build/jaeger
readonly binary=$folder/jaeger

without() {
  cat >&2 <<END
$1
With a container engine, from the project's folder:

  docker run --rm -p 127.0.0.1:16686:16686 -p 127.0.0.1:4317:4317 \\
    -v "\$PWD/deploy/jaeger:/waybill:ro" -e JAEGER_HOST=0.0.0.0 -e JAEGER_UI_CONFIG=/waybill/ui.json \\
    jaegertracing/jaeger:$version --config /waybill/jaeger.yaml --config /waybill/memory.yaml
END
  exit "${2:-1}"
}

mkdir -p "$folder"
if command -v flock >/dev/null; then # two at once: the second waits for the first's
  exec 9>"$folder/lock"
  flock 9
fi
if [[ $binary -nt $here/go.mod && $binary -nt $here/get.sh ]]; then
  echo "Jaeger $version is there: build/jaeger/jaeger" >&2
  exit
fi

PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || without "No Go toolchain is here to build Jaeger with." 3

echo "building Jaeger $version: some minutes the first time, then seconds" >&2
cd "$here"
go list -mod=readonly -deps $package/cmd/jaeger >/dev/null || without "Jaeger's modules cannot be fetched; see above." 3
# Written elsewhere first, so that an interrupted build is begun again.
CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$binary.new" \
  -ldflags "-s -w -X $package/internal/version.latestVersion=v$version" $package/cmd/jaeger ||
  without "Jaeger could not be built; see above."
mv "$binary.new" "$binary"
echo "Jaeger $version: build/jaeger/jaeger, with its query API but without its pages, which are not in the module" >&2
