# shellcheck shell=bash
# The control plane's files and its start. What runs in it: control-plane-init.

prepare_control_plane() {
    local address
    address=$(network).1
    mkdir -p "$state/control-plane" "$state/images"
    cp "$bin/pause.tar" "$state/images/"
    make_authority
    # 10.96.0.1 is the Service `kubernetes`.
    make_certificate apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:10.96.0.1,IP:$address"
    make_certificate apiserver-to-kubelet /O=system:masters/CN=apiserver-to-kubelet
    make_certificate controller-manager /CN=system:kube-controller-manager
    make_certificate scheduler /CN=system:kube-scheduler
    make_certificate proxy /CN=system:kube-proxy
    make_certificate coredns /CN=system:coredns
    make_certificate admin /O=system:masters/CN=admin
    local program
    for program in controller-manager scheduler proxy coredns admin; do
        make_kubeconfig "$state/pki/$program.kubeconfig" "$program"
    done
    # Every change, who made it and when; no bodies.
    cat >"$state/control-plane/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, verbs: [create, update, patch, delete, deletecollection]}
- {level: None}
YAML
    cat >"$state/control-plane/Corefile" <<COREFILE
.:53 {
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {
        kubeconfig $state/pki/coredns.kubeconfig
    }
}
COREFILE
}

start_control_plane() {
    start_part control-plane "$here/cluster.d/control-plane-init" "$state" "$bin" "$(network).1"
    connect_host
}

# allow_dns: CoreDNS is no pod and has a user of its own, which Kubernetes knows nothing of.
allow_dns() {
    in_kubectl create clusterrole system:coredns --verb=list,watch \
        --resource=services,namespaces,pods,endpointslices.discovery.k8s.io >/dev/null
    in_kubectl create clusterrolebinding system:coredns --clusterrole=system:coredns --user=system:coredns >/dev/null
}

in_kubectl() { "$bin/kubectl" --kubeconfig "$kubeconfig" "$@"; }
