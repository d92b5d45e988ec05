# shellcheck shell=bash
# A node's files and its start. What runs in it: node-init.

# prepare_node NODE POOL_SIZE: makes the node's disk, unless it has one.
prepare_node() {
    local node=$1 dir=$state/$1 number address
    number=$(node_number "$node")
    address=$(network).$((10 + number))
    make_certificate "$node" "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$address"
    make_kubeconfig "$state/pki/$node.kubeconfig" "$node"
    [ ! -d "$dir" ] || return 0
    mkdir -p "$dir.new"
    # Sparse: it takes what is written to it.
    truncate -s "$2" "$dir.new/pool.img"
    mkfs.btrfs -q -L "icbd-$node" "$dir.new/pool.img" >/dev/null
    openssl rand -hex 16 >"$dir.new/machine-id"
    # Routed to each pod, not bridged: a bridge would take replies past the Services' address translation.
    cat >"$dir.new/cni.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false,
  "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "10.244.$number.0/24"}]],
           "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
    # restrict_oom_score_adj: for machines that lack CAP_SYS_RESOURCE.
    cat >"$dir.new/containerd.toml" <<'TOML'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
TOML
    # Kubernetes 1.34 is the last that takes cgroup version 1 unless told to.
    cat >"$dir.new/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $state/pki/$node.crt
tlsPrivateKeyFile: $state/pki/$node.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup/$node
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
evictionHard: {memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
clusterDNS: [$(network).1]
clusterDomain: cluster.local
resolvConf: ""
nodeStatusUpdateFrequency: 5s
# How long a change of a ConfigMap takes to reach the pods that mount it; a minute otherwise.
syncFrequency: 10s
nodeLeaseDurationSeconds: 12
YAML
    mv "$dir.new" "$dir"
}

start_node() {
    start_part "$1" "$here/cluster.d/node-init" "$state" "$bin" "$(network)" "$1" "$(node_number "$1")"
    connect_node "$1"
}

# end_node NODE: as a power cut would. The pool's loop device ends with the mounts, a moment after the processes;
# before that the disk cannot be used again.
end_node() {
    cgroup_end "$1"
    await 60 "the disks of $1 to be released" release_disks "$state/$1"
}

# release_disks DIRECTORY: detaches the loop devices on files in there; fails while there are any.
release_disks() {
    local device file left=false
    while read -r device file; do
        [[ $file == "$1"/* ]] || continue
        left=true
        losetup --detach "$device"
    done < <(losetup --list --noheadings --output NAME,BACK-FILE)
    [ $left = false ]
}
