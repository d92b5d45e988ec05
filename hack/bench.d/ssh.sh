# shellcheck shell=bash
# A private sshd on the loopback of the bench's own network, and a client that knows it. Both read their usual files in
# /etc/ssh, which is another directory here; the host's is not seen.

start_ssh() {
    local dir=/run/ssh home
    mkdir -p "$dir" /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$dir/ssh_host_ed25519_key"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/client"
    cp "$dir/client.pub" "$dir/authorized_keys"
    echo "127.0.0.1 $(cat "$dir/ssh_host_ed25519_key.pub")" >"$dir/ssh_known_hosts"
    # As Debian installs it, but for where keys are.
    cat >"$dir/sshd_config" <<'CONFIG'
ListenAddress 127.0.0.1
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
KbdInteractiveAuthentication no
UsePAM yes
CONFIG
    # AES-GCM is its fastest where processors help with AES; by default it would take ChaCha20-Poly1305.
    cat >"$dir/ssh_config" <<'CONFIG'
IdentityFile /etc/ssh/client
StrictHostKeyChecking yes
BatchMode yes
Ciphers ^aes128-gcm@openssh.com
CONFIG
    mount --bind "$dir" /etc/ssh
    # What root configured for itself on this machine is not what is measured.
    home=$(getent passwd 0 | cut -d: -f6)
    [ ! -d "$home/.ssh" ] || mount -t tmpfs tmpfs "$home/.ssh"
    ip link set lo up
    # It wants to be called by its whole path.
    "$(command -v sshd)"
    await 10 sshd on_target true
}

on_target() { ssh 127.0.0.1 "$@"; }
