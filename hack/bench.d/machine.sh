# shellcheck shell=bash
# What the figures were measured on and with: the first line of the results.

# describe_machine COMMIT
describe_machine() {
    local busy before used
    # Figures from a machine that does something else too are worth little; whoever reads them has to know.
    read_busy
    before=$busy
    sleep 2
    read_busy
    used=$((100 * (busy - before) / (2 * $(getconf CLK_TCK) * $(nproc))))
    [ "$used" -lt 5 ] || say "    careful: others use $used % of this machine's processors"
    jq -nc --arg commit "$1" --arg kernel "$(uname -r)" --argjson processors "$(nproc)" \
        --arg processor "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)" \
        --argjson memory "$(awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo)" --argjson usedByOthers "$used" \
        --argjson disk "$(stat -c '%s' "$disk")" --argjson content "$(($(stat -c '%b' "$disk") * 512))" \
        --arg btrfs "$(btrfs version | head -1)" --arg ssh "$(ssh -V 2>&1)" --arg btrbk "$(btrbk --version)" \
        '{$commit, $kernel, $processors, $processor, memoryBytes: $memory, usedByOthersPercent: $usedByOthers,
          diskBytes: $disk, contentBytes: $content, versions: [$btrfs, $ssh, $btrbk]}' >"$results"
}
