//go:build oracle

// Velero's own answer to the question which restore hooks a pod gets. The script build-oracle copies this file into a copy
// of Velero's module, because Velero keeps the code for post hooks internal.
//
// Each line of standard input is a question, each line of standard output the answer to it, in the same order.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	corev1api "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/util/json"

	"github.com/vmware-tanzu/velero/internal/hook"
	velerov1api "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"github.com/vmware-tanzu/velero/pkg/plugin/velero"
	"github.com/vmware-tanzu/velero/pkg/restore/actions"
	"github.com/vmware-tanzu/velero/pkg/util/collections"
)

type question struct {
	// As it stands in the backup: what Velero's action for init hooks sees.
	Pod map[string]any `json:"pod"`
	// As the API server returned it: what Velero reads post hooks from.
	Created map[string]any  `json:"created"`
	Restore json.RawMessage `json:"restore"`

	// Other questions: single values by Go's rules, and one glob.
	Durations []string `json:"durations"`
	Booleans  []string `json:"booleans"`
	Glob      *string  `json:"glob"`
	Name      string   `json:"name"`
}

type answer struct {
	// The typed client could not read the Restore.
	Undecodable string `json:"undecodable,omitempty"`
	// Velero would end this Restore as FailedValidation.
	Invalid []string `json:"invalid,omitempty"`
	// The pod after the action, or why there is none.
	Pod       map[string]any `json:"pod,omitempty"`
	InitError string         `json:"initError,omitempty"`
	InitPanic string         `json:"initPanic,omitempty"`
	// By container, each in Velero's order.
	Post      map[string][]postHook `json:"post"`
	PostError string                `json:"postError,omitempty"`
	PostPanic string                `json:"postPanic,omitempty"`

	// Nanoseconds as text, or "" for what is no duration.
	Durations []string `json:"durations,omitempty"`
	// "true", "false", or "" for what is no boolean.
	Booleans []string `json:"booleans,omitempty"`
	// Whether the name is in a list that includes this pattern, and not in one that excludes it.
	Included  bool   `json:"included,omitempty"`
	Excluded  bool   `json:"excluded,omitempty"`
	GlobPanic string `json:"globPanic,omitempty"`
}

type postHook struct {
	Name         string   `json:"name"`
	Source       string   `json:"source"`
	Container    string   `json:"container"`
	Command      []string `json:"command"`
	OnError      string   `json:"onError"`
	ExecTimeout  string   `json:"execTimeout"`
	WaitTimeout  string   `json:"waitTimeout"`
	WaitForReady bool     `json:"waitForReady"`
}

func guarded(panicked *string, work func()) {
	defer func() {
		if problem := recover(); problem != nil {
			*panicked = fmt.Sprint(problem)
		}
	}()
	work()
}

func validate(restore *velerov1api.Restore) (found []string) {
	// As the restore controller does it before a restore begins.
	hooks, err := hook.GetRestoreHooksFromSpec(&restore.Spec.Hooks)
	if err != nil {
		found = append(found, err.Error())
	}
	for _, resource := range hooks {
		for _, item := range resource.RestoreHooks {
			if item.Init == nil {
				continue
			}
			for _, container := range item.Init.InitContainers {
				if err := hook.ValidateContainer(container.Raw); err != nil {
					found = append(found, err.Error())
				}
			}
		}
	}
	return found
}

func hooksOf(question *question, answer *answer, log logrus.FieldLogger) {
	restore := new(velerov1api.Restore)
	// The decoder of Kubernetes' clients: field names count exactly.
	if err := kjson.Unmarshal(question.Restore, restore); err != nil {
		answer.Undecodable = err.Error()
		return
	}
	answer.Invalid = validate(restore)

	guarded(&answer.InitPanic, func() {
		input := velero.RestoreItemActionExecuteInput{
			Item:    &unstructured.Unstructured{Object: question.Pod},
			Restore: restore,
		}
		output, err := actions.NewInitRestoreHookPodAction(log).Execute(&input)
		if err != nil {
			answer.InitError = err.Error()
			return
		}
		answer.Pod = output.UpdatedItem.UnstructuredContent()
	})

	guarded(&answer.PostPanic, func() {
		pod := new(corev1api.Pod)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(question.Created, pod); err != nil {
			answer.PostError = err.Error()
			return
		}
		hooks, err := hook.GetRestoreHooksFromSpec(&restore.Spec.Hooks)
		if err != nil {
			answer.PostError = err.Error()
			return
		}
		groups, err := hook.GroupRestoreExecHooks(restore.Name, hooks, pod, log, hook.NewMultiHookTracker())
		if err != nil {
			answer.PostError = err.Error()
			return
		}
		answer.Post = map[string][]postHook{}
		for container, group := range groups {
			for _, one := range group {
				answer.Post[container] = append(answer.Post[container], postHook{
					Name:         one.HookName,
					Source:       one.HookSource,
					Container:    one.Hook.Container,
					Command:      one.Hook.Command,
					OnError:      string(one.Hook.OnError),
					ExecTimeout:  one.Hook.ExecTimeout.Duration.String(),
					WaitTimeout:  one.Hook.WaitTimeout.Duration.String(),
					WaitForReady: one.Hook.WaitForReady != nil && *one.Hook.WaitForReady,
				})
			}
		}
	})
}

func valuesOf(question *question, answer *answer) {
	for _, text := range question.Durations {
		value := ""
		if duration, err := time.ParseDuration(text); err == nil {
			value = strconv.FormatInt(int64(duration), 10)
		}
		answer.Durations = append(answer.Durations, value)
	}
	for _, text := range question.Booleans {
		value := ""
		if boolean, err := strconv.ParseBool(text); err == nil {
			value = strconv.FormatBool(boolean)
		}
		answer.Booleans = append(answer.Booleans, value)
	}
	if question.Glob != nil {
		guarded(&answer.GlobPanic, func() {
			answer.Included = collections.NewIncludesExcludes().Includes(*question.Glob).ShouldInclude(question.Name)
			answer.Excluded = !collections.NewIncludesExcludes().Excludes(*question.Glob).ShouldInclude(question.Name)
		})
	}
}

func main() {
	log := logrus.New()
	log.SetOutput(io.Discard)
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "oracle: standard input:", err)
			os.Exit(1)
		}
		var question question
		var answer answer
		if err := kjson.Unmarshal(line, &question); err != nil {
			fmt.Fprintln(os.Stderr, "oracle: a question can't be read:", err)
			os.Exit(1)
		}
		if question.Restore != nil {
			hooksOf(&question, &answer, log)
		}
		valuesOf(&question, &answer)
		if err := out.Encode(answer); err != nil {
			fmt.Fprintln(os.Stderr, "oracle: standard output:", err)
			os.Exit(1)
		}
	}
}
