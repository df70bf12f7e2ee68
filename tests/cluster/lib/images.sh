# shellcheck shell=bash
# Container images without a registry: a docker-archive (manifest.json, config, one layer) is made from a folder and imported.

# write_image TAR_OUT NAME:TAG ROOTFS_DIR [OPTIONS]: see the help of 'cluster image'.
write_image() {
  (($# >= 3)) || die "usage: cluster image TAR_OUT NAME:TAG ROOTFS_DIR [options]"
  local out=$1 name=$2 rootfs=$3
  shift 3
  [[ -d $rootfs ]] || die "no such folder: $rootfs"
  [[ $name == */*:* ]] || die "an image needs a full name such as localhost/thing:1, not '$name'"
  local entrypoint=null cmd=null user='' workdir='' labels='{}'
  local -a env=()
  while (($#)); do
    (($# >= 2)) || die "$1 needs a value"
    case $1 in
      --entrypoint) entrypoint=$2 ;;
      --cmd) cmd=$2 ;;
      --user) user=$2 ;;
      --workdir) workdir=$2 ;;
      --env)
        [[ $2 == *=* ]] || die "--env wants KEY=VALUE, not '$2'"
        env+=("$2")
        ;;
      --label)
        [[ $2 == *=* ]] || die "--label wants KEY=VALUE, not '$2'"
        labels=$(jq -c --arg k "${2%%=*}" --arg v "${2#*=}" '.[$k] = $v' <<<"$labels")
        ;;
      *) die "cluster image does not know $1" ;;
    esac
    shift 2
  done
  local flag value
  for flag in entrypoint cmd; do
    value=${!flag}
    jq -e '. == null or (type == "array" and all(.[]; type == "string"))' <<<"$value" >/dev/null 2>&1 ||
      die "--$flag wants a JSON array of strings such as '[\"/bin/sh\", \"-c\"]', not: $value"
  done
  ((${#env[@]})) || env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")

  local work diff_id arch config
  work=$(mktemp -d)
  # Same input, same bytes: sorted, no times, no owners. The folder itself is left out, because a folder made by mktemp
  # is closed to all but its owner and a container that is not root could then not enter its own root.
  (cd "$rootfs" && find . -mindepth 1 -maxdepth 1 -printf '%P\0' | LC_ALL=C sort -z |
    LC_ALL=C tar --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --null \
      -cf "$work/layer.tar" -T -)
  diff_id=$(sha256sum <"$work/layer.tar")
  case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
  esac
  jq -cn --arg arch "$arch" --arg diff "sha256:${diff_id%% *}" --arg user "$user" --arg workdir "$workdir" \
    --argjson entrypoint "$entrypoint" --argjson cmd "$cmd" --argjson labels "$labels" '
    { architecture: $arch, os: "linux", created: "1970-01-01T00:00:00Z",
      config: ({ Env: $ARGS.positional, Entrypoint: $entrypoint, Cmd: $cmd, User: $user, WorkingDir: $workdir, Labels: $labels }
               | with_entries(select(.value != null and .value != "" and .value != {}))),
      rootfs: { type: "layers", diff_ids: [$diff] },
      history: [{ created: "1970-01-01T00:00:00Z", created_by: "cluster image" }] }' --args -- "${env[@]}" >"$work/config.json"
  config=$(sha256sum <"$work/config.json")
  config=${config%% *}.json
  mv "$work/config.json" "$work/$config"
  jq -cn --arg config "$config" --arg name "$name" '[{ Config: $config, RepoTags: [$name], Layers: ["layer.tar"] }]' >"$work/manifest.json"
  mkdir -p "$(dirname "$out")"
  tar --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$out.$$" -C "$work" manifest.json "$config" layer.tar
  mv "$out.$$" "$out"
  rm -rf "$work"
}

# rootfs_busybox DIR: static busybox with its symlinks, /tmp and users.
rootfs_busybox() {
  local dir=$1 applet busybox
  busybox=$(command -v busybox) || die "busybox is missing: apt-get install busybox-static"
  is_dynamic "$busybox" && die "$busybox is not static: apt-get install busybox-static"
  mkdir -p "$dir"/{bin,etc,tmp,root,home/nonroot,usr/bin,usr/sbin,sbin}
  chmod 755 "$dir"
  # All files of an image belong to root, so a home that nonroot may write to is open like /tmp.
  chmod 1777 "$dir/tmp" "$dir/home/nonroot"
  install -m 755 "$busybox" "$dir/bin/busybox"
  for applet in $("$busybox" --list-full); do
    [[ $applet == bin/busybox ]] && continue
    mkdir -p "$dir/$(dirname "$applet")"
    ln -sfn /bin/busybox "$dir/$applet"
  done
  cat >"$dir/etc/passwd" <<-'END'
	root:x:0:0:root:/root:/bin/sh
	nobody:x:65534:65534:nobody:/nonexistent:/bin/false
	nonroot:x:65532:65532:nonroot:/home/nonroot:/bin/sh
	END
  cat >"$dir/etc/group" <<-'END'
	root:x:0:
	nogroup:x:65534:
	nonroot:x:65532:
	END
}

# copy_binary BINARY ROOTFS_DIR [PATH_INSIDE]: the binary and every shared library that it needs, the loader too.
copy_binary() {
  local binary rootfs=$2 inside=${3:-} needed
  binary=$(realpath -e "$1" 2>/dev/null) || die "no such file: $1"
  if [[ -z $inside ]]; then
    # A program of the system finds its own files by its path; one from a build folder has no home yet.
    case $binary in
      /usr/* | /bin/* | /sbin/* | /lib/*) inside=$binary ;;
      *) inside=/usr/local/bin/$(basename "$binary") ;;
    esac
  fi
  install -D -m 755 "$binary" "$rootfs/$inside"
  is_dynamic "$binary" || return 0
  if LC_ALL=C ldd "$binary" | grep 'not found' >&2; then die "$binary needs libraries that are not here"; fi
  # Lines are "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)".
  while read -r needed; do
    [[ -e $rootfs/$needed ]] || install -D -m 755 "$(realpath -e "$needed")" "$rootfs/$needed"
  done < <(LC_ALL=C ldd "$binary" | grep -o '/[^ ]*' | sort -u)
}

# The images that every cluster gets. Cached as tars under a hash of what goes into them.
declare -A IMAGE_TAR=()
resolve_images() {
  local name key recipe
  recipe=$(cat "$HERE/lib/images.sh" "$HERE/lib/pause.c" "$(command -v busybox)" | sha256sum)
  for name in pause busybox velero velero-plugin-for-aws; do
    key=$recipe
    # The folder's name stands for the binary's content.
    [[ $name != velero* ]] || key=$(sha256sum <<<"$recipe ${BIN[$name]}")
    IMAGE_TAR[$name]=$CACHE/images/$name-${key:0:12}.tar
  done
}

ensure_images() {
  resolve_images
  local name tmp
  for name in pause busybox velero velero-plugin-for-aws; do
    [[ -s ${IMAGE_TAR[$name]} ]] || step "image $name" "build_image_${name//-/_}" "${IMAGE_TAR[$name]}"
  done
}

build_image_pause() {
  tmp=$(mktemp -d)
  gcc -Os -static -s -o "$tmp/pause" "$HERE/lib/pause.c"
  write_image "$1" localhost/pause:1 "$tmp" --entrypoint '["/pause"]' --user 65535:65535
  rm -rf "$tmp"
}

build_image_busybox() {
  tmp=$(mktemp -d)
  rootfs_busybox "$tmp"
  write_image "$1" localhost/busybox:1 "$tmp" --cmd '["/bin/sh"]'
  rm -rf "$tmp"
}

build_image_velero() {
  tmp=$(mktemp -d)
  rootfs_busybox "$tmp"
  install -m 755 "${BIN[velero]}" "${BIN[velero-restore-helper]}" "$tmp/"
  write_image "$1" localhost/velero:1 "$tmp" --entrypoint '["/velero"]' --user 65532:65532 --env "HOME=/home/nonroot" \
    --env "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  rm -rf "$tmp"
}

build_image_velero_plugin_for_aws() {
  tmp=$(mktemp -d)
  rootfs_busybox "$tmp"
  install -D -m 755 "${BIN[velero-plugin-for-aws]}" "$tmp/plugins/velero-plugin-for-aws"
  # This is how Velero takes a plugin in: its image is an init container that copies the program to a shared folder.
  write_image "$1" localhost/velero-plugin-for-aws:1 "$tmp" --user 65532:65532 \
    --entrypoint '["/bin/sh", "-c", "cp /plugins/velero-plugin-for-aws /target/"]'
  rm -rf "$tmp"
}

# load_images TAR...: into the containerd of the cluster in $S.
load_images() {
  local tar
  for tar in "$@"; do
    [[ -s $tar ]] || die "no such image file: $tar"
    ctr -a "$S/containerd/containerd.sock" -n k8s.io images import "$tar" >>"$S/log/images.log" 2>&1 ||
      die "containerd did not take $tar; see $S/log/images.log"
  done
}
