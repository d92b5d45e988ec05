{{/*
What the operator's and the agents' NetworkPolicies have in common. Takes the root.
*/}}

{{/* A kubelet's probes need no rule: what comes from a pod's own node is always let in. */}}
{{- define "icbd.metricsIngress" -}}
# Health and metrics: read-only.
- ports:
    - port: 9440
  {{- with .Values.networkPolicy.metricsFrom }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
