#!/bin/bash
# Starts tritonserver as this process, with the operator's library and the fixes preloaded into it and not into its
# Python processes.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
server=${TRITONSERVER:-/opt/tritonserver/bin/tritonserver}
libtorch=${WIDEFIELD_LIBTORCH:-/opt/tritonserver/backends/pytorch}
library=${WIDEFIELD_PRELOAD:-$here/libwidefield.so}
fixes=${WIDEFIELD_FIXES:-$here/libwidefield_fixes.so}
checksums=${WIDEFIELD_CHECKSUMS:-$here/checksums.py}
models=${WIDEFIELD_MODELS:-/models}

for file in "$library" "$fixes" "$checksums" "$models"; do
  [[ -e $file ]] || { echo "serve.sh: $file does not exist: mount the model repository, or build the image anew" >&2; exit 1; }
done
python3 "$here/check_settings.py"
said=$(python3 "$checksums" "$models" 2>&1) || { echo "serve.sh: $said" >&2; exit 1; }  # a file is not what was built
labels=$(python3 "$(dirname "$checksums")/labels.py" "$models" 2>&1) || { echo "serve.sh: $labels" >&2; exit 1; }
[[ -z $said ]] || echo "serve.sh: warning: $said" >&2

# TLS is gRPC's alone: HTTP has none, and then answers in this container or pod only.
if [[ -n ${WIDEFIELD_TLS_CERT:-}${WIDEFIELD_TLS_KEY:-}${WIDEFIELD_TLS_CLIENT_CA:-} ]]; then
  WIDEFIELD_HTTP_HOST=${WIDEFIELD_HTTP_HOST:-127.0.0.1}
fi

# As server/guard.py: in KiB, as far as the hard limit goes.
stack=$(ulimit -S -s)
[[ $stack != unlimited && $stack -ge 65536 ]] || ulimit -S -s 65536 2>/dev/null || ulimit -S -s "$(ulimit -H -s)"

# The same as server/runtime.py sets; what the user has set stays.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_-2147483647}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-2147483647}
export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX-1}
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT-4000}
export LD_LIBRARY_PATH=$libtorch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# An interface whose token nobody has is closed.
token() {
  local given=${1//[$'\r\n']/}  # a secret that was made of a file ends with its line
  echo "${given:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}"
}
management="model-config,model-repository,trace,logging:widefield-management=$(token "${WIDEFIELD_MANAGEMENT_TOKEN:-}")"
memory="shared-memory:widefield-shared-memory=$(token "${WIDEFIELD_SHARED_MEMORY_TOKEN:-}")"
unset WIDEFIELD_MANAGEMENT_TOKEN WIDEFIELD_SHARED_MEMORY_TOKEN

# As server/endpoints.py: HTTP and metrics write IPv6 unlike gRPC.
host=${WIDEFIELD_HOST:-0.0.0.0} http=${WIDEFIELD_HTTP_HOST:-${WIDEFIELD_HOST:-0.0.0.0}}
grpc=$host metrics=$host
[[ $host != *:* ]] || grpc="[$host]" metrics=ipv6:$host
[[ $http != *:* ]] || http=ipv6:$http

options=(
  --model-repository="$models"
  --model-control-mode=none
  --disable-auto-complete-config
  --http-address="$http" --http-port="${WIDEFIELD_HTTP_PORT:-8000}"
  --http-restricted-api="$management" --http-restricted-api="$memory"
  --grpc-address="$grpc" --grpc-port="${WIDEFIELD_GRPC_PORT:-8001}"
  --grpc-restricted-protocol="$management" --grpc-restricted-protocol="$memory"
  --grpc-keepalive-time=60000 --grpc-keepalive-timeout=20000
  --grpc-keepalive-permit-without-calls=1 --grpc-http2-max-pings-without-data=0
  --grpc-max-connection-age=120000 --grpc-max-connection-age-grace=60000
  --metrics-address="$metrics" --metrics-port="${WIDEFIELD_METRICS_PORT:-8002}"
  --metrics-config=summary_latencies=true
  --exit-timeout-secs="${WIDEFIELD_DRAIN_SECONDS:-30}"
  --log-format=ISO8601
  --backend-config=python,shm-default-byte-size=8388608
  --backend-config=python,shm-growth-byte-size=8388608
)
if [[ -n ${WIDEFIELD_TLS_CERT:-} ]]; then
  kind=grpc-use-ssl
  if [[ -n ${WIDEFIELD_TLS_CLIENT_CA:-} ]]; then
    kind=grpc-use-ssl-mutual
    options+=(--grpc-root-cert="$WIDEFIELD_TLS_CLIENT_CA")
  fi
  options+=(--$kind=true --grpc-server-cert="$WIDEFIELD_TLS_CERT" --grpc-server-key="$WIDEFIELD_TLS_KEY")
fi
gpu=${WIDEFIELD_GPU:-$([[ -e /dev/nvidiactl ]] && echo true || echo false)}
[[ $gpu == true ]] || options+=(--allow-gpu-metrics=false --pinned-memory-pool-byte-size=0)

# bash starts the Python processes and reads unload.sh first.
LD_PRELOAD=$fixes:$library${LD_PRELOAD:+:$LD_PRELOAD} BASH_ENV=$here/unload.sh exec "$server" "${options[@]}" "$@"
