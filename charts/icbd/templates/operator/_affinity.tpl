{{/*
Where the operator goes: operator.affinity as it is, else by operator.avoidPoolNodes away from the nodes that the
agents select. Takes the root.
*/}}
{{- define "icbd.operatorAffinity" -}}
{{- $operator := .Values.operator -}}
{{- $pools := .Values.agent.nodeSelector -}}
{{- if $operator.affinity -}}
{{- toYaml $operator.affinity -}}
{{- else if and (eq $operator.avoidPoolNodes "Required") (not $pools) -}}
{{- fail "operator.avoidPoolNodes is Required, and agent.nodeSelector is empty: every node holds a pool, none is left for the operator" -}}
{{- else if eq $operator.avoidPoolNodes "Required" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    # A node that lacks any one of the agents' labels runs no agent.
    nodeSelectorTerms:
      {{- range $label, $value := $pools }}
      - matchExpressions:
          - key: {{ $label }}
            operator: NotIn
            values: [{{ $value | quote }}]
      {{- end }}
{{- else if and (eq $operator.avoidPoolNodes "Preferred") $pools -}}
nodeAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    {{- range $label, $value := $pools }}
    - weight: 100
      preference:
        matchExpressions:
          - key: {{ $label }}
            operator: NotIn
            values: [{{ $value | quote }}]
    {{- end }}
{{- end -}}
{{- end -}}
