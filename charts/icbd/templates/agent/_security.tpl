{{/*
The security context of an agent's container. Takes the values of the agent.
*/}}
{{- define "icbd.agentSecurityContext" -}}
# Files of images belong to anybody, and btrfs snapshots are an administrator's act.
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
allowPrivilegeEscalation: {{ .privileged }}
{{- if .privileged }}
# Neither seccomp nor AppArmor is applied to it then.
privileged: true
{{- else }}
capabilities:
  drop: [ALL]
  add:
    # To give what is received its owners, modes and attributes, and to read and write it whatever those say.
    - CHOWN
    - DAC_OVERRIDE
    - FOWNER
    - FSETID
    # To open a file by its inode: the path that a send stream gives can be another file's by now.
    - DAC_READ_SEARCH
    # Device nodes, and capabilities of programs, in images of whole systems.
    - MKNOD
    - SETFCAP
    # btrfs: send, receive, deleting a snapshot, marking where it came from; trusted.* attributes.
    - SYS_ADMIN
seccompProfile:
  type: RuntimeDefault
{{- with .appArmorProfile }}
appArmorProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
