#!/bin/sh
# Serve a release from a container: `tiercel serve`, open to the container's network, with Triton's log on standard
# output and latencies in quantiles. `tiercel serve` compares checksums, waits for a first answer, and ends with 1 when
# Triton, or a part of it, no longer answers: then the container's restart policy starts it again.
#
#   entrypoint.sh RELEASE [options of `tiercel serve`] [-- flags of tritonserver]
set -eu
release=$1
shift

# A release for TensorRT leaves its plans to the GPU that will run them: they are built and verified before Triton starts,
# kept by GPU and version for the next start, and the release itself stays as it is.
if grep -q '"target": *"tensorrt"' "$release/manifest.json" 2>/dev/null; then
  cache=${XDG_CACHE_HOME:-/var/cache}/tiercel
  rm -rf "$cache/release"
  tiercel build-engines "$release" --to "$cache/release" --cache "$cache/plans"
  release=$cache/release
fi

# Triton's own words go to a file, in which `tiercel serve` looks for the reason when a start fails.
log=$(mktemp -d)/triton.log
: >"$log"
tail --pid=$$ -n +1 -f "$log" &

# Ours stand behind the caller's flags for tritonserver, if there are any.
separator=--
for argument; do
  if [ "$argument" = -- ]; then separator=; fi
done

# The last of two equal options counts, so the caller can say otherwise.
# shellcheck disable=SC2086 # an empty separator is no argument
exec tiercel serve "$release" --host 0.0.0.0 --log "$log" "$@" $separator --metrics-config=summary_latencies=true
