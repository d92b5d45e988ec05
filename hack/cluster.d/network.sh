# shellcheck shell=bash
# The cluster's wires: a bridge in the control plane's network namespace, a veth from it to each node, one to this host.
# There is no way out to any other network, and a name that nobody loaded is never pulled from anywhere.

# choose_network: picks the cluster's /24 out of 198.18.0.0/15, which is set aside for tests (RFC 2544): the one that
# follows from the name, or the next that no other cluster and no route of this host uses.
choose_network() {
    local slot tries candidate
    slot=$((16#$(printf %s "$name" | sha256sum | cut -c1-4) % 512))
    for ((tries = 0; tries < 512; tries++)); do
        candidate=198.$((18 + slot / 256)).$((slot % 256))
        if network_is_free "$candidate"; then
            echo "$candidate" >"$state/network"
            return
        fi
        slot=$(((slot + 1) % 512))
    done
    die "no free /24 left in 198.18.0.0/15"
}

network_is_free() {
    local other
    for other in "$clusters"/*/network; do
        [ "$other" = "$state/network" ] || [ ! -f "$other" ] || [ "$(<"$other")" != "$1" ] || return 1
    done
    [ -z "$(ip -4 route show table all to match "$1.1" | grep -v ^default)" ] &&
        [ -z "$(ip -4 route show table all to root "$1.0/24")" ]
}

# connect_host: the one veth that lets this host in.
connect_host() {
    local control_plane
    control_plane=$(init_process control-plane)
    ip link add "$host_interface" type veth peer name host netns "$control_plane"
    ip address add "$(network).254/24" dev "$host_interface"
    ip link set "$host_interface" up
    await 10 "the control plane's bridge" nsenter --target "$control_plane" --net ip link set host master cluster up
}

# connect_node NODE: node-init waits for its end of this veth.
connect_node() {
    local control_plane node hardware
    control_plane=$(init_process control-plane)
    node=$(init_process "$1")
    # The same after each start, since the others remember it.
    hardware=$(printf '02:00:00:00:01:%02x' "$(node_number "$1")")
    # What a node leaves behind when its power is cut goes a moment later; its wire must be gone at once.
    nsenter --target "$control_plane" --net ip link delete "$1" 2>/dev/null || true
    nsenter --target "$control_plane" --net ip link add "$1" type veth \
        peer name eth0 address "$hardware" netns "$node"
    nsenter --target "$control_plane" --net ip link set "$1" master cluster up
}
