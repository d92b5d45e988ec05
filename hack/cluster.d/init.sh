# shellcheck shell=bash
# What the two inits have in common. They are process 1 of their namespaces: when one ends, by any signal, the kernel
# ends all that runs in there. Sourced by control-plane-init and node-init.
set -euo pipefail

# let_go_of_the_host: this mount namespace began as a copy of the host's. What is copied here stays in use although the
# host lets go of it: loop devices and the network namespaces of others.
let_go_of_the_host() {
    awk '($1 ~ "^/dev/loop" || $3 == "nsfs") && $2 != "/" { print $2 }' /proc/mounts | tac |
        while read -r mounted; do umount -l "$mounted" || true; done
    mount -t tmpfs -o mode=755 tmpfs /run
}

# keep COMMAND…: runs it in the background, and again whenever it ends, as systemd would.
keep() {
    local log
    log=$logs/$(basename "$1").log
    while :; do
        "$@" >>"$log" 2>&1 || true
        echo "--- $(basename "$1") ended; starting it again" >>"$log"
        sleep 1
    done &
}
