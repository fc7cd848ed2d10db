{{/* The name of all objects: the release's name, with the chart's name unless it contains that already. */}}
{{- define "whisper.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "whisper.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "whisper.labels" -}}
{{ include "whisper.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Mistakes that the schema cannot state in words. Each template of a pod includes this. */}}
{{- define "whisper.check" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.source "image") $model.name -}}
{{- fail (printf "model.name is %q, but model.source is image, which serves the model inside the image: set model.source to download or claim, or leave model.name empty" $model.name) -}}
{{- end -}}
{{- if and (ne $model.source "image") (not $model.name) -}}
{{- fail (printf "model.source is %s: set model.name to the model's name, such as base or large-v3-turbo" $model.source) -}}
{{- end -}}
{{- if and (eq $model.source "claim") (not $model.claim) -}}
{{- fail "model.source is claim: set model.claim to the name of the PersistentVolumeClaim that holds the model" -}}
{{- end -}}
{{- if and (eq .Values.device "cuda") (not (index (.Values.resources.limits | default dict) "nvidia.com/gpu")) -}}
{{- fail "device is cuda, but resources.limits has no nvidia.com/gpu: use -f values-gpu.yaml, or set device to cpu" -}}
{{- end -}}
{{- $own := list "WHISPER_GATEWAY_ADDRESS" "TS_INFERENCE_ADDRESS" "TS_MANAGEMENT_ADDRESS" "TS_METRICS_ADDRESS" "WHISPER_GRACE_SECONDS" -}}
{{- $own = concat $own (list "WHISPER_DEVICE" "WHISPER_THREADS" "WHISPER_STATE_DIR" "WHISPER_DATA_DIR" "TS_MODEL_STORE" "WHISPER_CONVERTED_DIR") -}}
{{- $own = concat $own (list "WHISPER_MODEL" "WHISPER_MODELS_DIR" "WHISPER_API_KEYS_FILE" "WHISPER_ALLOW_ANONYMOUS") -}}
{{- range .Values.env -}}
{{- if has .name $own -}}
{{- fail (printf "env must not set %s: the chart sets it, by its other values" .name) -}}
{{- end -}}
{{- end -}}
{{- if not (or .Values.apiKeys.secret .Values.apiKeys.anonymous) -}}
{{- $how := "set apiKeys.secret, or apiKeys.anonymous=true where something else decides who may use it" -}}
{{- if .Values.ingress.enabled -}}
{{- fail (printf "ingress.enabled publishes the server, which has no API keys: %s" $how) -}}
{{- end -}}
{{- if ne .Values.service.type "ClusterIP" -}}
{{- fail (printf "service.type %s publishes the server, which has no API keys: %s" .Values.service.type $how) -}}
{{- end -}}
{{- if not .Values.networkPolicy.enabled -}}
{{- fail (printf "without networkPolicy.enabled each pod of the cluster reaches the server, which has no API keys: %s" $how) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.data.size (or (ne .Values.autoscaling.kind "none") (gt (int .Values.replicas) 1)) -}}
{{- fail "data.size keeps the jobs on a volume for one pod: set replicas to 1 and autoscaling.kind to none, or leave data.size empty" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %v, more than autoscaling.maxReplicas, %v" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) -}}
{{- end -}}
{{- end -}}

{{/* Without root, without capabilities, on a read-only root: Pod Security Standard "restricted". */}}
{{- define "whisper.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "whisper.autoscalerBehavior" -}}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies:
    - type: Pods
      value: 1
      periodSeconds: 60
{{- end -}}

{{/* A PersistentVolumeClaim: the root context, the name's ending, the size, the access mode, the storage class. */}}
{{- define "whisper.claim" }}
{{- $root := index . 0 }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "whisper.fullname" $root }}-{{ index . 1 }}
  labels:
    {{- include "whisper.labels" $root | nindent 4 }}
spec:
  accessModes: [{{ index . 3 }}]
  {{- with index . 4 }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ index . 2 }}
{{- end -}}
