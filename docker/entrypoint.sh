#!/bin/sh
# Serve a release from a container with `tiercel serve`, open to the container's network, with Triton's log on standard
# output and latency metrics as quantiles. `tiercel serve` compares checksums and waits for a first answer. It exits with
# 1 when Triton, or a part of it, no longer answers, so that the container's restart policy starts it again.
#
#   entrypoint.sh RELEASE [options of `tiercel serve`] [-- flags of tritonserver]
set -eu
release=$1
shift

# A release for TensorRT holds no plans, since they must be built on the GPU that runs them. They are built and verified
# before Triton starts, and cached by GPU and version for the next start. The release itself stays unchanged.
if grep -q '"target": *"tensorrt"' "$release/manifest.json" 2>/dev/null; then
  cache=${XDG_CACHE_HOME:-/var/cache}/tiercel
  rm -rf "$cache/release"
  tiercel build-engines "$release" --to "$cache/release" --cache "$cache/plans"
  release=$cache/release
fi

# Triton's log goes to a file, in which `tiercel serve` looks for the reason when a start fails.
log=$(mktemp -d)/triton.log
: >"$log"
tail --pid=$$ -n +1 -f "$log" &

# Append our flag for tritonserver to the caller's, if there are any after `--`.
separator=--
for argument; do
  if [ "$argument" = -- ]; then separator=; fi
done

# If an option is given twice, the last one counts, so callers can override ours.
# shellcheck disable=SC2086 # an empty separator is no argument
exec tiercel serve "$release" --host 0.0.0.0 --log "$log" "$@" $separator --metrics-config=summary_latencies=true
