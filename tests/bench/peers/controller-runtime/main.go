// A pod mutator as a Go team would write it, with controller-runtime and nothing else: what Reveille's webhook is measured
// beside. It does the same to a restored pod: the init container of the annotations goes behind restore-wait, the post
// hook's annotations move into a plan, and a label puts the pod into the queue. It does less: one form of hook, no rules of
// Restores, no checks.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const (
	initPrefix = "init.hook.restore.velero.io/"
	postPrefix = "post.hook.restore.velero.io/"
)

type plan struct {
	Restore   string            `json:"restore"`
	PlannedAt time.Time         `json:"plannedAt"`
	Init      []string          `json:"init,omitempty"`
	Moved     map[string]string `json:"moved,omitempty"`
}

type mutator struct{ decoder admission.Decoder }

func (m *mutator) Handle(_ context.Context, request admission.Request) admission.Response {
	pod := &corev1.Pod{}
	if err := m.decoder.Decode(request, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	restore := pod.Labels["velero.io/restore-name"]
	if restore == "" {
		return admission.Allowed("not restored")
	}
	made := plan{Restore: restore, PlannedAt: time.Now().UTC(), Moved: map[string]string{}}
	if image := pod.Annotations[initPrefix+"container-image"]; image != "" {
		container := corev1.Container{Name: pod.Annotations[initPrefix+"container-name"], Image: image}
		if err := json.Unmarshal([]byte(pod.Annotations[initPrefix+"command"]), &container.Command); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		waits := func(c corev1.Container) bool { return c.Name == "restore-wait" }
		at := slices.IndexFunc(pod.Spec.InitContainers, waits) + 1
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, at, container)
		made.Init = append(made.Init, container.Name)
	}
	for key, value := range pod.Annotations {
		if strings.HasPrefix(key, postPrefix) {
			made.Moved[key] = value
			delete(pod.Annotations, key)
		}
	}
	if len(made.Init) == 0 && len(made.Moved) == 0 {
		return admission.Allowed("no hooks")
	}
	text, err := json.Marshal(made)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	pod.Annotations["reveille.dev/plan"] = string(text)
	pod.Labels["reveille.dev/hooks"] = "planned"
	mutated, err := json.Marshal(pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, mutated)
}

func main() {
	host := flag.String("host", "127.0.0.1", "address")
	port := flag.Int("port", 9443, "port")
	certificates := flag.String("cert-dir", "", "folder with tls.crt and tls.key")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	server := webhook.NewServer(webhook.Options{Host: *host, Port: *port, CertDir: *certificates})
	server.Register("/mutate/pods", &admission.Webhook{Handler: &mutator{decoder: admission.NewDecoder(scheme)}})
	if err := server.Start(ctrl.SetupSignalHandler()); err != nil {
		panic(err)
	}
}
