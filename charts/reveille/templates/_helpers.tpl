{{/* The chart's name, for labels. */}}
{{- define "reveille.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/*
The name of all objects. Cut at 50 characters, so that names derived from it (Secret <fullname>-ca, Service
<fullname>-metrics) stay within the 63 of a Service.
*/}}
{{- define "reveille.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "reveille.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Secret with the CA. The waiter makes it; the chart never does. */}}
{{- define "reveille.caSecret" -}}
{{- include "reveille.fullname" . -}}-ca
{{- end -}}

{{/* Lease by which one waiter leads. The waiter makes it. */}}
{{- define "reveille.waiterLease" -}}
{{- include "reveille.fullname" . -}}-waiter
{{- end -}}

{{/* Secret with the certificate, in the modes that have one. */}}
{{- define "reveille.tlsSecret" -}}
{{- if eq .Values.certificates.mode "existing" -}}
{{- required "certificates.existing.secretName must be set when certificates.mode is existing" .Values.certificates.existing.secretName -}}
{{- else -}}
{{- include "reveille.fullname" . }}-webhook-tls
{{- end -}}
{{- end -}}

{{/* ConfigMap that carries the pause of everything. */}}
{{- define "reveille.pauseConfigMap" -}}
{{- include "reveille.fullname" . -}}-pause
{{- end -}}

{{- define "reveille.selectorLabels" -}}
app.kubernetes.io/name: {{ include "reveille.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/*
Labels of every object, pods included. Velero must not back Reveille up: it is installed before a restore, never restored
by one. A restored webhook configuration would carry an old caBundle, and a restored pod would be a second waiter.
*/}}
{{- define "reveille.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "reveille.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
velero.io/exclude-from-backup: "true"
{{- end -}}

{{/* The actions controller's pods. */}}
{{- define "reveille.actionsSelectorLabels" -}}
app.kubernetes.io/name: {{ include "reveille.name" . }}-actions
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "reveille.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "reveille.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be set when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The webhook's account, which can only read. */}}
{{- define "reveille.webhookAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-webhook" (include "reveille.fullname" .)) .Values.serviceAccount.webhookName -}}
{{- else -}}
{{- required "serviceAccount.webhookName must be set when serviceAccount.create is false" .Values.serviceAccount.webhookName -}}
{{- end -}}
{{- end -}}

{{- define "reveille.image" -}}
{{- $name := .Values.image.repository -}}
{{- with .Values.image.registry -}}
{{- $name = printf "%s/%s" . $name -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Arguments that both containers understand in the same way. */}}
{{- define "reveille.sharedArgs" -}}
- --namespace=$(POD_NAMESPACE)
- --service={{ include "reveille.fullname" . }}
- --mode={{ .Values.velero.mode }}
{{- range .Values.markerLabels }}
- --marker-label={{ . }}
{{- end }}
{{- end -}}

{{- define "reveille.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: REVEILLE_LOG
  value: {{ .Values.log.level | quote }}
- name: REVEILLE_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
{{- end -}}

{{/* The admission policies, NAME=ACTION in each line. */}}
{{- define "reveille.policyActions" -}}
{{- $root := . -}}
{{- with .Values.policies -}}
{{- range list (list "pod-marks" .podMarks) (list "binding-marks" .podMarks) (list "run-orders" .runOrders) (list "restore-orders" .runOrders) (list "hook-authors-pods" .hookAuthors.action) (list "hook-authors-workloads" .hookAuthors.action) (list "hook-authors-cronjobs" .hookAuthors.action) -}}
{{- if ne (last .) "Off" }}
- {{ include "reveille.fullname" $root }}-{{ join "=" . }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Their names. */}}
{{- define "reveille.policyNames" -}}
{{- range include "reveille.policyActions" . | fromYamlArray }}
- {{ splitList "=" . | first }}
{{- end -}}
{{- end -}}
