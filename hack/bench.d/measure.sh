# shellcheck shell=bash
# What one contender costs: time, the whole machine's processors, bytes on the wire; and a JSON line of it.

# Sets `busy`: ticks for which the machine's processors worked since it started, kernel threads included.
read_busy() {
    local user nice system irq softirq
    read -r _ user nice system _ _ irq softirq _ </proc/stat
    busy=$((user + nice + system + irq + softirq))
}

# Sets `wire`: bytes that went over the loopback, which nobody else uses; headers and acknowledgements included.
read_wire() {
    local name
    while read -r name wire _; do [ "$name" != lo: ] || return 0; done </proc/net/dev
}

# elapsed FROM TO: seconds between two values of EPOCHREALTIME.
elapsed() { awk -v from="$1" -v to="$2" 'BEGIN { printf "%.4f", to - from }'; }

# measure CONTENDER ROUND: has it bring $snapshot to the target.
measure() {
    local busy wire busy_before wire_before from to synced
    prepare "$1"
    cool_down
    printf '    %s round %s %s: ' "$pool/$change" "$2" "$1" >&2
    read_wire
    wire_before=$wire
    read_busy
    busy_before=$busy
    from=$EPOCHREALTIME
    contend "$1" >/run/answer
    to=$EPOCHREALTIME
    read_busy
    read_wire
    # Shows who says to be done too early.
    sync -f "$target_pool"
    synced=$EPOCHREALTIME
    say "$(elapsed "$from" "$to") s"
    case $1 in
        floor) wire=null ;;
        pipe:*) wire=$(stream_bytes "${1#*:}") ;;
        *) wire=$((wire - wire_before)) ;;
    esac
    record "$1" "$2" "$(elapsed "$from" "$to")" "$((busy - busy_before))" "$wire" "$(elapsed "$to" "$synced")"
}

# record CONTENDER ROUND SECONDS TICKS WIRE UNSYNCED: a line to $results, if the case is asked for. What the contender
# says of itself, in JSON, is added.
record() {
    [[ " $cases " == *" $pool/$change "* ]] || return 0
    jq -nc --slurpfile answer /run/answer --arg pool "$pool" --arg change "$change" --arg contender "$1" \
        --argjson round "$2" --argjson seconds "$3" --argjson ticks "$4" --argjson wire "$5" --argjson unsynced "$6" \
        --argjson hertz "$(getconf CLK_TCK)" \
        '{$pool, $change, $contender, $round, $seconds, cpuSeconds: ($ticks / $hertz), wireBytes: $wire,
          unsyncedSeconds: $unsynced, answer: $answer[0]}' >>"$results"
}
