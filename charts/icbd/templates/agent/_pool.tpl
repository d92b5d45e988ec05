{{/*
The directory that holds the pool, which is mounted rather than the pool: only from above is it seen that a disk is
mounted or unmounted later. Takes the values of the agent.
*/}}
{{- define "icbd.poolParent" -}}
{{- $path := .pool.hostPath -}}
{{- if regexMatch "/[.][.]?(/|$)" $path -}}
{{- fail (printf "agent.pool.hostPath is %s: write it without . and .." $path) -}}
{{- else if eq (dir $path) "/" -}}
{{- fail (printf "agent.pool.hostPath is %s: the directory above the pool is mounted into the agent's container, and that must not be /; mount the pool in a directory of its own, such as /var/lib/icbd/pool" $path) -}}
{{- else if regexMatch "^/(bin|dev|etc|lib|lib64|proc|sbin|sys|usr)/" $path -}}
{{- fail (printf "agent.pool.hostPath is %s: the directory above the pool is mounted into the agent's container under the same path, where this one would hide what the agent needs; mount the pool elsewhere, such as /var/lib/icbd/pool" $path) -}}
{{- end -}}
{{- dir $path -}}
{{- end -}}
