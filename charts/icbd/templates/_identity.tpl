{{/*
What certificates are called after, and who vouches for them. Each takes the root.
*/}}

{{- define "icbd.trustDomain" -}}
{{- .Values.identity.trustDomain | default (printf "%s.icbd" .Release.Namespace) -}}
{{- end -}}

{{/* The Secret that holds the certificate authority, and the ConfigMap that says whom to believe. */}}
{{- define "icbd.caSecret" -}}
{{- .Values.identity.caSecret | default "icbd-ca" -}}
{{- end -}}

{{- define "icbd.trustConfigMap" -}}
icbd-trust
{{- end -}}
