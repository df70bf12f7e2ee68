// A BackupItemAction (version 2) with an asynchronous operation, on Velero's own plugin framework: the least that makes a
// Backup WaitingForPluginOperations. It "moves" ConfigMaps with the label export: their operation ends two seconds after it was
// begun, well for export=works, badly for export=fails.
package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	api "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/framework"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
)

const duration = 2 * time.Second

func main() {
	framework.NewServer().
		RegisterBackupItemActionV2("reveille.dev/export", func(logrus.FieldLogger) (any, error) { return mover{}, nil }).
		Serve()
}

type mover struct{}

func (mover) Name() string { return "export" }

func (mover) AppliesTo() (velero.ResourceSelector, error) {
	return velero.ResourceSelector{IncludedResources: []string{"configmaps"}, LabelSelector: "export"}, nil
}

func (mover) Execute(item runtime.Unstructured, _ *api.Backup) (runtime.Unstructured, []velero.ResourceIdentifier, string, []velero.ResourceIdentifier, error) {
	object, err := meta.Accessor(item)
	if err != nil {
		return nil, nil, "", nil, err
	}
	// The operation's name says all that is to be known of it: another process of this plugin is asked about it.
	operation := fmt.Sprintf("%s/%s/%s", object.GetLabels()["export"], object.GetName(), time.Now().UTC().Format(time.RFC3339Nano))
	return item, nil, operation, nil, nil
}

func (mover) Progress(operation string, _ *api.Backup) (velero.OperationProgress, error) {
	parts := strings.SplitN(operation, "/", 3)
	if len(parts) != 3 {
		return velero.OperationProgress{}, fmt.Errorf("unknown operation %q", operation)
	}
	started, err := time.Parse(time.RFC3339Nano, parts[2])
	if err != nil {
		return velero.OperationProgress{}, err
	}
	progress := velero.OperationProgress{Started: started, Updated: time.Now(), NTotal: 1, OperationUnits: "objects"}
	if time.Since(started) < duration {
		return progress, nil
	}
	progress.Completed = true
	if parts[0] == "fails" {
		progress.Err = "it was asked to fail"
	} else {
		progress.NCompleted = 1
	}
	return progress, nil
}

func (mover) Cancel(string, *api.Backup) error { return nil }
