// Writes the table that our templates, JSONPaths and conditions are held against: what Go's text/template with sprig, and
// Kubernetes' own JSONPath, make of cases.json. `go run . cases.json > table.json`
//
// The params are those of tests/it/templates.rs.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"
	"text/template"
	"time"

	"github.com/Masterminds/sprig"
	"k8s.io/client-go/util/jsonpath"
)

type cases struct {
	Templates  []string `json:"templates"`
	Paths      []string `json:"paths"`
	Conditions []string `json:"conditions"`
}

// One row: what a text gives, or that it is an error.
type row struct {
	Text  string  `json:"text"`
	Gives *string `json:"gives,omitempty"`
	Error string  `json:"error,omitempty"`
}

type table struct {
	Templates  []row `json:"templates"`
	Paths      []row `json:"paths"`
	Conditions []row `json:"conditions"`
}

// As in Kanister: the types decide what a missing key means.
type workload struct {
	Name                   string
	Namespace              string
	Pods                   []string
	Containers             [][]string
	PersistentVolumeClaims map[string]map[string]string
}

type named struct {
	Name      string
	Namespace string
}

type profile struct {
	Location struct{ Bucket string }
}

type artifact struct {
	KeyValue      map[string]string
	KopiaSnapshot string
}

type meta struct {
	Name      string
	Namespace string
	Labels    map[string]string
}

type secret struct {
	meta
	Data map[string][]byte
}

type configMap struct {
	meta
	Data map[string]string
}

type phase struct {
	Secrets    map[string]secret
	ConfigMaps map[string]configMap
	Output     map[string]interface{}
}

type params struct {
	StatefulSet *workload
	Deployment  *workload
	PVC         *named
	Namespace   *named
	ArtifactsIn map[string]artifact
	ConfigMaps  map[string]configMap
	Secrets     map[string]secret
	Time        string
	Profile     *profile
	Options     map[string]string
	Object      map[string]interface{}
	Phases      map[string]*phase
	DeferPhase  *phase
}

func actionParams() params {
	return params{
		StatefulSet: &workload{
			Name:                   "db",
			Namespace:              "shop",
			Pods:                   []string{"db-0", "db-1"},
			Containers:             [][]string{{"main", "proxy"}, {"main"}},
			PersistentVolumeClaims: map[string]map[string]string{"db-0": {"data-db-0": "/data"}},
		},
		ArtifactsIn: map[string]artifact{"backup": {KeyValue: map[string]string{"path": "/p"}}},
		ConfigMaps:  map[string]configMap{},
		Secrets:     map[string]secret{},
		Time:        time.Date(2026, 3, 4, 5, 6, 7, 120_000_000, time.UTC).Format(time.RFC3339Nano),
		Options:     map[string]string{"mode": "fast"},
		Object: map[string]interface{}{
			"kind": "StatefulSet",
			"metadata": map[string]interface{}{
				"name":   "db",
				"labels": map[string]interface{}{"app.kubernetes.io/name": "db", "b": "2"},
			},
			"spec": map[string]interface{}{
				"replicas": int64(3),
				"ratio":    0.5,
				"big":      1e21,
				"tiny":     1.5e-7,
				"large":    1234567.5,
				"enabled":  true,
				"null":     nil,
				"list":     []interface{}{"a", "b", "c"},
				"mixed":    []interface{}{"x", int64(1), true, nil, 2.5},
				"empty":    []interface{}{},
				"sets":     []interface{}{map[string]interface{}{"count": int64(2)}},
			},
		},
		Phases: map[string]*phase{"first": {
			Secrets: map[string]secret{"creds": {
				meta: meta{Name: "creds", Namespace: "shop", Labels: map[string]string{"l": "v"}},
				Data: map[string][]byte{"password": []byte("hunter2")},
			}},
			ConfigMaps: map[string]configMap{"settings": {
				meta: meta{Name: "settings", Namespace: "shop"},
				Data: map[string]string{"key": "value"},
			}},
			Output: map[string]interface{}{"text": "out", "count": int64(3)},
		}},
	}
}

func object() map[string]interface{} {
	return map[string]interface{}{
		"metadata": map[string]interface{}{
			"labels":     map[string]interface{}{"app.kubernetes.io/name": "db", "b": "<&>"},
			"generation": int64(3),
			"empty":      map[string]interface{}{},
		},
		"status": map[string]interface{}{
			"phase": "Running",
			"ratio": 0.5,
			"big":   1e21,
			"none":  nil,
			"list":  []interface{}{},
			"containerStatuses": []interface{}{
				map[string]interface{}{"name": "a", "ready": true, "restarts": int64(0)},
				map[string]interface{}{"name": "b", "ready": false, "restarts": int64(7), "extra": map[string]interface{}{"x": int64(1)}},
			},
			"conditions": []interface{}{
				map[string]interface{}{"type": "Ready", "status": "True"},
				map[string]interface{}{"type": "Other", "status": "False"},
			},
		},
	}
}

func rows(texts []string, run func(string) (string, error)) []row {
	rows := make([]row, 0, len(texts))
	for _, text := range texts {
		result, err := run(text)
		if err != nil {
			rows = append(rows, row{Text: text, Error: err.Error()})
		} else {
			rows = append(rows, row{Text: text, Gives: &result})
		}
	}
	return rows
}

func render(text, missingKey string, functions template.FuncMap, data interface{}) (string, error) {
	parsed, err := template.New("config").Option("missingkey=" + missingKey).Funcs(functions).Parse(text)
	if err != nil {
		return "", err
	}
	var buffer bytes.Buffer
	err = parsed.Execute(&buffer, data)
	return buffer.String(), err
}

func path(text string) (string, error) {
	parsed := jsonpath.New("out")
	if err := parsed.Parse("{" + text + "}"); err != nil {
		return "", err
	}
	var buffer bytes.Buffer
	err := parsed.Execute(&buffer, object())
	return buffer.String(), err
}

func main() {
	// As in a container.
	time.Local = time.UTC
	input, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var all cases
	if err := json.Unmarshal(input, &all); err != nil {
		log.Fatal(err)
	}
	result := table{
		Templates: rows(all.Templates, func(text string) (string, error) {
			return render(text, "error", sprig.TxtFuncMap(), actionParams())
		}),
		Paths: rows(all.Paths, path),
		Conditions: rows(all.Conditions, func(text string) (string, error) {
			return render(text, "default", nil, object())
		}),
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(result); err != nil {
		log.Fatal(err)
	}
}
