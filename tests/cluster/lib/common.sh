# shellcheck shell=bash
# What every part needs: words to the user, locks, processes that can be told apart from later ones with the same pid.

CACHE=${REVEILLE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/reveille}
STATE_ROOT=${REVEILLE_CLUSTER_STATE:-/var/lib/reveille/clusters}
LOCK_DIR=/run/lock/reveille

say() { printf '%s\n' "$*" >&2; }
die() {
  [[ -z ${IN_STEP:-} ]] || echo >&2
  printf 'cluster: %s\n' "$*" >&2
  exit 1
}

need_root() {
  [[ $EUID -eq 0 ]] || die "'cluster $1' makes network namespaces and mounts, so it must run as root: sudo $0 $*"
}

# Seconds since $1 (a value of $EPOCHREALTIME), with one decimal.
seconds_since() {
  local now=$EPOCHREALTIME
  # 10# because the digits behind the point may start with a zero.
  local us=$(((${now%[.,]*} - ${1%[.,]*}) * 1000000 + 10#${now#*[.,]} - 10#${1#*[.,]}))
  printf '%d.%d' $((us / 1000000)) $((us / 100000 % 10))
}

# step TITLE COMMAND...: runs it and writes one line with the seconds it took.
# The command runs in this shell (not in an `if`, which would switch set -e off inside it).
step() {
  local title=$1 start=$EPOCHREALTIME
  shift
  printf '%-42s' "$title" >&2
  IN_STEP=yes
  "$@"
  IN_STEP=
  printf ' %6s s\n' "$(seconds_since "$start")" >&2
}

# wait_for SECONDS TEXT COMMAND...: polls until the command succeeds.
wait_for() {
  local limit=$1 text=$2 end dead last=$SECONDS
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null; do
    ((SECONDS < end)) || die "waited $limit s in vain for $text; logs: $S/log"
    # While a cluster comes up, a component that has ended will not come back: no need to wait for it.
    if [[ -n ${COMING_UP:-} ]] && ((SECONDS > last)); then
      last=$SECONDS
      if dead=$(dead_component); then
        tail -5 "$S/log/$dead.log" >&2
        die "$dead has ended while we waited for $text; its log: $S/log/$dead.log"
      fi
    fi
    sleep 0.1
  done
}

# A pid alone can belong to a stranger by the time it is read again; with its start time it cannot.
start_time() {
  local stat
  { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The second field is the name in brackets and may hold blanks: cut it off, then start time is the 20th.
  stat=${stat##*) }
  local -a f
  read -ra f <<<"$stat"
  # A zombie has ended; it only waits for whoever started it.
  [[ ${f[0]} != Z ]] || return 1
  printf '%s' "${f[19]}"
}

# is_alive PID START
is_alive() { [[ -n ${1:-} && -n ${2:-} && $(start_time "$1") == "$2" ]]; }

# detach COMMAND...: becomes that command, in a session of its own and without any of our open files but standard output and
# error: a daemon must keep neither our lock nor a pipe of whoever called us. For use with '&'; the pid stays the same.
detach() {
  local fd
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    ((fd <= 2)) || eval "exec $fd>&-"
  done
  exec setsid "$@" </dev/null
}

# lock_file FD_VARIABLE NAME: takes a lock that goes with this process.
lock_file() {
  local -n fd=$1
  mkdir -p "$LOCK_DIR"
  exec {fd}>"$LOCK_DIR/$2.lock"
  if ! flock -n "$fd"; then
    say "waiting for another 'cluster' that holds $LOCK_DIR/$2.lock"
    flock "$fd"
  fi
}
unlock_file() {
  local -n fd=$1
  exec {fd}>&-
}
