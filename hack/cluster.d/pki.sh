# shellcheck shell=bash
# Certificates and kubeconfigs of a cluster: one authority, one certificate for each program and node. Elliptic keys,
# because they are made at once.

make_authority() {
    mkdir -p "$state/pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=kubernetes \
        -keyout "$state/pki/ca.key" -out "$state/pki/ca.crt" 2>/dev/null ||
        die "openssl could not make the cluster's authority in $state/pki"
    openssl ecparam -name prime256v1 -genkey -noout -out "$state/pki/service-accounts.key"
}

# make_certificate FILE SUBJECT [NAMES]: NAMES as in subjectAltName.
make_certificate() {
    local file=$state/pki/$1
    [ ! -f "$file.crt" ] || return 0
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$file.key" 2>/dev/null |
        openssl x509 -req -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" -days 3650 -out "$file.crt" \
            -set_serial "0x$(openssl rand -hex 16)" -extfile <(echo "subjectAltName=${3:-DNS:localhost}") 2>/dev/null
}

# make_kubeconfig FILE CERTIFICATE: everything embedded, so that the file can be carried away.
make_kubeconfig() {
    cat >"$1" <<YAML
apiVersion: v1
kind: Config
current-context: icbd-$name
contexts: [{name: icbd-$name, context: {cluster: icbd-$name, user: $2}}]
clusters:
- name: icbd-$name
  cluster:
    server: https://$(network).1:6443
    certificate-authority-data: $(base64 -w0 "$state/pki/ca.crt")
users:
- name: $2
  user:
    client-certificate-data: $(base64 -w0 "$state/pki/$2.crt")
    client-key-data: $(base64 -w0 "$state/pki/$2.key")
YAML
    chmod 600 "$1"
}
