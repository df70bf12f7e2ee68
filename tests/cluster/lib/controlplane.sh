# shellcheck shell=bash
# The state folder, the network namespace, certificates, and the processes of a control plane.
#
# Globals of one cluster: NAME, S (its state folder), N (its number), ADDRESS (inside, 10.90.N.1), OUTSIDE (host, 10.90.N.2).
# The number is the key to all that lives outside the state folder: netns rvN, veth rvN, cgroups rvN.

COMPONENTS=(etcd kube-apiserver kube-controller-manager kube-scheduler containerd kubelet kube-proxy s3)
POD_CIDR=10.244.0.0/20
SERVICE_CIDR=10.96.0.0/16

# use_cluster NAME: sets the globals; N and the addresses stay empty when there is no such cluster.
use_cluster() {
  NAME=$1
  [[ $NAME =~ ^[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?$ ]] || die "a cluster's name is up to 30 of a-z, 0-9 and '-', not '$NAME'"
  [[ $STATE_ROOT =~ ^/[^[:space:]]*$ && ${#STATE_ROOT} -le 45 ]] ||
    die "REVEILLE_CLUSTER_STATE must be an absolute path of at most 45 characters without blanks (unix sockets have short names): $STATE_ROOT"
  S=$STATE_ROOT/$NAME
  N=
  if [[ -s $S/n ]]; then set_number "$(<"$S/n")"; fi
}

set_number() {
  [[ $1 =~ ^[0-9]+$ ]] || die "$S/n is damaged: $1"
  N=$1
  ADDRESS=10.90.$N.1
  OUTSIDE=10.90.$N.2
  NETNS=/run/netns/rv$N
}

existing_cluster() {
  use_cluster "$1"
  [[ -n $N ]] || die "there is no cluster '$NAME'; start it with: $0 up $NAME"
}

lock_cluster() { lock_file CLUSTER_LOCK "cluster-$NAME"; }

# A number that nobody uses: neither another cluster (even one under another state folder) nor anything else on 10.90.
# It begins at a hash of the name, so that a cluster usually gets its old address again.
allocate_number() {
  local alloc hash i n routes
  lock_file alloc allocate
  mkdir -p "$S"
  chmod 755 "$S"
  hash=$(cksum <<<"$NAME")
  routes=$(ip -4 route show table all)
  for ((i = 0; i < 250; i++)); do
    n=$(((${hash%% *} + i) % 250 + 1))
    [[ ! -e /run/netns/rv$n && ! -e /sys/class/net/rv$n && $routes != *"10.90.$n."* ]] || continue
    ! grep -qsx "$n" "$STATE_ROOT"/*/n || continue
    before_first_cluster
    echo "$n" >"$S/n"
    set_number "$n"
    ip netns add "rv$n"
    unlock_file alloc
    return
  done
  die "no free number for a cluster: 250 are in use"
}

# kubelet sets some of the machine's kernel parameters, and has one socket at a fixed place. The first cluster notes what was
# there, the last one puts it back. Both are called under the lock 'allocate'.
KUBELET_SOCKET=/var/lib/kubelet/device-plugins/kubelet.sock
KUBELET_SYSCTLS=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes)
before_first_cluster() {
  local key
  ! any_cluster || return 0
  ! kubelet_socket_alive || die "this machine runs a kubelet of its own, and a test cluster would get in its way"
  for key in "${KUBELET_SYSCTLS[@]}"; do
    echo "$key $(<"/proc/sys/$key")"
  done >"$LOCK_DIR/sysctls"
}
after_last_cluster() {
  local key value
  ! any_cluster || return 0
  if [[ -S $KUBELET_SOCKET ]] && ! kubelet_socket_alive; then
    rm -f "$KUBELET_SOCKET" "${KUBELET_SOCKET%/*}/kubelet_internal_checkpoint"
    rmdir -p --ignore-fail-on-non-empty "${KUBELET_SOCKET%/*}" 2>/dev/null || true
  fi
  [[ -s $LOCK_DIR/sysctls ]] || return 0
  while read -r key value; do
    echo "$value" >"/proc/sys/$key" || true
  done <"$LOCK_DIR/sysctls"
  rm -f "$LOCK_DIR/sysctls"
}
kubelet_socket_alive() { socat -u OPEN:/dev/null "UNIX-CONNECT:$KUBELET_SOCKET" 2>/dev/null; }
any_cluster() { compgen -G '/run/netns/rv[0-9]*' >/dev/null; }

make_network() {
  allocate_number
  mkdir -p "$S"/{run,log,pki,bin,etcd,containerd,kubelet/plugins,cni,pod-logs,s3/velero}
  ip link add "rv$N" type veth peer name eth0 netns "rv$N"
  ip addr add "$OUTSIDE/30" dev "rv$N"
  ip link set "rv$N" up
  ip -n "rv$N" link set lo up
  ip -n "rv$N" addr add "$ADDRESS/30" dev eth0
  ip -n "rv$N" link set eth0 up
  ip -n "rv$N" route add default via "$OUTSIDE"
  in_netns sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
  # kubelet and Velero's node agent want mounts that appear later to show up in containers: that needs a shared mount,
  # and not every host's root is one.
  mount --bind "$S" "$S"
  mount --make-private "$S"
  mount --make-shared "$S"
}

# `ip netns exec` would mount a fresh /sys and so hide the cgroups: kubelet and runc need them.
in_netns() { nsenter --net="$NETNS" -- "$@"; }

make_certificates() {
  local d=$S/pki
  cat >"$d/openssl.cnf" <<-END
	[req]
	distinguished_name = dn
	[dn]
	[ca]
	basicConstraints = critical, CA:TRUE
	keyUsage = critical, digitalSignature, keyCertSign, cRLSign
	subjectKeyIdentifier = hash
	[client]
	basicConstraints = critical, CA:FALSE
	keyUsage = critical, digitalSignature
	extendedKeyUsage = clientAuth
	[server]
	basicConstraints = critical, CA:FALSE
	keyUsage = critical, digitalSignature
	extendedKeyUsage = serverAuth
	subjectAltName = IP:127.0.0.1, IP:10.96.0.1, IP:$ADDRESS, IP:$OUTSIDE, DNS:localhost, DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, DNS:kubernetes.default.svc.cluster.local
	END
  {
    certificate ca ca /CN=reveille-test-ca
    certificate apiserver server /CN=kube-apiserver
    certificate admin client /O=system:masters/CN=admin
    certificate kube-controller-manager client /CN=system:kube-controller-manager
    certificate kube-scheduler client /CN=system:kube-scheduler
    certificate kube-proxy client /CN=system:kube-proxy
    certificate kubelet client "/O=system:nodes/CN=system:node:$NAME"
    openssl ecparam -name prime256v1 -genkey -noout -out "$d/sa.key"
    openssl pkey -in "$d/sa.key" -pubout -out "$d/sa.pub"
  } >"$S/log/openssl.log" 2>&1 || die "openssl failed; see $S/log/openssl.log"
  local who
  for who in admin kube-controller-manager kube-scheduler kube-proxy kubelet; do write_kubeconfig "$who"; done
  # Whoever used sudo to start the cluster may talk to it without.
  [[ -z ${SUDO_UID:-} ]] || chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$S/admin.conf"
}

# certificate FILE SECTION SUBJECT
certificate() {
  local -a by=()
  [[ $1 == ca ]] || by=(-CA "$d/ca.crt" -CAkey "$d/ca.key")
  openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -config "$d/openssl.cnf" -extensions "$2" -days 3650 \
    -subj "$3" "${by[@]}" -keyout "$d/$1.key" -out "$d/$1.crt"
}

write_kubeconfig() {
  local file=$S/$1.conf
  (umask 077 && cat >"$file") <<-END
	apiVersion: v1
	kind: Config
	current-context: $NAME
	clusters:
	- name: $NAME
	  cluster:
	    server: https://$ADDRESS:6443
	    certificate-authority-data: $(base64 -w0 "$S/pki/ca.crt")
	contexts:
	- name: $NAME
	  context: {cluster: $NAME, user: $1}
	users:
	- name: $1
	  user:
	    client-certificate-data: $(base64 -w0 "$S/pki/$1.crt")
	    client-key-data: $(base64 -w0 "$S/pki/$1.key")
	END
}

# The tools that people and tests call: $S/bin goes to the front of their PATH.
make_tools() {
  local tool
  for tool in kubectl helm velero; do ln -sfn "${BIN[$tool]}" "$S/bin/$tool"; done
  printf '#!/bin/sh\nexec ctr -a %s/containerd/containerd.sock -n k8s.io "$@"\n' "$S" >"$S/bin/ctr-$NAME"
  chmod +x "$S/bin/ctr-$NAME"
}

kubectl() { NO_PROXY=$ADDRESS KUBECONFIG=$S/admin.conf KUBECACHEDIR=$S/kube-cache "${BIN[kubectl]}" "$@"; }

# --- processes -------------------------------------------------------------------------------------------------------

# define COMPONENT COMMAND...: keeps the exact command line, so that a chaos test can start the very same process again.
define() {
  local name=$1
  shift
  printf '%s\0' "$@" >"$S/run/$name.cmd"
}

# launch COMPONENT: starts it in the cluster's network, detached from whoever called us, and records its pid.
launch() {
  local name=$1 pid started
  local -a command
  mapfile -d '' -t command <"$S/run/$name.cmd"
  # detach, nsenter and env replace themselves by the command, so the pid stays the same.
  # env -i: a proxy or a KUBECONFIG of the caller must not change what a component does.
  detach nsenter --net="$NETNS" -- env -i PATH="$PATH" HOME=/root "${command[@]}" >>"$S/log/$name.log" 2>&1 &
  pid=$!
  disown "$pid"
  started=$(start_time "$pid") || die "$name ended at once; see $S/log/$name.log"
  echo "$pid $started" >"$S/run/$name.pid"
}

# component_pid COMPONENT: its pid, if it runs.
component_pid() {
  local pid='' started=''
  [[ -s $S/run/$1.pid ]] || return 1
  read -r pid started <"$S/run/$1.pid"
  is_alive "$pid" "$started" && echo "$pid"
}

# dead_component: one that was started and has ended, if there is one.
dead_component() {
  local c
  for c in "${COMPONENTS[@]}"; do
    if [[ -e $S/run/$c.cmd ]] && ! component_pid "$c" >/dev/null; then
      echo "$c"
      return
    fi
  done
  return 1
}

check_component() {
  local c
  for c in "${COMPONENTS[@]}"; do [[ $c == "$1" ]] && return; done
  die "there is no component '$1'; there are: ${COMPONENTS[*]}"
}

start_component() {
  local pid
  if pid=$(component_pid "$1"); then
    say "$1 runs already (pid $pid)"
    return
  fi
  [[ -s $S/run/$1.cmd ]] || die "$1 is not part of cluster '$NAME' (up --no-velero has no s3)"
  launch "$1"
  say "$1 started (pid $(component_pid "$1" || echo gone already))"
}

# stop_component COMPONENT [--kill]
stop_component() {
  local pid signal=TERM end=$((SECONDS + 90))
  [[ ${2:-} != --kill ]] || signal=KILL
  if ! pid=$(component_pid "$1"); then
    say "$1 does not run"
    return
  fi
  kill -s "$signal" "$pid" 2>/dev/null || true
  while component_pid "$1" >/dev/null; do
    ((SECONDS < end)) || die "$1 (pid $pid) has not ended 90 s after SIG$signal; try --kill"
    sleep 0.1
  done
  rm -f "$S/run/$1.pid"
  say "$1 stopped (pid $pid, SIG$signal)"
}

# Starts again what has ended by itself, as a supervisor would: a controller manager that starts while the API server does
# not know its roles yet simply exits. What 'stop' has ended has no pid file and stays down. The caller holds the lock.
revive_components() {
  local c
  for c in "${COMPONENTS[@]}"; do
    if [[ -s $S/run/$c.pid ]] && ! component_pid "$c" >/dev/null; then
      launch "$c"
      say "$c had ended by itself and was started again; its log: $S/log/$c.log"
    fi
  done
}

# --- control plane ---------------------------------------------------------------------------------------------------

start_etcd() {
  # The data is thrown away with the cluster: no need to wait for the disk.
  define etcd "${BIN[etcd]}" --data-dir "$S/etcd" --unsafe-no-fsync --name "$NAME" --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster "$NAME=http://127.0.0.1:2380"
  launch etcd
}

start_apiserver() {
  # Who called what, one line for each call: tests use it to prove that a component wrote nothing.
  cat >"$S/audit-policy.yaml" <<-'END'
	apiVersion: audit.k8s.io/v1
	kind: Policy
	omitStages: [RequestReceived]
	rules:
	- level: Metadata
	END
  # --kubelet-preferred-address-types: exec and logs would look the node's name up in a DNS that is not there.
  # --enable-aggregator-routing: calls of webhooks go straight to a pod behind the Service.
  # --shutdown-watch-termination-grace-period: by default a SIGTERM waits a minute for open watches, and there always are some.
  # --audit-log-maxbackup: what tests read of the log must not go; so much is never written in a run of them.
  # --requestheader-*: nobody uses them, but the other components complain for ever without.
  define kube-apiserver "${BIN[kube-apiserver]}" --etcd-servers=http://127.0.0.1:2379 \
    --bind-address=0.0.0.0 --secure-port=6443 --advertise-address="$ADDRESS" --service-cluster-ip-range="$SERVICE_CIDR" \
    --tls-cert-file="$S/pki/apiserver.crt" --tls-private-key-file="$S/pki/apiserver.key" --client-ca-file="$S/pki/ca.crt" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$S/pki/sa.pub" \
    --service-account-signing-key-file="$S/pki/sa.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-client-certificate="$S/pki/admin.crt" --kubelet-client-key="$S/pki/admin.key" \
    --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true \
    --requestheader-client-ca-file="$S/pki/ca.crt" --requestheader-allowed-names=front-proxy --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --shutdown-watch-termination-grace-period=2s \
    --audit-policy-file="$S/audit-policy.yaml" --audit-log-path="$S/log/audit.log" --audit-log-maxsize=200 --audit-log-maxbackup=30
  launch kube-apiserver
}

api_ready() { [[ $(kubectl get --raw=/readyz --request-timeout=5s 2>/dev/null) == ok ]]; }

start_controllers() {
  local -a auth
  auth=(--kubeconfig="$S/kube-controller-manager.conf" --authentication-kubeconfig="$S/kube-controller-manager.conf"
    --authorization-kubeconfig="$S/kube-controller-manager.conf")
  # Controllers under their own service accounts, as in a real cluster: admission sees who really creates a pod.
  define kube-controller-manager "${BIN[kube-controller-manager]}" "${auth[@]}" --bind-address=127.0.0.1 --leader-elect=false \
    --use-service-account-credentials=true --service-account-private-key-file="$S/pki/sa.key" --root-ca-file="$S/pki/ca.crt" \
    --cluster-signing-cert-file="$S/pki/ca.crt" --cluster-signing-key-file="$S/pki/ca.key" --terminated-pod-gc-threshold=50 \
    --kube-api-qps=100 --kube-api-burst=200 --flex-volume-plugin-dir="$S/kubelet/volume-plugins"
  launch kube-controller-manager
  auth=(--kubeconfig="$S/kube-scheduler.conf" --authentication-kubeconfig="$S/kube-scheduler.conf"
    --authorization-kubeconfig="$S/kube-scheduler.conf")
  define kube-scheduler "${BIN[kube-scheduler]}" "${auth[@]}" --bind-address=127.0.0.1 --leader-elect=false
  launch kube-scheduler
}
