# shellcheck shell=bash
# Ending a cluster, whole or half-dead, and the watchdog that does it when a test run is gone.
# A process is ours when it is in the cluster's network namespace or cgroups, when a pid file with its start time says so,
# or when it is a containerd-shim that was started on the cluster's state folder. Never because of its name alone.

cluster_pids() {
  local file pid started cmdline
  for file in "$S"/run/*.pid; do
    [[ -s $file && $file != */watchdog.pid ]] || continue
    read -r pid started <"$file" || continue
    ! is_alive "$pid" "$started" || echo "$pid"
  done
  if [[ -n $N ]]; then
    # Everything that we start is in there, and the shims too: they inherit it from containerd.
    [[ ! -e $NETNS ]] || ip netns pids "rv$N" 2>/dev/null || true
    cgroup_pids
  fi
  for file in /proc/[0-9]*/cmdline; do
    { cmdline=$(tr '\0' ' ' <"$file"); } 2>/dev/null || continue
    if [[ $cmdline == *containerd-shim*" $S/"* ]]; then
      file=${file%/cmdline}
      echo "${file##*/}"
    fi
  done
}

kill_processes() {
  local pids pid round
  for ((round = 0; round < 100; round++)); do
    pids=$(cluster_pids | sort -un)
    [[ -n $pids ]] || return 0
    for pid in $pids; do
      # Pid 0 stands for a process of another pid namespace; our own shell may be in the cluster's network by 'cluster exec'.
      ((pid == 0 || pid == $$ || pid == BASHPID)) || kill -9 "$pid" 2>/dev/null || true
    done
    sleep 0.1
  done
  say "still running after 100 rounds of kill -9: $(tr '\n' ' ' <<<"$pids")"
}

mounts_below() {
  local target
  # Deepest last in the table, so it is turned round.
  while read -r _ _ _ _ target _; do
    [[ $target != "$S" && $target != "$S"/* ]] || echo "$target"
  done </proc/self/mountinfo | tac
}

unmount_all() {
  local target round
  for ((round = 0; round < 20; round++)); do
    [[ -n $(mounts_below) ]] || return 0
    while read -r target; do
      # Lazily in later rounds: a process that is about to go may still have a file open there.
      if ((round < 5)); then umount "$target"; else umount -l "$target"; fi 2>/dev/null || true
    done < <(mounts_below)
    ((round == 0)) || sleep 0.1
  done
  die "these mounts do not go away: $(mounts_below | tr '\n' ' ')"
}

# What lives outside the state folder and is not tied to the network namespace.
remove_shared_traces() {
  local bundle id dir type
  for bundle in "$S"/containerd/state/io.containerd.runtime.v2.task/k8s.io/*; do
    [[ -d $bundle ]] || continue
    id=${bundle##*/}
    rm -f /var/lib/cni/results/*-"$id"-*
    # A killed shim leaves its socket under /run/containerd/s; the file says which.
    [[ ! -s $bundle/address ]] || remove_shim_socket "$(<"$bundle/address")"
  done
  [[ -z $N ]] || rm -f /var/lib/cni/results/"rv$N"-*
  if [[ -d /var/log/containers ]]; then
    find /var/log/containers -maxdepth 1 -lname "$S/*" -delete
  fi
  [[ -n $N ]] || return 0
  while read -r type dir; do
    [[ ! -d $dir ]] || find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [[ ! -d $dir ]] || say "cgroup left over ($type): $dir"
  done < <(cgroup_roots)
}

remove_shim_socket() {
  local socket=${1#unix://}
  [[ $socket != /run/containerd/s/* ]] || rm -f "$socket"
}

# Ends everything of the cluster in $S. The caller holds its lock.
teardown() {
  [[ -e $S ]] || return 0
  kill_processes
  unmount_all
  remove_shared_traces
  if [[ -n $N ]]; then
    # shellcheck disable=SC2034 # lock_file sets it by name
    local alloc
    lock_file alloc allocate
    [[ ! -e $NETNS ]] || ip netns delete "rv$N"
    # It goes with its other end; here only if that namespace never came to be.
    [[ ! -e /sys/class/net/rv$N ]] || ip link delete "rv$N" 2>/dev/null || true
    after_last_cluster
    unlock_file alloc
  fi
  # The number goes last: without it a later call could not find what is outside.
  find "$S" -xdev -mindepth 1 -maxdepth 1 ! -name n -exec rm -rf --one-file-system {} +
  rm -rf --one-file-system "$S"
  N=
}

down() {
  use_cluster "$1"
  if [[ ! -e $S ]]; then
    say "cluster '$NAME' is not there"
    return
  fi
  lock_cluster
  use_cluster "$1"
  end_watchdog
  step "cluster '$NAME' down" teardown
}

# --- watchdog --------------------------------------------------------------------------------------------------------

# remember_owner PID: the cluster lives as long as one of these processes.
remember_owner() {
  local started
  started=$(start_time "$1") || die "--until-pid $1: there is no such process"
  echo "$1 $started" >>"$S/run/until"
}

owner_alive() {
  local pid started
  while read -r pid started; do
    ! is_alive "$pid" "$started" || return 0
  done <"$S/run/until"
  return 1
}

start_watchdog() {
  detach bash "$HERE/cluster" _watch "$NAME" >>"$S/log/watchdog.log" 2>&1 &
  disown $!
  echo "$! $(start_time $!)" >"$S/run/watchdog.pid"
}

end_watchdog() {
  local pid started
  [[ -s $S/run/watchdog.pid ]] || return 0
  read -r pid started <"$S/run/watchdog.pid"
  ((pid == $$)) || ! is_alive "$pid" "$started" || kill "$pid" 2>/dev/null || true
}

watch_owners() {
  local number
  use_cluster "$1"
  number=$N
  while sleep 1; do
    # Somebody took the cluster down, perhaps brought it up anew: that one has a watchdog of its own.
    [[ -s $S/run/watchdog.pid && $(cut -d' ' -f1 "$S/run/watchdog.pid") == "$$" ]] || exit 0
    owner_alive && continue
    lock_cluster
    use_cluster "$1"
    # While we waited for the lock, another run may have joined, or the cluster may have gone.
    if [[ $N == "$number" && -s $S/run/watchdog.pid && $(cut -d' ' -f1 "$S/run/watchdog.pid") == "$$" ]] && ! owner_alive; then
      teardown
      exit 0
    fi
    unlock_file CLUSTER_LOCK
  done
}
