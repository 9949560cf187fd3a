# Sourced by demo.sh and test.sh: one virtual environment with exactly the tested versions, made once.
#   prepare_environment EXTRAS     EXTRAS such as "" or "[test,dev]"; leaves $python
# LM_SCALE_VENV names another place than .venv, PYTHON another interpreter than python3.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

prepare_environment() {
    local extras=$1 venv=${LM_SCALE_VENV:-$root/.venv} base=${PYTHON:-python3} wanted log
    python=$venv/bin/python
    log=$venv/install.log
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: $base: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
    wanted=$(cat "$root/setup.cfg" "$root/launch/constraints.txt" | cksum)" $extras $root"
    if grep -qxF "$wanted" "$venv/installed" 2>/dev/null; then
        return
    fi
    echo "making $venv (once, a few minutes; details in $log) ..." >&2
    if ! "$base" -m venv "$venv"; then
        echo "error: $base -m venv failed; on Debian and Ubuntu install python3-venv" >&2
        exit 2
    fi
    local begin=$SECONDS
    "$python" -m pip install --no-input -c "$root/launch/constraints.txt" -e "$root$extras" >"$log" 2>&1 &
    local installer=$!
    trap 'kill $installer 2>/dev/null; exit 130' INT TERM
    while kill -0 $installer 2>/dev/null; do
        sleep 1
        if [ $(((SECONDS - begin) % 10)) -eq 0 ]; then
            echo "  $((SECONDS - begin)) s: $(grep -oE '^(Collecting|Downloading|Installing|Building|Preparing)[^(]*' "$log" | tail -n 1 | cut -c 1-90)" >&2
        fi
    done
    trap - INT TERM
    if ! wait $installer; then
        tail -n 15 "$log" >&2
        echo "error: the installation failed; see $log" >&2
        exit 1
    fi
    echo "$wanted" >>"$venv/installed"
    echo "installed in $((SECONDS - begin)) s" >&2
}
