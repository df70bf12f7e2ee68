module reveille.dev/tests/crds

go 1.26

// Nothing is built of these: the end-to-end tests take the definitions of their kinds from them.
require (
	github.com/cert-manager/cert-manager v1.18.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
