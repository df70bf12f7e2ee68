//! Go templates over the params.

use super::params::Params;

/// What templates see.
pub(super) struct Environment {
    root: gotmpl::Value,
}

impl Environment {
    pub(super) fn of(params: &Params) -> Self {
        let subject = gotmpl::tmap! {
            "Name" => params.subject.name.clone(),
            "Namespace" => params.subject.namespace.clone(),
        };
        let field = params.subject.kind.field().unwrap_or("Object");
        Self {
            root: gotmpl::Value::from_entries([(field.to_owned(), subject)]),
        }
    }
}

/// A parsed template.
pub(super) struct Template(gotmpl::Template);

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self, String> {
        let template = gotmpl::Template::new("").missing_key(gotmpl::MissingKey::Error);
        let parsed = template.parse(source).map_err(|error| error.to_string())?;
        Ok(Self(parsed))
    }

    pub(super) fn render(&self, environment: &Environment) -> Result<String, String> {
        let text = self.0.execute_to_string(&environment.root);
        text.map_err(|error| error.to_string())
    }
}
