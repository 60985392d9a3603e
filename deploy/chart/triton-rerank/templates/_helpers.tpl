{{- define "triton-rerank.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "triton-rerank.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "triton-rerank.metadata" -}}
labels:
  {{- include "triton-rerank.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "triton-rerank.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- /* Requests that wait in front of the encoders, or inside them under continuous scheduling, on average (Little's law).
The ensemble's own queue is always empty. */ -}}
{{- define "triton-rerank.waiting" -}}
{{- $pods := printf "namespace=%q,pod=~\"%s-.+\"" .Release.Namespace (include "triton-rerank.fullname" .) -}}
sum(rate(nv_inference_queue_duration_us{ {{- $pods }},model=~".+-encoder"}[1m])) / 1e6 + (sum(rate(triton_rerank_waited_seconds_total{ {{- $pods }}}[1m])) or vector(0))
{{- end }}

{{- define "triton-rerank.needs" -}}
{{- if not (.context.Capabilities.APIVersions.Has .api) }}
{{- fail (printf "%s is on, but this cluster does not know %s: install its CRDs first, or leave it off" .value .api) }}
{{- end }}
{{- end }}

{{- define "triton-rerank.check" -}}
{{- $models := .Values.models }}
{{- if and (eq $models.source "pvc") (not $models.pvc.claimName) }}
{{- fail "models.source is pvc, but models.pvc.claimName is empty: name the claim that holds the model repository" }}
{{- end }}
{{- if eq $models.source "oci" }}
{{- if not (regexMatch "@sha256:[0-9a-f]{64}$" $models.oci.reference) }}
{{- fail (printf "models.oci.reference is %q: it must end with @sha256: and 64 hex digits, so that every pod serves the same files" $models.oci.reference) }}
{{- end }}
{{- if semverCompare "<1.35.0-0" .Capabilities.KubeVersion.Version }}
{{- fail (printf "models.source is oci, but this cluster is %s: image volumes need Kubernetes 1.35, an older one drops the volume without a word; use pvc" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- $scaling := .Values.autoscaling }}
{{- if and (ne $scaling.kind "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas is %d, above maxReplicas %d" (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- end }}
{{- if and (ne $scaling.kind "none") (hasKey .Values "replicas") }}
{{- fail (printf "replicas is %d and autoscaling.kind is %s: an autoscaler decides how many; set autoscaling.minReplicas and leave replicas out" (int .Values.replicas) $scaling.kind) }}
{{- end }}
{{- if and (eq $scaling.kind "keda") (not $scaling.prometheusAddress) }}
{{- fail "autoscaling.kind is keda, but autoscaling.prometheusAddress is empty: give the URL of Prometheus" }}
{{- end }}
{{- end }}
