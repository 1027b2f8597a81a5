{{- define "althing.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "althing.selector" -}}
app.kubernetes.io/name: althing-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "althing.labels" -}}
{{ include "althing.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
