# shellcheck shell=bash
# Who is measured. A contender brings $snapshot from the source to the target, until it is durable there; $parent, if
# any, it has brought itself. Its name is a kind and what is chosen of the kind's options.
#
#   floor               a bare copy by two threads: floor.rs
#   pipe:1  pipe:2      btrfs send | btrfs receive, by protocol; 2 sends compressed data as it is on compressed pools
#   ssh:1   ssh:2       the same through ssh
#   btrbk               btrbk through ssh, as its example configuration has it
#   icbd[:MODE][:CODEC] icbd-agent replicate, over mutual TLS; without options as it is by default

is_contender() { [[ $1 =~ ^(floor|(pipe|ssh):[12]|btrbk|icbd(:[a-z0-9]+)*)$ ]]; }

# prepare CONTENDER: what it needs and is not part of the work.
prepare() {
    case $1 in
        floor) prepare_bare ;;
        btrbk) configure_btrbk ;;
    esac
}

# contend CONTENDER: the work. This shell adds no process to it. What is written to stdout is kept: see measure.sh.
contend() {
    case $1 in
        floor) copy_bare ;;
        pipe:*) send "${1#*:}" | btrfs receive -q "$target_pool" && sync -f "$target_pool" ;;
        ssh:*) send "${1#*:}" | on_target "btrfs receive -q '$target_pool' && sync -f '$target_pool'" ;;
        btrbk) btrbk --quiet --config /run/btrbk.conf run && sync -f "$target_pool" ;;
        icbd | icbd:*) replicate "$1" ;;
    esac
}

# send PROTOCOL: the stream of the snapshot on stdout.
send() {
    local options=(--proto "$1")
    [ -z "$parent" ] || options+=(-p "$parent")
    [ "$pool/$1" != zstd/2 ] || options+=(--compressed-data)
    btrfs send -q "${options[@]}" "$snapshot"
}

# stream_bytes PROTOCOL: how long that stream is; counted once, aside.
stream_bytes() {
    local file=/run/$pool-$change-$1.bytes
    [ -f "$file" ] || send "$1" | wc -c >"$file"
    cat "$file"
}

# A subvolume to copy into, with what the parent has.
prepare_bare() {
    local copy=$target_pool/${snapshot##*/}
    if [ -z "$parent" ]; then
        btrfs subvolume create "$copy"
    else
        btrfs subvolume snapshot "$target_pool/${parent##*/}" "$copy"
    fi >/dev/null
}

copy_bare() {
    local ranges=()
    [ -z "$parent" ] || ranges=("/run/$change.ranges")
    "$tools/floor" "$snapshot/disk.img" "$target_pool/${snapshot##*/}/disk.img" "${ranges[@]}"
}

# For the one snapshot: it is the only one of its name.
configure_btrbk() {
    cat >/run/btrbk.conf <<CONF
timestamp_format  short
ssh_identity      /etc/ssh/client
ssh_user          root
stream_buffer     256m
snapshot_dir      snapshots
snapshot_create   no

volume $source_pool
  target ssh://127.0.0.1$target_pool
  subvolume live
    snapshot_name $change
CONF
}

replicate() {
    local part arguments=()
    for part in ${1//:/ }; do
        case $part in
            icbd) ;;
            stream | extents) arguments+=(--mode "$part") ;;
            *) arguments+=(--codec "$part") ;;
        esac
    done
    "$agent" replicate --json "${arguments[@]}" "$snapshot" "$target_pool"
}
