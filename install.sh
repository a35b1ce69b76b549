#!/usr/bin/env bash
# Installs SAN into the active Python environment. Repeating it is harmless.
#
#   ./install.sh              everything to train, evaluate and predict
#   ./install.sh --demo       the same, and the page in the browser (Gradio)
#   ./install.sh --dev        all of it, and what the tests and checks need
#   ./install.sh --dry-run    only print what would be run
#
# Environment: PYTHON=<interpreter> chooses one; SAN_DETECTRON2=skip leaves Detectron2 out.
# Where no environment is active and the Python is externally managed (PEP 668) or not writable, it makes .venv here
# and says so; `make` then uses it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

DETECTRON2_URL=https://github.com/facebookresearch/detectron2
DETECTRON2_COMMIT=02b5c4e295e990042a714712c21dc79b731e8833

extras="train" dry_run=""
for option in "$@"; do
    case "$option" in
        --demo) if [ "$extras" = train ]; then extras=train,demo; fi ;;
        --dev) extras=dev ;;
        --dry-run) dry_run=1 ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' install.sh; exit 0 ;;
        *) echo "install.sh: unknown option '$option'; known: --demo, --dev, --dry-run, --help" >&2; exit 2 ;;
    esac
done

say() { echo "[san] $*"; }
die() { echo "[san] error: $*" >&2; exit 1; }
run() { if [ -n "$dry_run" ]; then echo "+ $*"; else "$@"; fi; }

# within SECONDS COMMAND...: stop the command and what it started when the time is over (macOS has no timeout(1))
within() {
    "$python" -c '
import os, signal, subprocess, sys
process = subprocess.Popen(sys.argv[2:], start_new_session=True, stdin=subprocess.DEVNULL)
try:
    sys.exit(process.wait(float(sys.argv[1])))
except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    sys.exit(124)
' "$@"
}

# --- which Python ----------------------------------------------------------------------------------------------------
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
elif command -v python3 >/dev/null; then
    python=python3
else
    python=python
fi
command -v "$python" >/dev/null || die "no Python found as '$python'; install Python 3.10 to 3.13, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" -V) is too old; SAN needs Python 3.10 to 3.13: PYTHON=python3.12 ./install.sh"
"$python" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' ||
    say "note: $("$python" -V) is newer than the tested 3.10 to 3.13"

reason=$("$python" -c '
import os, sys, sysconfig
in_environment = sys.prefix != sys.base_prefix or os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
if not in_environment:
    if os.path.exists(marker):
        print("externally managed (PEP 668)")
    elif not os.access(sysconfig.get_path("purelib"), os.W_OK):
        print("not writable")
')
if [ -n "$reason" ]; then
    say "$("$python" -V) at $(command -v "$python") is $reason: making .venv"
    if ! run "$python" -m venv .venv; then
        rm -rf .venv
        run "$python" -m virtualenv .venv || die "cannot make .venv; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    if [ -z "$dry_run" ]; then python=.venv/bin/python; fi
fi
say "installing into $("$python" -c 'import sys; print(sys.prefix)') ($("$python" -V))"

# --- what the package index carries ----------------------------------------------------------------------------------
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
"$python" -m pip --version >/dev/null 2>&1 || run "$python" -m ensurepip --upgrade ||
    die "this Python has no pip; install it (Debian and Ubuntu: apt-get install python3-pip)"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
echo "iopath<0.1.10" >"$constraints" # Detectron2 wants it
# A torch that is there stays as it is (its CUDA build may have been chosen with care).
"$python" - >>"$constraints" <<'PYTHON'
from importlib import metadata

try:
    versions = {name: metadata.version(name).split("+")[0] for name in ("torch", "torchvision")}
except metadata.PackageNotFoundError:
    versions = {}  # one without the other leaves both to the package index
if versions and tuple(int(part) for part in versions["torch"].split(".")[:2]) >= (2, 6):
    for name, version in versions.items():
        print(f"{name}=={version}")
PYTHON
run "$python" -m pip install --constraint "$constraints" --editable ".[$extras]"

# --- Detectron2, where it can be had ---------------------------------------------------------------------------------
stand_in="the stand-in serves, nothing else is needed"

install_detectron2() {
    export GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=30
    if [ "${SAN_DETECTRON2:-}" = skip ]; then
        say "Detectron2 left out as asked: $stand_in"
    elif "$python" -c 'import detectron2' >/dev/null 2>&1; then
        say "Detectron2 $("$python" -c 'import detectron2; print(detectron2.__version__)') is already there"
    elif ! command -v git >/dev/null || ! command -v "${CXX:-c++}" >/dev/null; then
        say "Detectron2 needs git and a C++ compiler, which are not here: $stand_in"
    elif [ -n "$dry_run" ]; then
        echo "+ $python -m pip install --no-build-isolation git+$DETECTRON2_URL@$DETECTRON2_COMMIT"
    elif ! within 20 git ls-remote --quiet --exit-code "$DETECTRON2_URL" HEAD >/dev/null 2>&1; then
        say "Detectron2's repository cannot be reached from here: $stand_in"
    else
        build_detectron2
    fi
}

# Without a visible GPU only the C++ part is built: no CUDA toolkit is needed, and SAN uses no compiled operator.
build_detectron2() {
    local log="${TMPDIR:-/tmp}/san-detectron2-$$.log"
    say "building Detectron2 (some minutes; log in $log)"
    if "$python" -m pip install --constraint "$constraints" setuptools wheel ninja >"$log" 2>&1 &&
        CUDA_VISIBLE_DEVICES="" within 1800 "$python" -m pip install --constraint "$constraints" --no-build-isolation \
            "git+$DETECTRON2_URL@$DETECTRON2_COMMIT" >>"$log" 2>&1 &&
        "$python" -c 'import detectron2' >>"$log" 2>&1; then
        say "Detectron2 is built"
    else
        say "Detectron2 could not be built (log: $log): $stand_in"
    fi
}

install_detectron2

# --- done ------------------------------------------------------------------------------------------------------------
if [ -z "$dry_run" ]; then
    version=$("$python" -c 'import san; print(san.__version__)') || die "the installed package does not import"
    say "SAN $version is ready in $("$python" -c 'import sys; print(sys.prefix)')"
    if [ "$python" = .venv/bin/python ]; then say "to use it yourself: source .venv/bin/activate"; fi
fi
