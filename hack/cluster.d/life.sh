# shellcheck shell=bash
# The life of a cluster: the commands of hack/cluster.
#
# A part is the control plane or a node. It runs when its init runs; the cluster is up when its control plane runs and
# `up` once came to its end, which the file `up` says.

default_nodes=3
default_pool_size=${ICBD_POOL_SIZE:-16G}

is_up() { [ -f "$state/up" ] && init_process control-plane >/dev/null; }

must_be_up() { is_up || die "cluster $name is down; start it with: hack/cluster --name $name up"; }

# One at a time may change a cluster. Daemons must not inherit the lock: see start_part.
lock_cluster() {
    mkdir -p "$clusters"
    exec {cluster_lock}>"$clusters/$name.lock"
    flock "$cluster_lock"
}

# start_part PART INIT ARGUMENT…: INIT becomes process 1 of namespaces of its own.
start_part() {
    local part=$1
    shift
    cgroup_make "$part"
    (
        cgroup_join "$part"
        exec setsid unshare --fork --kill-child --pid --mount-proc --mount --propagation slave --net --ipc --uts "$@"
    ) </dev/null >"$state/$part/init.log" 2>&1 {cluster_lock}>&- &
    await 10 "init of $part, see $state/$part/init.log" init_process "$part"
}

cluster_up() {
    local count='' pool_size=$default_pool_size
    while [ $# -gt 0 ]; do
        case $1 in
            --nodes) count=$2 ;;
            --pool-size) pool_size=$2 ;;
            *) die "up takes --nodes and --pool-size, not $1" ;;
        esac
        shift 2
    done
    need_packages containerd runc containernetworking-plugins btrfs-progs iproute2 nftables openssl util-linux procps
    bin=$(cluster_bin)
    lock_cluster
    if ! is_up; then
        [ ! -e "$state" ] || step "clear away what a killed run left" remove_cluster
        mkdir -p "$state"
        (
            flock 9
            choose_network
        ) 9>"$clusters/.network.lock"
        step "certificates" prepare_control_plane
        step "control plane's network" start_control_plane
    fi
    local n node missing=() existing
    existing=$(nodes | wc -l)
    [ "$existing" -gt 0 ] || existing=${count:-$default_nodes}
    count=${count:-$existing}
    for ((n = 1; n <= count; n++)); do
        node=node-$n
        init_process "$node" >/dev/null || missing+=("$node")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        step "disks of ${missing[*]}" prepare_nodes "$pool_size" "${missing[@]}"
        step "start ${missing[*]}" start_nodes "${missing[@]}"
    fi
    if ! is_up; then
        step "control plane" await 120 "the API server, see $state/control-plane" in_kubectl get --raw /readyz
        allow_dns
        # Before this account is there, no pod is taken.
        await 30 "the ServiceAccount default" in_kubectl get serviceaccount default
    fi
    [ ${#missing[@]} -eq 0 ] || step "nodes Ready" await 120 "${missing[*]}, see $state/node-*" nodes_ready "${missing[@]}"
    touch "$state/up"
    say "cluster $name is up: $(nodes | wc -l) nodes, KUBECONFIG=$kubeconfig"
}

prepare_nodes() {
    local size=$1 node
    shift
    for node; do prepare_node "$node" "$size"; done
}

start_nodes() {
    local node
    for node; do start_node "$node"; done
}

# nodes_ready NODE…: their kubelets answer, and say so themselves.
nodes_ready() {
    local node
    for node; do
        in_part "$node" --net -- bash -c '</dev/tcp/127.0.0.1/10248' || return 1
        [ "$(in_kubectl get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ] ||
            return 1
    done
}

# in_part PART NSENTER-OPTION… -- COMMAND…
in_part() {
    local pid
    pid=$(init_process "$1") || return 1
    shift
    nsenter --target "$pid" "$@"
}

remove_cluster() {
    rm -f "$state/up"
    cgroup_end
    [ ! -d "$state" ] || await 60 "the disks of $name to be released" release_disks "$state"
    ip link delete "$host_interface" 2>/dev/null || true
    rm -rf --one-file-system "$state"
}

cluster_down() {
    lock_cluster
    step "end cluster $name" remove_cluster
}

cluster_kubeconfig() {
    must_be_up
    echo "$kubeconfig"
}

cluster_kubectl() {
    must_be_up
    exec "$(cluster_bin)/kubectl" --kubeconfig "$kubeconfig" "$@"
}

cluster_exec() {
    local node=${1:-} pid
    [ "${2:-}" = -- ] && [ $# -gt 2 ] || die "usage: hack/cluster exec NODE -- COMMAND…"
    shift 2
    pid=$(init_process "$node") || die "$node of cluster $name does not run"
    exec nsenter --target "$pid" --mount --net --pid --ipc --uts -- "$@"
}

cluster_stop() {
    lock_cluster
    must_be_up
    node_number "${1:-}" >/dev/null
    [ -d "$state/$1" ] || die "cluster $name has no $1"
    step "cut the power of $1" end_node "$1"
}

cluster_start() {
    lock_cluster
    must_be_up
    node_number "${1:-}" >/dev/null
    [ -d "$state/$1" ] || die "cluster $name has no $1"
    ! init_process "$1" >/dev/null || return 0
    bin=$(cluster_bin)
    end_node "$1"
    start_node "$1"
    step "$1 Ready" await 120 "$1, see $state/$1" nodes_ready "$1"
}

# Nodes that are started later import the archives too.
cluster_load() {
    local archive
    must_be_up
    [ $# -gt 0 ] || die "load needs an image archive"
    for archive; do
        cp "$archive" "$state/images/.$(basename "$archive")"
        mv "$state/images/.$(basename "$archive")" "$state/images/$(basename "$archive")"
    done
    step "load $*" load_everywhere "$@"
}

load_everywhere() {
    local node archive imports=() import
    for node in $(nodes); do
        init_process "$node" >/dev/null || continue
        for archive; do
            cluster_exec "$node" -- ctr --namespace k8s.io images import \
                "$state/images/$(basename "$archive")" >/dev/null &
            imports+=($!)
        done
    done
    for import in "${imports[@]}"; do wait "$import"; done
}
