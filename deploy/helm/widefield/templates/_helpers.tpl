{{/* Of 63 characters "-dashboard" takes ten. */}}
{{- define "widefield.name" -}}
{{ $chart := .Values.nameOverride | default .Chart.Name }}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) }}
{{- .Values.fullnameOverride | default $name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "widefield.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
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

{{/* Not empty where HTTP is served beyond the pod. */}}
{{- define "widefield.http" -}}
{{ if and .Values.service.http (not .Values.tls.secretName) }}true{{ end }}
{{- end }}

{{- define "widefield.probe" -}}
exec:
  command: [/opt/widefield/probe.py, {{ .question }}]
timeoutSeconds: {{ .timeout }}
{{- end }}
