# shellcheck shell=bash
# The two pools: loop files in memory; the source is made once a kind of pool, the target anew for each contender. The
# loop devices end with their mounts.

# What is sent, in this order: each snapshot is an increment on the one before.
changes=(full 64M 1M)
# Pieces of 64 KiB that are overwritten for each; the image itself is what is new in the first.
declare -A pieces=([64M]=1024 [1M]=16)

# Mount options a kind of pool. Discarding would hand pages of the files back to the kernel, which no disk does, and the
# next contender would pay for their allocation.
declare -A mount_options=([plain]="noatime,nodiscard" [zstd]="noatime,nodiscard,compress=zstd:1")

source_pool=/run/source target_pool=/run/target

# snapshot_of CHANGE: called as btrbk calls snapshots, because it takes no others.
snapshot_of() { echo "$source_pool/snapshots/$1.20260101"; }

# make_memory SIZE: the files of both pools. All of the target's file is written once: no contender pays for its pages.
make_memory() {
    mount -t tmpfs -o mode=755,size=100% tmpfs /run
    mkdir "$source_pool" "$target_pool"
    truncate -s "$1" "$source_pool.img"
    head -c "$1" /dev/zero >"$target_pool.img"
}

make_file_system() { mkfs.btrfs -q -f -K "$1.img" >/dev/null; }

mount_pools() {
    local side
    for side in "$source_pool" "$target_pool"; do
        mount -o "loop,${mount_options[$pool]}" "$side.img" "$side"
    done
}

umount_pools() { umount "$source_pool" "$target_pool"; }

# Nothing of the pools is in memory afterwards, nothing is waiting to be written; programs stay in memory.
cool_down() {
    umount_pools
    mount_pools
}

# make_source DISK: the disk image and its snapshots, on new pools of the kind $pool, which stay mounted.
make_source() {
    local change count live=$source_pool/live
    make_file_system "$source_pool"
    make_file_system "$target_pool"
    mount_pools
    btrfs subvolume create "$live" >/dev/null
    mkdir "$source_pool/snapshots"
    cp --sparse=always "$1" "$live/disk.img"
    for change in "${changes[@]}"; do
        count=${pieces[$change]:-}
        [ -z "$count" ] || "$tools/scatter" "$live/disk.img" "$count" "$count" >"/run/$change.ranges"
        btrfs subvolume snapshot -r "$live" "$(snapshot_of "$change")" >/dev/null
    done
}

# An empty target; the same file system structures at the same places each time.
make_target() {
    umount_pools
    make_file_system "$target_pool"
    mount_pools
}
