# shellcheck shell=bash
# For tests/run and tests/lint: stages with their durations, and the tools that they share.

ROOT=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)
cd "$ROOT"
# sudo may have cut the path.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/go/bin

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

STAGES=() FAILED=()

# stage TITLE COMMAND...: runs it and says how long it took. A failure ends the script; with STAGES_GO_ON it is only
# remembered. Never to be called in an `if` or before `||`: there set -e would be off in the command, and a function would
# only be as good as its last line.
stage() {
  local title=$1 start=$SECONDS code
  shift
  printf '\n=== %s\n' "$title"
  set +e
  (
    set -e
    "$@"
  ) </dev/null
  code=$?
  set -e
  local line
  line=$(printf '%6d s  %s' $((SECONDS - start)) "$title")
  if ((code)); then
    line+="  FAILED"
    FAILED+=("$title")
  fi
  STAGES+=("$line")
  echo "$line"
  [[ -n ${STAGES_GO_ON:-} ]] || ((code == 0)) || exit "$code"
}

# The durations of all stages; the exit code tells whether one failed.
summary() {
  ((${#STAGES[@]})) || return 0
  printf '\n=== %s\n' "$1"
  printf '%s\n' "${STAGES[@]}"
  ((${#FAILED[@]} == 0))
}

# Helm, in the test cluster's version: built on its own where the cluster's programs are not there yet.
helm_program() (
  HERE=$ROOT/tests/cluster
  # shellcheck source=/dev/null
  source "$HERE/lib/common.sh"
  # shellcheck source=/dev/null
  source "$HERE/lib/build.sh"
  for entry in "${BINARIES[@]}"; do
    [[ $entry != *" helm "* ]] || BINARIES=("$entry")
  done
  ensure_binaries
  echo "${BIN[helm]}"
)
