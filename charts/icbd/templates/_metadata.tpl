{{/*
Labels and annotations of objects and pods. Each takes (dict "root" $ "component" "operator|agent").
*/}}

{{/* What a Deployment, DaemonSet or Service selects its pods by: never changes within a release. */}}
{{- define "icbd.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of every object and every pod. */}}
{{- define "icbd.labels" -}}
{{ include "icbd.selector" . }}
app.kubernetes.io/part-of: icbd
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{/* What an object's metadata holds beside its name; "labels" and "annotations" of the dict may add some. */}}
{{- define "icbd.metadata" -}}
labels:
  {{- include "icbd.labels" . | nindent 2 }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
  {{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The metadata of a component's pods. */}}
{{- define "icbd.podMetadata" -}}
{{- $pod := index .root.Values .component -}}
labels:
  {{- include "icbd.labels" . | nindent 2 }}
  {{- with merge (dict) $pod.podLabels .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $pod.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
