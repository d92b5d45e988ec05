{{/*
What the operator's and the agents' pods have in common. Each takes (dict "root" $ "component" "operator|agent").
*/}}

{{/* registry/repository:tag, or @digest where one is given. */}}
{{- define "icbd.image" -}}
{{- $image := index .root.Values.image .component -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* How pods are named, placed and ended, by values that both components have. */}}
{{- define "icbd.podSettings" -}}
{{- $pod := index .root.Values .component -}}
serviceAccountName: icbd-{{ .component }}
# The variables that Kubernetes makes of Services could be taken for settings.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $pod.terminationGracePeriodSeconds }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
