//! Restores as the tests write them.

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, PostParams},
};
use reveille::hooks::restored::is_terminal;
use serde_json::{Value, json};

use super::{Outcome, Scenario, VELERO, eventually, velero_resource};

/// A Restore in the making.
pub(crate) struct RestoreSpec<'a> {
    scenario: &'a Scenario,
    object: Value,
}

impl<'a> RestoreSpec<'a> {
    pub(super) fn new(scenario: &'a Scenario, backup: &str) -> Self {
        let object = json!({
            "apiVersion": "velero.io/v1", "kind": "Restore",
            "metadata": {"generateName": format!("{}-", scenario.namespace), "namespace": VELERO, "annotations": {}},
            "spec": {"backupName": backup, "hooks": {"resources": []}},
        });
        Self { scenario, object }
    }

    /// With one more item in `spec.hooks.resources`.
    pub(crate) fn hooks(self, rule: Value) -> Self {
        self.edit(|restore| {
            let rules = restore["spec"]["hooks"]["resources"].as_array_mut().unwrap();
            rules.push(rule);
        })
    }

    /// With an annotation.
    #[allow(clippy::needless_pass_by_value)] // reads better at its many calls
    pub(crate) fn annotate(self, key: &str, value: impl ToString) -> Self {
        let value = value.to_string();
        self.edit(|restore| restore["metadata"]["annotations"][key] = json!(value))
    }

    /// With this very name.
    pub(crate) fn name(self, name: &str) -> Self {
        self.edit(|restore| restore["metadata"]["name"] = json!(name))
    }

    /// With whatever else.
    pub(crate) fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.object);
        self
    }

    /// As written.
    pub(crate) fn json(&self) -> &Value {
        &self.object
    }

    /// Creates it, and waits for nothing.
    pub(crate) async fn begin(self) -> BegunRestore<'a> {
        let api = restores(self.scenario);
        let object: DynamicObject = serde_json::from_value(self.object).unwrap();
        let created = api.create(&PostParams::default(), &object).await.unwrap();
        BegunRestore {
            scenario: self.scenario,
            name: created.name_any(),
            uid: created.uid().unwrap(),
        }
    }

    /// Creates it, and waits until Velero is done with it, and Reveille too.
    pub(crate) async fn run(self) -> Outcome {
        self.begin().await.finish().await
    }
}

pub(super) fn restores(scenario: &Scenario) -> Api<DynamicObject> {
    Api::namespaced_with(scenario.client.clone(), VELERO, &velero_resource("Restore"))
}

/// A Restore under way.
pub(crate) struct BegunRestore<'a> {
    scenario: &'a Scenario,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl BegunRestore<'_> {
    /// A Restore that is there already.
    pub(crate) async fn existing<'a>(scenario: &'a Scenario, name: &str) -> BegunRestore<'a> {
        let object = restores(scenario).get(name).await.unwrap();
        BegunRestore {
            scenario,
            name: name.to_owned(),
            uid: object.uid().unwrap(),
        }
    }

    /// Deletes the object, as `kubectl delete` does.
    pub(crate) async fn delete(&self) {
        let api = restores(self.scenario);
        api.delete(&self.name, &DeleteParams::default()).await.unwrap();
        eventually(&format!("restore {} is gone", self.name), async || {
            api.get_opt(&self.name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// As it is now.
    pub(crate) async fn now(&self) -> Outcome {
        Outcome::read(self.scenario, &self.name, &self.uid).await
    }

    /// Waits until it has come this far.
    pub(crate) async fn reaches<T>(&self, what: &str, mut look: impl FnMut(&Outcome) -> Option<T>) -> T {
        eventually(&format!("restore {}: {what}", self.name), async || {
            look(&self.now().await)
        })
        .await
    }

    /// Waits until Velero is done with it and, where Reveille has to do with it, all hooks have ended.
    pub(crate) async fn finish(&self) -> Outcome {
        eventually(&format!("restore {} is finished", self.name), async || {
            let outcome = self.now().await;
            let settled = outcome.result.as_deref() != Some("Pending");
            let ended = outcome
                .runs
                .iter()
                .all(|run| run.status.as_ref().is_some_and(|status| status.phase.is_final()));
            (is_terminal(&outcome.phase) && settled && ended).then_some(outcome)
        })
        .await
    }
}
