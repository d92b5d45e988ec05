# shellcheck shell=bash
# The cgroups that hold a cluster: icbd-NAME/PART/system for the programs of the control plane or of one node, and
# beside it what that node's kubelet makes for its pods. They are how a cluster's processes are found again.
#
# Tested with version 1 beside an empty version 2 (hybrid). Version 2 alone, Debian's default, is the same code with one
# hierarchy, written after the kernel's documentation and untested.

cgroup_hierarchies() { awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts | sort -u; }

# cgroup_make PART
cgroup_make() {
    local hierarchy dir level
    for hierarchy in $(cgroup_hierarchies); do
        dir=$hierarchy
        for level in "$cgroup" "$1" system; do
            # Version 2: a child has only the controllers that its parent hands down.
            if [ -f "$dir/cgroup.subtree_control" ]; then
                sed 's/[^ ][^ ]*/+&/g' "$dir/cgroup.controllers" >"$dir/cgroup.subtree_control"
            fi
            mkdir -p "$dir/$level"
            # Version 1: a new cpuset is empty, and takes no process before it has processors and memory.
            if [ -f "$dir/$level/cpuset.mems" ] && [ ! -f "$dir/cgroup.controllers" ]; then
                cat "$dir/cpuset.cpus" >"$dir/$level/cpuset.cpus"
                cat "$dir/cpuset.mems" >"$dir/$level/cpuset.mems"
            fi
            dir=$dir/$level
        done
    done
}

# cgroup_join PART: moves the calling (sub)shell, and what it will start, there.
cgroup_join() {
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do
        echo "$BASHPID" >"$hierarchy/$cgroup/$1/system/cgroup.procs"
    done
}

# cgroup_processes [PART]: the ids of all processes in there, pods included.
cgroup_processes() {
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do
        find "$hierarchy/$cgroup/${1:-}" -name cgroup.procs -exec cat {} + 2>/dev/null || true
    done | sort -un
}

# cgroup_end [PART]: kills all processes in there and removes the cgroups.
cgroup_end() { await 60 "the processes of $name ${1:-} to end" cgroup_end_once "${1:-}"; }

cgroup_end_once() {
    local hierarchy pids
    pids=$(cgroup_processes "$1")
    if [ -n "$pids" ]; then
        # shellcheck disable=SC2086 # one argument a process
        kill -9 $pids 2>/dev/null
        return 1
    fi
    for hierarchy in $(cgroup_hierarchies); do
        [ ! -d "$hierarchy/$cgroup/$1" ] || find "$hierarchy/$cgroup/$1" -depth -type d -exec rmdir {} + || return 1
    done
}

# init_process PART: the id of the part's init; fails if the part does not run. Init is process 1 of the PID namespace
# one below ours; a container's first process is deeper.
init_process() {
    local hierarchy pid
    hierarchy=$(cgroup_hierarchies | sed -n '/pids/p;$p' | head -n 1)
    while read -r pid; do
        if awk -v level="$pid_namespaces" '/^NSpid:/ { exit !($NF == 1 && NF == level + 1) }' "/proc/$pid/status"; then
            echo "$pid"
            return
        fi
    done <"$hierarchy/$cgroup/$1/system/cgroup.procs"
    return 1
} 2>/dev/null
pid_namespaces=$(awk '/^NSpid:/ { print NF }' /proc/self/status)
