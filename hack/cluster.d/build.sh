# shellcheck shell=bash
# The programs of the cluster, built once from Go modules (hack/kubernetes) and cached.

module_version() { awk -v module="$1" '$1 == module { print $2 }' "$here/kubernetes/go.mod" | head -n 1; }

programs_key() { echo "kubernetes-$(content_key hack/kubernetes hack/cluster.d/build.sh)-$(uname -m)"; }

cluster_bin() {
    cluster_build
    echo "$cache/$(programs_key)"
}

cluster_build() {
    local key
    key=$(programs_key)
    [ -d "$cache/$key" ] || step "build Kubernetes, etcd, CoreDNS and helm (minutes, once)" cached "$key" build_programs
}

build_programs() {
    local bin=$1 flags='-s -w' helm=helm.sh/helm/v4 package server
    command -v go >/dev/null || die "Go is needed to build the cluster's programs: https://go.dev/doc/install"
    # What the projects' own builds tell their programs: a kubelet that does not know its version cannot join, and helm
    # takes a chart's kubeVersion for unmet.
    flags+=" -X k8s.io/component-base/version.gitVersion=$(module_version k8s.io/kubernetes)"
    flags+=" -X $helm/internal/version.version=$(module_version $helm)"
    for package in k8s.io/component-base/version.git $helm/internal/version.kubeClientVersion \
        $helm/pkg/chart/common.k8sVersion $helm/pkg/chart/v2/lint/rules.k8sVersion; do
        flags+=" -X ${package}Major=1 -X ${package}Minor=$(module_version k8s.io/kubernetes | cut -d. -f2)"
    done
    # One `go build` for all: what the programs share is compiled once, and they are linked side by side.
    (
        cd "$here/kubernetes" || exit
        CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags="$flags" -o "$bin/" \
            ./... k8s.io/kubernetes/cmd/kubectl $helm/cmd/helm
    )
    for server in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet; do
        ln -s kube "$bin/$server"
    done
    pause_image "$bin/pause" "$bin/pause.tar"
}

# pause_image PROGRAM TAR: the image of every pod's sandbox, in the format of `docker save`.
pause_image() {
    local program=$1 tar=$2 dir digest
    dir=$(mktemp -d)
    tar -cf "$dir/layer.tar" --mtime=@0 --owner=0 --group=0 -C "$(dirname "$program")" --transform 's,.*,pause,' \
        "$(basename "$program")"
    digest=$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)
    cat >"$dir/config.json" <<JSON
{"architecture":"$(go env GOARCH)","os":"linux","config":{"Entrypoint":["/pause"]},
 "rootfs":{"type":"layers","diff_ids":["sha256:$digest"]}}
JSON
    echo '[{"Config":"config.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]' >"$dir/manifest.json"
    tar -cf "$tar" -C "$dir" manifest.json config.json layer.tar
    rm -r "$dir"
}
