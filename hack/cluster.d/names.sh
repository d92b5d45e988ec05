# shellcheck shell=bash
# Where a cluster's things are and what they are called; all of it follows from the cluster's name. Starts nothing.

# All clusters of this machine; not on a tmpfs, for containerd's overlays and the pools.
clusters=${ICBD_CLUSTER_DIR:-/var/lib/icbd-cluster}

# Nodes get the addresses .11 upwards of the cluster's /24, so there is an end to them.
max_nodes=60

# name_cluster NAME: sets what the other files call a cluster's things.
name_cluster() {
    [[ $1 =~ ^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$ ]] || die "'$1' is no cluster name: at most 20 of a-z, 0-9 and -"
    name=$1
    state=$clusters/$name
    cgroup=icbd-$name
    # At most 15 characters for an interface.
    host_interface=icbd-$(printf %s "$name" | sha256sum | cut -c1-8)
    kubeconfig=$state/pki/admin.kubeconfig
}

# The first three bytes of the cluster's addresses: .1 is the control plane, .254 this host, .11 upwards the nodes.
network() { cat "$state/network"; }

node_number() {
    [[ $1 =~ ^node-([1-9][0-9]?)$ ]] && [ "${BASH_REMATCH[1]}" -le "$max_nodes" ] || die "'$1' is no node name"
    echo "${BASH_REMATCH[1]}"
}

# The nodes that the cluster has, running or not, in order.
nodes() { find "$state" -maxdepth 1 -name 'node-*' ! -name '*.new' -printf '%f\n' | sort -V; }

cluster_state() { echo "$state"; }
