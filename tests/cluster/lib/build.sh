# shellcheck shell=bash
# Prerequisites and binaries. Everything comes from package registries through their ordinary clients:
# Debian packages by apt, the rest compiled from Go modules whose versions and checksums are in go.mod and go.sum here.

KUBERNETES_VERSION=v1.34.4
VELERO_VERSION=v1.18.3

# Module set, binary, package. The heavy ones first: the later ones share their packages.
BINARIES=(
  "kubernetes etcd go.etcd.io/etcd/server/v3"
  "kubernetes kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver"
  "kubernetes kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager"
  "kubernetes kubelet k8s.io/kubernetes/cmd/kubelet"
  "kubernetes kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler"
  "kubernetes kube-proxy k8s.io/kubernetes/cmd/kube-proxy"
  "kubernetes kubectl k8s.io/kubernetes/cmd/kubectl"
  "velero velero github.com/vmware-tanzu/velero/cmd/velero"
  "velero velero-restore-helper github.com/vmware-tanzu/velero/cmd/velero-restore-helper"
  "velero velero-plugin-for-aws github.com/vmware-tanzu/velero-plugin-for-aws/velero-plugin-for-aws"
  "tools/helm helm helm.sh/helm/v3/cmd/helm"
  "tools/versitygw versitygw github.com/versity/versitygw/cmd/versitygw"
)
KWOK_BINARY="tools/kwok kwok sigs.k8s.io/kwok/cmd/kwok"

# What must be there, and the Debian package that brings it.
prerequisites_missing() {
  local pair
  for pair in ip:iproute2 openssl:openssl jq:jq gcc:gcc conntrack:conntrack socat:socat iptables:iptables ethtool:ethtool \
    containerd:containerd ctr:containerd runc:runc busybox:busybox-static nsenter:util-linux flock:util-linux mount:mount tar:tar \
    sha256sum:coreutils ldd:libc-bin; do
    command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
  done
  [[ -x $(cni_bin_dir)/bridge ]] || echo containernetworking-plugins
  # A dynamic busybox cannot run in an otherwise empty image.
  if command -v busybox >/dev/null && is_dynamic "$(command -v busybox)"; then echo busybox-static; fi
  # The pause program is linked statically against libc.a.
  if command -v gcc >/dev/null && [[ $(gcc -print-file-name=libc.a) != /* ]]; then echo libc6-dev; fi
  # Go asks its module proxy over TLS.
  [[ -s /etc/ssl/certs/ca-certificates.crt || -s /etc/pki/tls/certs/ca-bundle.crt ]] || echo ca-certificates
}

# (A pipe to grep -q would now and then end ldd by SIGPIPE, which pipefail takes for a no.)
is_dynamic() { [[ $(LC_ALL=C ldd "$1" 2>/dev/null) == *@(=>|ld-linux|ld-musl)* ]]; }

cni_bin_dir() {
  local d
  for d in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
    if [[ -x $d/bridge && -x $d/portmap && -x $d/host-local && -x $d/loopback ]]; then
      echo "$d"
      return
    fi
  done
  echo /usr/lib/cni
}

ensure_prerequisites() {
  # Debian keeps ip, iptables and friends where the path of an ordinary user does not look.
  PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
  local -a missing
  mapfile -t missing < <(prerequisites_missing | sort -u)
  if ((${#missing[@]})); then
    local install="apt-get install -y --no-install-recommends ${missing[*]}"
    command -v apt-get >/dev/null || die "missing here, and there is no apt-get to install it: ${missing[*]} (Debian's package names)"
    [[ $EUID -eq 0 ]] || die "missing here: ${missing[*]}. Install with: sudo $install"
    step "packages: ${missing[*]}" install_packages "${missing[@]}"
    mapfile -t missing < <(prerequisites_missing | sort -u)
    ((${#missing[@]} == 0)) || die "still missing after '$install': ${missing[*]}"
  fi
  # Go reads the go lines of our go.mod files itself and fetches a newer toolchain where it may.
  command -v go >/dev/null || die "the Go compiler is missing (1.26 or newer, https://go.dev/dl): the cluster's programs are built from Go modules"
}

# The containerd package would start a service of its own; the test clusters run their own, with their own folders.
install_packages() {
  local policy=/usr/sbin/policy-rc.d log ours=
  log=$(mktemp)
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    ours=yes
  fi
  local ok=yes
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 || ok=
  [[ -z $ours ]] || rm -f "$policy"
  if [[ -z $ok ]]; then
    tail -20 "$log" >&2
    die "apt-get failed; its whole output is in $log"
  fi
  rm -f "$log"
}

ldflags() {
  case $1 in
    velero) echo "-s -w -X github.com/vmware-tanzu/velero/pkg/buildinfo.Version=$VELERO_VERSION" ;;
    kubernetes) echo "-s -w -X k8s.io/component-base/version.gitVersion=$KUBERNETES_VERSION" ;;
    *) echo "-s -w" ;;
  esac
}

# The folder of a module set's binaries. Its name holds a hash of all that decides what comes out, so a changed version
# is built anew and an unchanged one never is.
bin_dir() {
  local set=$1 key
  key=$({
    cat "$HERE/$set/go.mod" "$HERE/$set/go.sum"
    ldflags "$set"
  } | sha256sum)
  echo "$CACHE/bin/${set##*/}-${key:0:12}"
}

# Fills BIN[name]=path for all binaries that are wanted; says which are not there yet.
declare -A BIN=()
resolve_binaries() {
  local entry set name _
  local -A dirs=()
  for entry in "${BINARIES[@]}" "$KWOK_BINARY"; do
    read -r set name _ <<<"$entry"
    [[ -n ${dirs[$set]:-} ]] || dirs[$set]=$(bin_dir "$set")
    BIN[$name]=${dirs[$set]}/$name
  done
}

# ensure_binaries [kwok]
ensure_binaries() {
  resolve_binaries
  local -a wanted=("${BINARIES[@]}") todo=()
  [[ ${1:-} != kwok ]] || wanted+=("$KWOK_BINARY")
  local entry set name package
  for entry in "${wanted[@]}"; do
    read -r set name package <<<"$entry"
    [[ -x ${BIN[$name]} ]] || todo+=("$entry")
  done
  ((${#todo[@]})) || return 0
  # Two builds at once would do the same work twice on the same cores.
  mkdir -p "$CACHE/bin"
  local lock
  exec {lock}>"$CACHE/build.lock"
  if ! flock -n "$lock"; then
    say "another build is running; waiting for it"
    flock "$lock"
  fi
  local i=0 start out
  for entry in "${wanted[@]}"; do
    read -r set name package <<<"$entry"
    i=$((i + 1))
    # Somebody else may have built it while we waited.
    if [[ -x ${BIN[$name]} ]]; then continue; fi
    start=$EPOCHREALTIME
    printf '[%d/%d] %s ... ' "$i" "${#wanted[@]}" "$name" >&2
    mkdir -p "$(dirname "${BIN[$name]}")"
    out=$CACHE/bin/.$name.$$
    if ! (cd "$HERE/$set" && GOFLAGS='-mod=readonly -buildvcs=false' GOWORK=off CGO_ENABLED=0 \
      go build -trimpath -ldflags "$(ldflags "$set")" -o "$out" "$package" {lock}>&-) >"$out.log" 2>&1; then
      say "failed"
      tail -20 "$out.log" >&2
      rm -f "$out" "$out.log"
      die "go build $package failed in $HERE/$set"
    fi
    rm -f "$out.log"
    # A killed build leaves a temporary file behind, never half a binary under the real name.
    mv "$out" "${BIN[$name]}"
    say "$(seconds_since "$start") s"
  done
  rm -f "$CACHE"/bin/.*.[0-9]*
  exec {lock}>&-
}
