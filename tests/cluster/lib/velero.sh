# shellcheck shell=bash
# A real Velero with its node agent, installed the standard way, and the S3 server that holds its backups.

S3_ACCESS=reveille
S3_SECRET=reveille-secret

start_s3() {
  define s3 "${BIN[versitygw]}" --port "$ADDRESS:7070" --access "$S3_ACCESS" --secret "$S3_SECRET" posix "$S/s3"
  launch s3
}

s3_ready() { (: <"/dev/tcp/$ADDRESS/7070") 2>/dev/null; }

# What `velero install` would apply, split: the CRDs go first. The node agent has to look for pods' volumes in our kubelet's folder.
write_velero_manifests() {
  printf '[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n' "$S3_ACCESS" "$S3_SECRET" >"$S/s3-credentials"
  # Requests of 0: all of it has to fit on two cores beside the tests' own pods. No limits: a test may not wait for a throttle.
  KUBECONFIG=$S/admin.conf "${BIN[velero]}" install --dry-run -o json \
    --image localhost/velero:1 --provider aws --plugins localhost/velero-plugin-for-aws:1 --bucket velero \
    --secret-file "$S/s3-credentials" --backup-location-config "region=us-east-1,s3ForcePathStyle=true,s3Url=http://$ADDRESS:7070" \
    --use-node-agent --use-volume-snapshots=false --kubelet-root-dir "$S/kubelet" \
    --velero-pod-cpu-request 0 --velero-pod-mem-request 0 --velero-pod-cpu-limit 0 --velero-pod-mem-limit 0 \
    --node-agent-pod-cpu-request 0 --node-agent-pod-mem-request 0 --node-agent-pod-cpu-limit 0 --node-agent-pod-mem-limit 0 \
    >"$S/velero.json" 2>"$S/log/velero-install.log" || die "velero install failed; see $S/log/velero-install.log"
  jq '.items |= map(select(.kind == "CustomResourceDefinition"))' "$S/velero.json" >"$S/velero-crds.json"
  jq '.items |= map(select(.kind != "CustomResourceDefinition"))' "$S/velero.json" >"$S/velero-rest.json"
  rm "$S/velero.json"
}

apply_velero_crds() { kubectl apply --server-side --force-conflicts -f "$S/velero-crds.json" >>"$S/log/velero-install.log" 2>&1; }

apply_velero() {
  kubectl wait --for=condition=Established --timeout=60s -f "$S/velero-crds.json" >>"$S/log/velero-install.log" 2>&1
  kubectl apply --server-side --force-conflicts -f "$S/velero-rest.json" >>"$S/log/velero-install.log" 2>&1 ||
    die "Velero could not be applied; see $S/log/velero-install.log"
}

velero_ready() {
  [[ $(kubectl -n velero get --request-timeout=5s deployment/velero daemonset/node-agent backupstoragelocation/default \
    -o 'jsonpath={.items[0].status.readyReplicas} {.items[1].status.numberReady} {.items[2].status.phase}' 2>/dev/null) == "1 1 Available" ]]
}
