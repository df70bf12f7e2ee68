# shellcheck shell=bash
# The one node: cgroups, containerd, kubelet, kube-proxy, all under the cluster's own folder and names.

# kubelet removes pods' cgroups that it does not know, so each cluster needs a cgroup root of its own: two kubelets under
# the same root would kill each other's pods.
cgroup_roots() {
  local type target
  while read -r _ target type _; do
    [[ $type == cgroup || $type == cgroup2 ]] && echo "$type $target/rv$N"
  done </proc/mounts
  return 0
}

make_cgroups() {
  local type dir parent
  while read -r type dir; do
    parent=$(dirname "$dir")
    if [[ $type == cgroup2 ]]; then
      # Under hybrid hierarchies (version 1 with an empty version 2 beside it) there are no controllers to hand down.
      if [[ -s $parent/cgroup.controllers ]]; then
        sed 's/\(^\| \)/\1+/g' "$parent/cgroup.controllers" >"$parent/cgroup.subtree_control" 2>/dev/null || true
        mkdir -p "$dir"
        sed 's/\(^\| \)/\1+/g' "$dir/cgroup.controllers" >"$dir/cgroup.subtree_control" 2>/dev/null || true
      fi
      continue
    fi
    mkdir -p "$dir"
    # A new cpuset of version 1 is empty, and then no process can enter it.
    if [[ -e $dir/cpuset.cpus ]]; then
      cat "$parent/cpuset.cpus" >"$dir/cpuset.cpus"
      cat "$parent/cpuset.mems" >"$dir/cpuset.mems"
    fi
  done < <(cgroup_roots)
}

cgroup_pids() {
  local _ dir
  while read -r _ dir; do
    [[ -d $dir ]] || continue
    find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done < <(cgroup_roots)
}

start_containerd() {
  local d=$S/containerd
  # restrict_oom_score_adj: in a sandbox even root may not lower oom_score_adj, and runc dies of the attempt.
  # netns_mounts_under_state_dir: the pods' network namespaces are mounts below our folder, so one sweep finds them all.
  cat >"$d/config.toml" <<-END
	version = 2
	root = "$d/root"
	state = "$d/state"
	disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
	[grpc]
	  address = "$d/containerd.sock"
	[plugins."io.containerd.internal.v1.opt"]
	  path = "$d/opt"
	[plugins."io.containerd.grpc.v1.cri"]
	  sandbox_image = "localhost/pause:1"
	  restrict_oom_score_adj = true
	  netns_mounts_under_state_dir = true
	  [plugins."io.containerd.grpc.v1.cri".cni]
	    bin_dir = "$(cni_bin_dir)"
	    conf_dir = "$S/cni"
	    max_conf_num = 1
	  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
	    runtime_type = "io.containerd.runc.v2"
	    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
	      SystemdCgroup = false
	END
  # ptp and not bridge: every packet between pods is routed, so Services work between pods of one node without the kernel's
  # bridge filter. The network's name marks the cluster's files in CNI's shared cache.
  cat >"$S/cni/10-pods.conflist" <<-END
	{ "cniVersion": "0.4.0", "name": "rv$N", "plugins": [
	  { "type": "ptp", "ipMasq": true,
	    "ipam": { "type": "host-local", "dataDir": "$S/cni/addresses", "ranges": [[{ "subnet": "$POD_CIDR" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
	  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
	END
  define containerd "$(command -v containerd)" --config "$d/config.toml"
  launch containerd
}

containerd_ready() { ctr -a "$S/containerd/containerd.sock" --timeout 2s version 2>/dev/null; }

start_node() {
  # podLogsDir: kubelet removes logs of pods that it does not know, so this folder cannot be shared between clusters either.
  # clusterDNS: there is none. Look-ups fail at once on the pod's own loopback, without a time-out and without an event for each pod.
  cat >"$S/kubelet.yaml" <<-END
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	containerRuntimeEndpoint: unix://$S/containerd/containerd.sock
	authentication:
	  anonymous: {enabled: false}
	  webhook: {enabled: true}
	  x509: {clientCAFile: $S/pki/ca.crt}
	authorization: {mode: Webhook}
	cgroupDriver: cgroupfs
	cgroupRoot: /rv$N
	failSwapOn: false
	failCgroupV1: false
	clusterDNS: [127.0.0.1]
	clusterDomain: cluster.local
	podLogsDir: $S/pod-logs
	volumePluginDir: $S/kubelet/volume-plugins
	syncFrequency: 10s
	serializeImagePulls: false
	maxPods: 250
	oomScoreAdj: 0
	eventRecordQPS: 0
	kubeAPIQPS: 100
	kubeAPIBurst: 200
	imageGCHighThresholdPercent: 100
	evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%}
	END
  define kubelet "${BIN[kubelet]}" --config="$S/kubelet.yaml" --kubeconfig="$S/kubelet.conf" --root-dir="$S/kubelet" --cert-dir="$S/kubelet/pki" \
    --hostname-override="$NAME" --node-ip="$ADDRESS"
  launch kubelet
  # The connection limits are the host's: 0 leaves them alone.
  define kube-proxy "${BIN[kube-proxy]}" --kubeconfig="$S/kube-proxy.conf" --proxy-mode=iptables --hostname-override="$NAME" --cluster-cidr="$POD_CIDR" \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s --oom-score-adj=0
  launch kube-proxy
}

node_ready() {
  [[ $(kubectl get node "$NAME" --request-timeout=5s -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null) == True ]]
}
default_account_there() { kubectl -n default get serviceaccount default -o name 2>/dev/null; }
# Pods reach the API as 10.96.0.1 only once kube-proxy has written its rules.
services_routed() { [[ $(in_netns iptables-save -t nat 2>/dev/null) == *"-A KUBE-SERVICES -d 10.96.0.1/32"*"-j KUBE-SVC"* ]]; }
