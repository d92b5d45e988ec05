# shellcheck shell=bash
# What the scripts in hack/ share: saying what runs and how long it took, waiting, Debian packages, the cache.
# To be sourced. Everything said goes to stderr: stdout is for answers.

# The checkout's root.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What is built once and kept; safe to delete at any time.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/icbd

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# step NAME COMMAND…: says that NAME runs, runs it, says how long it took. When it fails the script ends, saying so.
# Steps may hold steps.
step() {
    local name=$1 started=$EPOCHREALTIME outer_step=$running_step outer_since=$running_since
    shift
    say "==> $name"
    running_step=$name running_since=$started
    "$@"
    running_step=$outer_step running_since=$outer_since
    say "    $name: $(seconds_since "$started") s"
}

seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'; }

running_step='' running_since=0 exit_commands=()

# at_exit COMMAND: evaluates COMMAND when the script ends, however it ends, the last given first.
at_exit() { exit_commands=("$1" "${exit_commands[@]}"); }

on_exit() {
    local status=$? command
    if [ -n "$running_step" ]; then
        say "!!! $running_step: failed after $(seconds_since "$running_since") s (exit status $status)"
    fi
    for command in "${exit_commands[@]}"; do eval "$command"; done
}
trap on_exit EXIT

# await SECONDS WHAT COMMAND…: repeats COMMAND until it succeeds; fails, naming WHAT, when SECONDS have passed.
await() {
    local limit=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -gt "$deadline" ]; then
            say "error: waited $limit s for $what"
            return 1
        fi
        sleep 0.1
    done
}

# need_packages PACKAGE…: installs the Debian packages that are missing.
need_packages() {
    local package missing=()
    if ! command -v dpkg-query >/dev/null; then
        say "not Debian: make sure that these are installed: $*"
        return
    fi
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    step "Debian packages: ${missing[*]}" install_packages "${missing[@]}"
}

install_packages() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    # The lists may be absent or old; refreshing them is slow, so it comes second.
    "${apt[@]}" install --no-install-recommends "$@" >&2 && return
    "${apt[@]}" update >&2
    "${apt[@]}" install --no-install-recommends "$@" >&2
}

# content_key PATH…: a short hash of the names and contents of the files in PATHs, which are relative to the checkout.
content_key() {
    (cd "$root" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}

# cached NAME COMMAND…: makes the directory $cache/NAME, unless it exists, by running COMMAND with the name of an empty
# directory as its last argument. It gets its name only when COMMAND is done: a killed build leaves nothing half-made.
# Whoever asks for it meanwhile waits.
cached() {
    local name=$1 dir=$cache/$1 lock
    shift
    [ ! -d "$dir" ] || return 0
    mkdir -p "$cache"
    exec {lock}>"$cache/$name.lock"
    flock "$lock"
    if [ ! -d "$dir" ]; then
        rm -rf "$dir".new-*
        local new
        new=$(mktemp -d "$dir.new-XXXXXX")
        chmod 755 "$new"
        "$@" "$new"
        mv -T "$new" "$dir"
    fi
    exec {lock}>&-
}
