#!/usr/bin/env bash
# The whole test suite in an environment of its own making. Options go on to pytest: launch/test.sh -k loss -x
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "[test]"
# NVMe offload is compiled against libaio; without it those tests skip and say so.
if [ ! -e /usr/include/libaio.h ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get update && apt-get install -y libaio-dev g++) >/dev/null 2>&1 || echo "libaio-dev could not be installed" >&2
fi
cd "$root"
exec "$python" -m pytest "$@"
