{{/* At most 63 characters, ten of them for "-dashboard". */}}
{{- define "widefield.name" -}}
{{ $chart := .Values.nameOverride | default .Chart.Name }}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) }}
{{- .Values.fullnameOverride | default $name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "widefield.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "widefield.spread" -}}
labelSelector:
  matchLabels: {{- include "widefield.selector" . | nindent 4 }}
matchLabelKeys: [pod-template-hash]  # else a roll-out counts the pods that it replaces
{{- end }}

{{/* What the restricted Pod Security Standard asks of each container. */}}
{{- define "widefield.unprivileged" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "widefield.labels" -}}
{{ include "widefield.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "widefield.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Not empty if HTTP is served outside the pod. */}}
{{- define "widefield.http" -}}
{{ if and .Values.service.http (not .Values.tls.secretName) }}true{{ end }}
{{- end }}

{{- define "widefield.probe" -}}
exec:
  command: [/opt/widefield/probe.py, {{ .question }}]
timeoutSeconds: {{ .timeout }}
{{- end }}

{{/* Variables that extraEnv must not set -> the value to use instead. */}}
{{- define "widefield.values" -}}
WIDEFIELD_MODELS: modelRepository
WIDEFIELD_HTTP_HOST: service.http
WIDEFIELD_MANAGEMENT_TOKEN: managementToken
WIDEFIELD_TLS_CERT: tls
WIDEFIELD_TLS_KEY: tls
WIDEFIELD_TLS_CLIENT_CA: tls
{{- end }}

{{/* A list without duplicates; WIDEFIELD_GPU in extraEnv replaces the chart's. */}}
{{- define "widefield.env" -}}
- {name: WIDEFIELD_DRAIN_SECONDS, value: {{ .Values.shutdown.drainSeconds | quote }}}
- {name: WIDEFIELD_GPU, value: {{ gt (int .Values.gpu.count) 0 | quote }}}
{{- if not (include "widefield.http" .) }}
- {name: WIDEFIELD_HTTP_HOST, value: 127.0.0.1}
{{- end }}
{{- with .Values.managementToken }}
{{- if .secretName }}
- name: WIDEFIELD_MANAGEMENT_TOKEN
  valueFrom: {secretKeyRef: {name: {{ quote .secretName }}, key: {{ quote .key }}}}
{{- end }}
{{- end }}
{{- with .Values.tls }}
{{- if and .clientCertificates (not .secretName) }}
{{- fail "tls.clientCertificates is true, but tls.secretName is empty: name the secret, or nothing is encrypted" }}
{{- end }}
{{- if .secretName }}
- {name: WIDEFIELD_TLS_CERT, value: /tls/tls.crt}
- {name: WIDEFIELD_TLS_KEY, value: /tls/tls.key}
{{- if .clientCertificates }}
- {name: WIDEFIELD_TLS_CLIENT_CA, value: /tls/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
