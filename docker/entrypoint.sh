#!/bin/sh
# Start Triton on the release of this image. docs/operations.md says what each flag is for.
set -eu

# Without a key the administrative interfaces would be open.
: "${TIERCEL_ADMIN_KEY:?set it to a long random string}"
admin="shared-memory,model-repository,trace,logging:tiercel=$TIERCEL_ADMIN_KEY"

exec tritonserver \
  --model-repository=/release/triton \
  --model-control-mode=none \
  --exit-on-error=true \
  --strict-readiness=true \
  --disable-auto-complete-config \
  --exit-timeout-secs=20 \
  --log-format=ISO8601 \
  --http-restricted-api="$admin" \
  --grpc-restricted-protocol="$admin" \
  "$@"
